"""mmdetection's GFL once more, in plain torch on tensors under its own names.

Written from its configs and the shapes of its weights: GFLHead with ``reg_max`` 16, anchors about
the corners of cells, ``test_cfg`` with NMS at 0.6.
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

BINS = 17


def random_weights(num_classes: int = 80) -> Weights:
    """A state dict with the names and shapes of the published R-50 file."""
    weights = pyramid_weights(50, p6_from="p5")
    add_towers(weights, bias=False, group_norm=True)
    add_conv(weights, "bbox_head.gfl_cls", num_classes, 256, 3)
    add_conv(weights, "bbox_head.gfl_reg", 4 * BINS, 256, 3)
    # Scores about the threshold, and distances of some strides.
    weights["bbox_head.gfl_cls.weight"] *= 0.5
    weights["bbox_head.gfl_cls.bias"].fill_(-3.8)
    weights["bbox_head.gfl_reg.bias"] -= 0.5 * torch.arange(BINS).repeat(4)
    for level in range(5):
        weights[f"bbox_head.scales.{level}.scale"] = torch.tensor(0.6 + 0.2 * level)
    weights["bbox_head.integral.project"] = torch.linspace(0, BINS - 1, BINS)
    return weights


def head_outputs(weights: Weights, image: Tensor):
    """Logits (1, K, H, W) and logits of bins (1, 68, H, W) of each level.

    Args:
        image: (3, H, W), RGB of 0 to 255.
    """
    logits, bins = [], []
    for index, level in enumerate(pyramid(weights, image, 50, p6_from="p5")):
        classes = tower(weights, "cls", level, with_group_norm=True)
        logits.append(conv(weights, "bbox_head.gfl_cls", classes))
        boxes = tower(weights, "reg", level, with_group_norm=True)
        scale = weights[f"bbox_head.scales.{index}.scale"]
        bins.append(conv(weights, "bbox_head.gfl_reg", boxes) * scale)
    return logits, bins


def detect(weights: Weights, logits: list[Tensor], bins: list[Tensor], size: tuple[int, int]):
    """Boxes (D, 4), scores (D,) and classes (D,) of an image of (height, width), best first."""
    project = weights["bbox_head.integral.project"].tolist()
    found = []
    for stride, scores, of_level in zip(STRIDES, logits, bins):
        pairs = []
        for k, y, x in (scores[0].sigmoid() > 0.05).nonzero().tolist():
            sides = []
            for side in range(4):
                share = of_level[0, side * BINS : (side + 1) * BINS, y, x].exp().tolist()
                sides.append(sum(p * bin_ for p, bin_ in zip(share, project)) / sum(share))
            left, top, right, bottom = (side * stride for side in sides)
            corners = (x * stride - left, y * stride - top, x * stride + right, y * stride + bottom)
            pairs.append((scores[0, k, y, x].sigmoid().item(), k, clipped(corners, size)))
        found += best_of_level(pairs)
    return suppressed(found, 0.6)
