# A network of timm under RetinaNet's pyramid, as configs/timm/Base-timm-FPN.yaml.
from detectron2.config import LazyCall as L

from fsaf_d2.backbones import TimmBackbone

from ..fsaf_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = L(TimmBackbone)(
    name="", out_features="${..in_features}", norm="SyncBN", freeze_at=0
)
model.pixel_mean = [123.675, 116.28, 103.53]
model.pixel_std = [58.395, 57.12, 57.375]
dataloader.train.mapper.image_format = "RGB"
train.init_checkpoint = ""
