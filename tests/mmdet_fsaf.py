"""mmdetection's FSAF once more, in plain torch on tensors under its own names.

Written from its configs and the shapes of its weights: ResNet "pytorch" style, FPN with
``add_extra_convs="on_input"``, FSAFHead, TBLRBBoxCoder with normalizer 4, RetinaNet's ``test_cfg``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STRIDES = (8, 16, 32, 64, 128)
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

Weights = dict[str, Tensor]


def _conv(weights: Weights, name: str, out: int, inner: int, size: int, bias: bool = True) -> None:
    std = (2 / (inner * size**2)) ** 0.5
    weights[f"{name}.weight"] = torch.randn(out, inner, size, size) * std
    if bias:
        weights[f"{name}.bias"] = torch.randn(out) * 0.1


def _norm(weights: Weights, name: str, channels: int, scale: float = 1.0) -> None:
    weights[f"{name}.weight"] = (0.5 + torch.rand(channels)) * scale
    weights[f"{name}.bias"] = torch.randn(channels) * 0.1
    weights[f"{name}.running_mean"] = torch.randn(channels) * 0.1
    weights[f"{name}.running_var"] = 0.5 + torch.rand(channels)
    weights[f"{name}.num_batches_tracked"] = torch.tensor(7)


def random_weights(depth: int, *, groups: int = 1, width: int = 64, num_classes: int = 80):
    """A state dict with the names and shapes of the published files."""
    weights: Weights = {}
    _conv(weights, "backbone.conv1", 64, 3, 7, bias=False)
    _norm(weights, "backbone.bn1", 64)
    channels = 64
    for stage, count in enumerate(BLOCKS[depth]):
        inner, out = groups * width * 2**stage, 256 * 2**stage
        for index in range(count):
            block = f"backbone.layer{stage + 1}.{index}"
            _conv(weights, f"{block}.conv1", inner, channels, 1, bias=False)
            _norm(weights, f"{block}.bn1", inner)
            _conv(weights, f"{block}.conv2", inner, inner // groups, 3, bias=False)
            _norm(weights, f"{block}.bn2", inner)
            _conv(weights, f"{block}.conv3", out, inner, 1, bias=False)
            _norm(weights, f"{block}.bn3", out, scale=0.2)
            if index == 0:
                _conv(weights, f"{block}.downsample.0", out, channels, 1, bias=False)
                _norm(weights, f"{block}.downsample.1", out)
            channels = out
    for index in range(3):
        _conv(weights, f"neck.lateral_convs.{index}.conv", 256, 512 * 2**index, 1)
    for index in range(5):
        _conv(weights, f"neck.fpn_convs.{index}.conv", 256, 2048 if index == 3 else 256, 3)
    for kind in ("cls", "reg"):
        for index in range(4):
            _conv(weights, f"bbox_head.{kind}_convs.{index}.conv", 256, 256, 3)
    _conv(weights, "bbox_head.retina_cls", num_classes, 256, 3)
    _conv(weights, "bbox_head.retina_reg", 4, 256, 3)
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

    def conv(name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        padding = weight.shape[-1] // 2
        return F.conv2d(x, weight, weights.get(f"{name}.bias"), stride, padding, groups=groups)

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            weights[f"{name}.{field}"][:, None, None]
            for field in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    x = (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    height, width = image.shape[1:]
    x = F.pad(x, (0, -width % 32, 0, -height % 32))[None]
    x = norm("backbone.bn1", conv("backbone.conv1", x, 2)).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    maps = []
    for stage, count in enumerate(BLOCKS[depth]):
        for index in range(count):
            block, stride = f"backbone.layer{stage + 1}.{index}", 2 if stage and not index else 1
            y = norm(f"{block}.bn1", conv(f"{block}.conv1", x)).relu()
            y = norm(f"{block}.bn2", conv(f"{block}.conv2", y, stride, groups)).relu()
            y = norm(f"{block}.bn3", conv(f"{block}.conv3", y))
            if index == 0:
                x = norm(f"{block}.downsample.1", conv(f"{block}.downsample.0", x, stride))
            x = (x + y).relu()
        maps.append(x)
    p5, p4, p3 = (conv(f"neck.lateral_convs.{i}.conv", maps[i + 1]) for i in (2, 1, 0))
    p4 = p4 + p5.repeat_interleave(2, 2).repeat_interleave(2, 3)
    p3 = p3 + p4.repeat_interleave(2, 2).repeat_interleave(2, 3)
    levels = [conv(f"neck.fpn_convs.{i}.conv", p) for i, p in enumerate((p3, p4, p5))]
    levels.append(conv("neck.fpn_convs.3.conv", maps[3], 2))
    levels.append(conv("neck.fpn_convs.4.conv", levels[3], 2))
    logits, distances = [], []
    for level in levels:
        cls = reg = level
        for index in range(4):
            cls = conv(f"bbox_head.cls_convs.{index}.conv", cls).relu()
            reg = conv(f"bbox_head.reg_convs.{index}.conv", reg).relu()
        logits.append(conv("bbox_head.retina_cls", cls))
        distances.append(conv("bbox_head.retina_reg", reg).relu())
    return logits, distances


def detect(logits: list[Tensor], distances: list[Tensor], size: tuple[int, int]):
    """Boxes (D, 4), scores (D,) and classes (D,) of an image of (height, width), best first.

    At most 1000, where ``test_cfg`` has 100, so that all levels are among them.
    """
    found = []  # (score, class, box)
    for stride, scores, tblr in zip(STRIDES, logits, distances):
        pairs = []
        for k, y, x in (scores[0].sigmoid() > 0.05).nonzero().tolist():
            top, bottom, left, right = (tblr[0, :, y, x] * 4 * stride).tolist()
            corners = (x * stride - left, y * stride - top, x * stride + right, y * stride + bottom)
            limits = (size[1], size[0]) * 2
            box = [min(max(c, 0.0), limit) for c, limit in zip(corners, limits)]
            pairs.append((scores[0, k, y, x].sigmoid().item(), k, box))
        best = sorted(pairs, reverse=True)[:1000]
        found += [pair for pair in best if pair[2][2] > pair[2][0] and pair[2][3] > pair[2][1]]
    kept = []
    for score, k, box in sorted(found, reverse=True):
        if all(k != other or _iou(box, other_box) <= 0.5 for _, other, other_box in kept):
            kept.append((score, k, box))
    scores, classes, boxes = zip(*kept[:1000])
    return torch.tensor(boxes), torch.tensor(scores), torch.tensor(classes)


def _iou(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)
