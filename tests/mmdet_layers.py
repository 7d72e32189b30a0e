"""What mmdetection's one-stage detectors have in common, in plain torch on tensors by their names.

Written from its configs and the shapes of its weights: ResNets in styles "pytorch" (the stride is
in the 3x3) and "caffe" (in the 1x1), FPN with ``add_extra_convs`` "on_input" and "on_output",
towers, ``multiclass_nms``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STRIDES = (8, 16, 32, 64, 128)
RGB_MEAN, RGB_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

Weights = dict[str, Tensor]
Pair = tuple[float, int, list[float]]  # score, class, box


def add_conv(
    weights: Weights, name: str, out: int, inner: int, size: int, bias: bool = True
) -> None:
    """Draw a convolution."""
    std = (2 / (inner * size**2)) ** 0.5
    weights[f"{name}.weight"] = torch.randn(out, inner, size, size) * std
    if bias:
        weights[f"{name}.bias"] = torch.randn(out) * 0.1


def add_norm(weights: Weights, name: str, channels: int, scale: float = 1.0) -> None:
    """Draw a batch norm."""
    add_group_norm(weights, name, channels, scale)
    weights[f"{name}.running_mean"] = torch.randn(channels) * 0.1
    weights[f"{name}.running_var"] = 0.5 + torch.rand(channels)
    weights[f"{name}.num_batches_tracked"] = torch.tensor(7)


def add_group_norm(weights: Weights, name: str, channels: int, scale: float = 1.0) -> None:
    """Draw a group norm."""
    weights[f"{name}.weight"] = (0.5 + torch.rand(channels)) * scale
    weights[f"{name}.bias"] = torch.randn(channels) * 0.1


def pyramid_weights(
    depth: int, *, groups: int = 1, width: int = 64, p6_from: str = "c5"
) -> Weights:
    """A state dict of backbone and neck, with the names and shapes of the published files."""
    weights: Weights = {}
    add_conv(weights, "backbone.conv1", 64, 3, 7, bias=False)
    add_norm(weights, "backbone.bn1", 64)
    channels = 64
    for stage, count in enumerate(BLOCKS[depth]):
        inner, out = groups * width * 2**stage, 256 * 2**stage
        for index in range(count):
            block = f"backbone.layer{stage + 1}.{index}"
            add_conv(weights, f"{block}.conv1", inner, channels, 1, bias=False)
            add_norm(weights, f"{block}.bn1", inner)
            add_conv(weights, f"{block}.conv2", inner, inner // groups, 3, bias=False)
            add_norm(weights, f"{block}.bn2", inner)
            add_conv(weights, f"{block}.conv3", out, inner, 1, bias=False)
            add_norm(weights, f"{block}.bn3", out, scale=0.2)
            if index == 0:
                add_conv(weights, f"{block}.downsample.0", out, channels, 1, bias=False)
                add_norm(weights, f"{block}.downsample.1", out)
            channels = out
    for index in range(3):
        add_conv(weights, f"neck.lateral_convs.{index}.conv", 256, 512 * 2**index, 1)
    for index in range(5):
        inner = 2048 if index == 3 and p6_from == "c5" else 256
        add_conv(weights, f"neck.fpn_convs.{index}.conv", 256, inner, 3)
    return weights


def add_towers(weights: Weights, *, bias: bool = True, group_norm: bool = False) -> None:
    """Draw the two towers of a head."""
    for kind in ("cls", "reg"):
        for index in range(4):
            layer = f"bbox_head.{kind}_convs.{index}"
            add_conv(weights, f"{layer}.conv", 256, 256, 3, bias)
            if group_norm:
                add_group_norm(weights, f"{layer}.gn", 256)


def conv(weights: Weights, name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    """A convolution, padded so that it keeps the size of the map but for its stride."""
    weight = weights[f"{name}.weight"]
    padding = weight.shape[-1] // 2
    return F.conv2d(x, weight, weights.get(f"{name}.bias"), stride, padding, groups=groups)


def norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Batch norm by the running statistics."""
    mean, var, weight, bias = (
        weights[f"{name}.{field}"][:, None, None]
        for field in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias


def group_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Group norm of 32 groups."""
    groups = x.unflatten(1, (32, -1))
    mean = groups.mean(dim=(2, 3, 4), keepdim=True)
    var = ((groups - mean) ** 2).mean(dim=(2, 3, 4), keepdim=True)
    x = ((groups - mean) / torch.sqrt(var + 1e-5)).flatten(1, 2)
    weight, bias = (weights[f"{name}.{field}"][:, None, None] for field in ("weight", "bias"))
    return x * weight + bias


def pyramid(
    weights: Weights,
    image: Tensor,
    depth: int,
    *,
    groups: int = 1,
    style: str = "pytorch",
    mean: tuple[float, ...] = RGB_MEAN,
    std: tuple[float, ...] = RGB_STD,
    p6_from: str = "c5",
    relu_before_p7: bool = False,
) -> list[Tensor]:
    """The five maps (1, 256, H, W) of an image (3, H, W) of 0 to 255."""
    x = (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    height, width = image.shape[1:]
    x = F.pad(x, (0, -width % 32, 0, -height % 32))[None]
    x = norm(weights, "backbone.bn1", conv(weights, "backbone.conv1", x, 2)).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    maps = []
    for stage, count in enumerate(BLOCKS[depth]):
        for index in range(count):
            block, stride = f"backbone.layer{stage + 1}.{index}", 2 if stage and not index else 1
            first, second = (1, stride) if style == "pytorch" else (stride, 1)
            y = norm(weights, f"{block}.bn1", conv(weights, f"{block}.conv1", x, first)).relu()
            y = conv(weights, f"{block}.conv2", y, second, groups)
            y = norm(weights, f"{block}.bn2", y).relu()
            y = norm(weights, f"{block}.bn3", conv(weights, f"{block}.conv3", y))
            if index == 0:
                x = conv(weights, f"{block}.downsample.0", x, stride)
                x = norm(weights, f"{block}.downsample.1", x)
            x = (x + y).relu()
        maps.append(x)
    p5, p4, p3 = (conv(weights, f"neck.lateral_convs.{i}.conv", maps[i + 1]) for i in (2, 1, 0))
    p4 = p4 + p5.repeat_interleave(2, 2).repeat_interleave(2, 3)
    p3 = p3 + p4.repeat_interleave(2, 2).repeat_interleave(2, 3)
    levels = [conv(weights, f"neck.fpn_convs.{i}.conv", p) for i, p in enumerate((p3, p4, p5))]
    p6_input = {"c5": maps[3], "p5": levels[2]}[p6_from]
    levels.append(conv(weights, "neck.fpn_convs.3.conv", p6_input, 2))
    p6 = levels[3].relu() if relu_before_p7 else levels[3]
    levels.append(conv(weights, "neck.fpn_convs.4.conv", p6, 2))
    return levels


def tower(weights: Weights, kind: str, x: Tensor, *, with_group_norm: bool = False) -> Tensor:
    """The tower "cls" or "reg" on one map."""
    for index in range(4):
        layer = f"bbox_head.{kind}_convs.{index}"
        x = conv(weights, f"{layer}.conv", x)
        if with_group_norm:
            x = group_norm(weights, f"{layer}.gn", x)
        x = x.relu()
    return x


def clipped(corners: tuple[float, ...], size: tuple[int, int]) -> list[float]:
    """A box on an image of (height, width)."""
    limits = (size[1], size[0]) * 2
    return [min(max(c, 0.0), limit) for c, limit in zip(corners, limits)]


def best_of_level(pairs: list[Pair]) -> list[Pair]:
    """The 1000 best pairs of a level, without those that have no area."""
    best = sorted(pairs, reverse=True)[:1000]
    return [pair for pair in best if pair[2][2] > pair[2][0] and pair[2][3] > pair[2][1]]


def suppressed(found: list[Pair], threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (D, 4), scores (D,) and classes (D,) that no better one of the class overlaps.

    At most 1000, where ``test_cfg`` has 100, so that all levels are among them.
    """
    kept: list[Pair] = []
    for score, k, box in sorted(found, reverse=True):
        if all(k != other or iou(box, other_box) <= threshold for _, other, other_box in kept):
            kept.append((score, k, box))
    scores, classes, boxes = zip(*kept[:1000])
    return torch.tensor(boxes), torch.tensor(scores), torch.tensor(classes)


def iou(one: list[float], other: list[float]) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)
