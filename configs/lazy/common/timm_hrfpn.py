# A network of timm under HRNet's pyramid.
from detectron2.config import LazyCall as L

from fsaf_d2.necks import HRFPN

from .timm_fpn import dataloader, lr_multiplier, model, optimizer, train

model.backbone = L(HRFPN)(
    bottom_up=model.backbone.bottom_up,
    in_features=["res2", "res3", "res4", "res5"],
    out_channels=256,
    out_strides=[8, 16, 32, 64, 128],
)
