"""mmdetection's AutoAssign once more, in plain torch on tensors under its own names.

Written from its configs and the shapes of its weights: AutoAssignHead, ResNet "caffe" style, P6
from C5 and ReLU before P7, locations at the corners of cells, ``test_cfg`` with NMS at 0.6.
"""

from __future__ import annotations

import torch
from mmdet_layers import (
    STRIDES,
    Weights,
    add_conv,
    add_towers,
    best_of_level,
    clipped,
    conv,
    pyramid,
    pyramid_weights,
    suppressed,
    tower,
)
from torch import Tensor

BGR_MEAN = (102.9801, 115.9465, 122.7717)


def random_weights(num_classes: int = 80) -> Weights:
    """A state dict with the names and shapes of the published R-50 file."""
    weights = pyramid_weights(50, p6_from="c5")
    # Images are not divided by their deviation.
    weights["backbone.conv1.weight"] /= 58
    add_towers(weights, group_norm=True)
    add_conv(weights, "bbox_head.conv_cls", num_classes, 256, 3)
    add_conv(weights, "bbox_head.conv_reg", 4, 256, 3)
    add_conv(weights, "bbox_head.conv_centerness", 1, 256, 3)
    # Scores about the threshold, and distances of some strides, a few of them cut off at 0.
    weights["bbox_head.conv_cls.weight"] *= 0.5
    weights["bbox_head.conv_cls.bias"].fill_(-3.0)
    weights["bbox_head.conv_reg.bias"] += torch.tensor([1.5, 2.0, 2.5, 3.0])
    for level in range(5):
        weights[f"bbox_head.scales.{level}.scale"] = torch.tensor(0.6 + 0.2 * level)
    weights["bbox_head.center_prior.mean"] = torch.randn(num_classes, 2)
    weights["bbox_head.center_prior.sigma"] = torch.rand(num_classes, 2) + 0.5
    return weights


def head_outputs(weights: Weights, image: Tensor):
    """Logits (1, K, H, W), distances (1, 4, H, W) in strides and objectness of each level.

    Args:
        image: (3, H, W), BGR of 0 to 255.
    """
    levels = pyramid(
        weights,
        image,
        50,
        style="caffe",
        mean=BGR_MEAN,
        std=(1.0, 1.0, 1.0),
        p6_from="c5",
        relu_before_p7=True,
    )
    logits, distances, objectness = [], [], []
    for index, level in enumerate(levels):
        classes = tower(weights, "cls", level, with_group_norm=True)
        boxes = tower(weights, "reg", level, with_group_norm=True)
        scale = weights[f"bbox_head.scales.{index}.scale"]
        logits.append(conv(weights, "bbox_head.conv_cls", classes))
        distances.append((conv(weights, "bbox_head.conv_reg", boxes) * scale).relu())
        objectness.append(conv(weights, "bbox_head.conv_centerness", boxes))
    return logits, distances, objectness


def detect(
    logits: list[Tensor],
    distances: list[Tensor],
    objectness: list[Tensor],
    size: tuple[int, int],
):
    """Boxes (D, 4), scores (D,) and classes (D,) of an image of (height, width), best first."""
    found = []
    for stride, classes, sides, objects in zip(STRIDES, logits, distances, objectness):
        scores = classes[0].sigmoid() * objects[0].sigmoid()
        pairs = []
        for k, y, x in (scores > 0.05).nonzero().tolist():
            left, top, right, bottom = (sides[0, :, y, x] * stride).tolist()
            corners = (x * stride - left, y * stride - top, x * stride + right, y * stride + bottom)
            pairs.append((scores[k, y, x].item(), k, clipped(corners, size)))
        found += best_of_level(pairs)
    return suppressed(found, 0.6)
