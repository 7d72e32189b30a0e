from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BottleneckBlock

from .fsaf_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

# make_default_stages knows no width of groups.
model.backbone.bottom_up.stages = [
    L(ResNet.make_stage)(
        block_class=BottleneckBlock,
        num_blocks=num_blocks,
        stride_per_block=[1 if i == 0 else 2] + [1] * (num_blocks - 1),
        in_channels=64 if i == 0 else 128 * 2**i,
        bottleneck_channels=256 * 2**i,
        out_channels=256 * 2**i,
        num_groups=64,
        norm="FrozenBN",
        stride_in_1x1=False,
    )
    for i, num_blocks in enumerate([3, 4, 23, 3])
]
model.pixel_mean = [123.675, 116.28, 103.53]
model.pixel_std = [58.395, 57.12, 57.375]
dataloader.train.mapper.image_format = "RGB"
train.init_checkpoint = ""
