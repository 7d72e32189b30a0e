from ..common.timm_hrfpn import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.name = "hrnet_w32"
