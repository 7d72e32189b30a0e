from ..common.timm_fpn import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.name = "cspresnext50"
model.backbone.top_block.in_channels = 2048
