from ..common.timm_fpn import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.name = "cspdarknet53"
model.backbone.top_block.in_channels = 1024
