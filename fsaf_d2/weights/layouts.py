"""Weights of other libraries under the names that this project has for them.

What is known here: ResNets of torchvision and timm (ImageNet), and of mmdetection FSAF
(``configs/fsaf`` there: anchor-free alone, distances in the order top, bottom, left, right), GFL
and AutoAssign. The names within the latter are in :mod:`.mmdet_names`, those of timm's networks for
themselves in :mod:`.timm_names`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode
from torch import Tensor

from ..config_keys import value_of
from . import mmdet_names
from .mmdet_names import MmdetHead, head_of, name_in
from .weights_files import WeightsFileError

Weights = dict[str, "Tensor | np.ndarray"]

BOTTOM_UP = "backbone.bottom_up."
# Of images in 0..255; torchvision and timm state them for 0..1.
IMAGENET_RGB = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
}
CAFFE_BGR = {
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_MEAN": [102.9801, 115.9465, 122.7717],
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
}
# From top, bottom, left, right to left, top, right, bottom.
_LTRB_OF_TBLR = [2, 0, 3, 1]
# Inner layers of a residual block: conv1 and bn1 there are conv1 and conv1.norm here.
_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)")


class Layout(NamedTuple):
    """How a library names and orders what this project has too."""

    name: str
    new_name: Callable[[str], str | None]  # None for what has no counterpart here
    keys: dict[str, object]  # what a config must have for the weights to mean the same
    reordered: tuple[str, ...] = ()  # new names of what has the four distances as first dimension
    left_out: str | None = None  # why a model can do without what has no counterpart here


class Conversion(NamedTuple):
    """Weights under this project's names; what has no counterpart keeps its own."""

    weights: Weights
    old_names: dict[str, str]  # by the new name, of what was converted
    layout: Layout | None  # None for those of detectron2 and of this project


def to_own_layout(weights: Mapping[str, Tensor | np.ndarray]) -> Conversion:
    """Recognise the layout of a state dict by its names, and convert it.

    Args:
        weights: by name; they are not changed.

    Raises:
        WeightsFileError: they are of mmdetection's RetinaNet, which has the same names, or not of
            the shapes that the layout has.
    """
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    layout = recognise(weights)
    if layout is None:
        return Conversion(dict(weights), {}, None)
    converted, old_names = {}, {}
    for name, value in weights.items():
        new_name = layout.new_name(name)
        if (new_name or name) in converted:
            raise WeightsFileError(f"two of its tensors are {new_name or name!r:.99} here.")
        if new_name in layout.reordered:
            if value.shape[:1] != (4,):
                raise WeightsFileError(
                    f"{name!r:.99} has the shape {tuple(value.shape)}, but 4 distances come first."
                )
            value = value[_LTRB_OF_TBLR]
        converted[new_name or name] = value
        if new_name:
            old_names[new_name] = name
    return Conversion(converted, old_names, layout)


# Beginnings of names in version 0.1 and in detectron2's RetinaNet, and what they are in a detector
# of towers and branches; the first that fits counts.
_FORMER_NAMES = (
    ("head.cls_subnet.", "towers.cls_subnet."),
    ("head.bbox_subnet.", "towers.bbox_subnet."),
    ("head.anchor_free_", "branches.point."),
    ("head.", "branches.anchor."),
    ("loss_normalizer", "branches.anchor.loss_normalizer"),
)


def current_name(name: str) -> str:
    """The name in a detector of towers and branches, of a tensor of it before version 0.2."""
    for former, current in _FORMER_NAMES:
        if name.startswith(former):
            return current + name.removeprefix(former)
    return name


def to_current_names(conversion: Conversion, wanted: Iterable[str]) -> Conversion:
    """Rename what version 0.1 and detectron2's RetinaNet call otherwise.

    Args:
        conversion: of a file.
        wanted: names that the model has; one without towers, such as detectron2's own, is let be.
    """
    if not any(name.startswith("towers.") for name in wanted):
        return conversion
    weights, old_names = {}, dict(conversion.old_names)
    for name, value in conversion.weights.items():
        current = current_name(name)
        weights[current] = value
        if current != name:
            old_names[current] = old_names.pop(name, name)
    return conversion._replace(weights=weights, old_names=old_names)


