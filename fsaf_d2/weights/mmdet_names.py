"""Names of mmdetection's one-stage detectors, and what they are in a detector of branches."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple


class MmdetHead(NamedTuple):
    """A ``bbox_head`` of mmdetection."""

    branch: str  # its name here
    outputs: tuple[tuple[str, str], ...]  # its modules behind the towers, and their names here
    layers: int  # of a tower's convolution here: with its ReLU, and perhaps a norm


POINT = MmdetHead("point", (("retina_cls", "cls_score"), ("retina_reg", "bbox_pred")), 2)
GFL = MmdetHead(
    "gfl",
    (
        ("gfl_cls", "cls_score"),
        ("gfl_reg", "bbox_pred"),
        ("scales", "scales"),
        ("integral", "integral"),
    ),
    3,
)
AUTOASSIGN = MmdetHead(
    "autoassign",
    (
        ("conv_cls", "cls_score"),
        ("conv_reg", "bbox_pred"),
        ("conv_centerness", "objectness"),
        ("scales", "scales"),
        ("center_prior", "center_prior"),
    ),
    3,
)
_NECK = (
    (r"neck\.lateral_convs\.([0-2])\.conv", "backbone.fpn_lateral{}", 3),
    (r"neck\.fpn_convs\.([0-2])\.conv", "backbone.fpn_output{}", 3),
    (r"neck\.fpn_convs\.([34])\.conv", "backbone.top_block.p{}", 3),
)
_TOWER = re.compile(r"bbox_head\.(cls|reg)_convs\.(\d+)\.(conv|gn)\.(\w+)")
_SCALE = re.compile(r"scales\.(\d+)\.scale")


def name_in(head: MmdetHead, name: str) -> str | None:
    """The name here of a tensor of the neck or the head; None if it has no counterpart."""
    module, _, field = name.rpartition(".")
    for pattern, new_name, offset in _NECK:
        part = re.fullmatch(pattern, module)
        if part:
            return f"{new_name.format(int(part[1]) + offset)}.{field}"
    tower = _TOWER.fullmatch(name)
    if tower:
        kind = {"cls": "cls", "reg": "bbox"}[tower[1]]
        layer = head.layers * int(tower[2]) + (tower[3] == "gn")
        return f"towers.{kind}_subnet.{layer}.{tower[4]}"
    own = name.removeprefix("bbox_head.")
    first, _, rest = own.partition(".")
    output = dict(head.outputs).get(first)
    if own == name or output is None:
        return None
    scale = _SCALE.fullmatch(own)
    rest = f"scales.{scale[1]}" if scale else rest
    return f"branches.{head.branch}.{output}.{rest}"


def head_of(names: Mapping[str, object]) -> MmdetHead | None:
    """The head that a file is of, by what no other head has."""
    marks = {"retina_reg.weight": POINT, "gfl_reg.weight": GFL, "center_prior.sigma": AUTOASSIGN}
    found = [head for mark, head in marks.items() if f"bbox_head.{mark}" in names]
    return found[0] if len(found) == 1 else None
