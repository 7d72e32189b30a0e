from ..common.timm_fpn import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.name = "hrnet_w18"
model.backbone.top_block.in_channels = 144