def recognise(weights: Mapping[str, Tensor | np.ndarray]) -> Layout | None:
    """The layout that the names are of; None for detectron2's, this project's and unknown ones.

    Raises:
        WeightsFileError: as :func:`to_own_layout`.
    """
    if "neck.fpn_convs.0.conv.weight" in weights:
        box_output = weights.get("bbox_head.retina_reg.weight")
        if box_output is not None and box_output.ndim == 4 and box_output.shape[0] > 4:
            boxes = box_output.shape[0] // 4
            raise WeightsFileError(
                f"it is of mmdetection's RetinaNet with {boxes} anchors for each location; of "
                "mmdetection FSAF (without anchors), GFL and AutoAssign are converted. "
                "detectron2's RetinaNet loads as it is: configs/zoo/."
            )
        head = head_of(weights)
        if head is not None:
            return _OF_HEADS[head]
    if "conv1.weight" in weights and any(_BLOCK.fullmatch(name) for name in weights):
        # Blocks of two layers have no 1x1 layer that could have the stride.
        return RESNET if "layer1.0.conv3.weight" in weights else SHALLOW_RESNET
    return None


def conflicts(layout: Layout, cfg: CfgNode) -> list[str]:
    """A sentence for each key whose value is another than the weights were trained with."""
    return [
        f"{key} is {value_of(cfg, key)!r}, but weights in the layout of {layout.name} were trained "
        f"with {expected!r}."
        for key, expected in layout.keys.items()
        if not _close(value_of(cfg, key), expected)
    ]


def _close(value: object, expected: object) -> bool:
    if isinstance(expected, list):
        # Some round the means and deviations.
        return len(value) == len(expected) and bool(np.allclose(value, expected, atol=0.5))
    return value == expected


def _resnet_name(name: str, to: str = BOTTOM_UP) -> str | None:
    if name == "conv1.weight":
        return f"{to}stem.conv1.weight"
    if name.startswith("bn1."):
        return f"{to}stem.conv1.norm.{name.removeprefix('bn1.')}"
    block = _BLOCK.fullmatch(name)
    if block is None:
        return None
    stage, index, kind, number, field = block.groups()
    if kind == "downsample.":
        layer = {"0": "shortcut", "1": "shortcut.norm"}.get(number)
    else:
        layer = f"conv{number}" + (".norm" if kind == "bn" else "")
    return layer and f"{to}res{int(stage) + 1}.{index}.{layer}.{field}"


def _of_mmdet(head: MmdetHead) -> Callable[[str], str | None]:
    def new_name(name: str) -> str | None:
        if name.startswith("backbone."):
            return _resnet_name(name.removeprefix("backbone."))
        return name_in(head, name)

    return new_name


SHALLOW_RESNET = Layout("torchvision's and timm's ResNet", _resnet_name, IMAGENET_RGB)
RESNET = SHALLOW_RESNET._replace(keys={**IMAGENET_RGB, "MODEL.RESNETS.STRIDE_IN_1X1": False})
MMDET_FSAF = Layout(
    "mmdetection's FSAF",
    _of_mmdet(mmdet_names.POINT),
    {
        **RESNET.keys,
        "MODEL.FPN.RELU_BEFORE_P7": False,
        "MODEL.FSAF.POINT_OFFSET": 0.0,
        "MODEL.FSAF.BOX_NORMALIZER": 4.0,
    },
    tuple(f"branches.point.bbox_pred.{field}" for field in ("weight", "bias")),
)
_GN_TOWERS = {"MODEL.RETINANET.NORM": "GN"}
MMDET_GFL = Layout(
    "mmdetection's GFL",
    _of_mmdet(mmdet_names.GFL),
    {
        **RESNET.keys,
        **_GN_TOWERS,
        "MODEL.FPN.P6_FROM": "p5",
        "MODEL.FPN.RELU_BEFORE_P7": False,
        "MODEL.TOWERS.BIAS": False,
        "MODEL.GFL.POINT_OFFSET": 0.0,
    },
)
MMDET_AUTOASSIGN = Layout(
    "mmdetection's AutoAssign",
    _of_mmdet(mmdet_names.AUTOASSIGN),
    {
        **CAFFE_BGR,
        **_GN_TOWERS,
        "MODEL.RESNETS.STRIDE_IN_1X1": True,
        "MODEL.AUTOASSIGN.POINT_OFFSET": 0.0,
    },
)
_OF_HEADS = {
    mmdet_names.POINT: MMDET_FSAF,
    mmdet_names.GFL: MMDET_GFL,
    mmdet_names.AUTOASSIGN: MMDET_AUTOASSIGN,
}
LAYOUTS = {layout.name: layout for layout in (RESNET, *_OF_HEADS.values())}
