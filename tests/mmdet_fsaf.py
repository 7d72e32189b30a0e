"""mmdetection's FSAF once more, in plain torch on tensors under its own names.

Written from its configs and the shapes of its weights: FSAFHead, TBLRBBoxCoder with normalizer 4,
RetinaNet's ``test_cfg``.
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


def random_weights(depth: int, *, groups: int = 1, width: int = 64, num_classes: int = 80):
    """A state dict with the names and shapes of the published files."""
    weights: Weights = pyramid_weights(depth, groups=groups, width=width)
    add_towers(weights)
    add_conv(weights, "bbox_head.retina_cls", num_classes, 256, 3)
    add_conv(weights, "bbox_head.retina_reg", 4, 256, 3)
    # Outputs of a size that is not absurd: hundreds of scores above 0.05, some distances of 0.
    for name, scale, bias in (("cls", 0.06, -3.3), ("reg", 0.06, 0.1)):
        weights[f"bbox_head.retina_{name}.weight"] *= scale
        weights[f"bbox_head.retina_{name}.bias"].fill_(bias)
    weights["bbox_head.retina_reg.bias"] += torch.tensor([0.1, 0.2, 0.3, 0.4])
    return weights


def head_outputs(weights: Weights, image: Tensor, depth: int, groups: int = 1):
    """Logits (1, K, H, W) and distances (1, 4, H, W), in the order t, b, l, r, of each level.

    Args:
        image: (3, H, W), RGB of 0 to 255.
    """
    logits, distances = [], []
    for level in pyramid(weights, image, depth, groups=groups):
        logits.append(conv(weights, "bbox_head.retina_cls", tower(weights, "cls", level)))
        boxes = conv(weights, "bbox_head.retina_reg", tower(weights, "reg", level))
        distances.append(boxes.relu())
    return logits, distances


def detect(logits: list[Tensor], distances: list[Tensor], size: tuple[int, int]):
    """Boxes (D, 4), scores (D,) and classes (D,) of an image of (height, width), best first."""
    found = []
    for stride, scores, tblr in zip(STRIDES, logits, distances):
        pairs = []
        for k, y, x in (scores[0].sigmoid() > 0.05).nonzero().tolist():
            top, bottom, left, right = (tblr[0, :, y, x] * 4 * stride).tolist()
            corners = (x * stride - left, y * stride - top, x * stride + right, y * stride + bottom)
            pairs.append((scores[0, k, y, x].sigmoid().item(), k, clipped(corners, size)))
        found += best_of_level(pairs)
    return suppressed(found, 0.5)
