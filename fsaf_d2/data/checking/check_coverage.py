"""Which objects of a data set the anchors and locations of a config reach."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator
from torch import Tensor

from ...assignment.anchors import AnchorKinds
from ...assignment.coverage import LocationCounts, best_anchor_ious
from ...assignment.grid import Grid
from ...assignment.objects import Objects
from ...config_keys import value_of
from ...detectors.contract import traits_of
from ..object_sizes import size_masks
from .check_source import Check, object_areas
from .reach_advice import advise

# From which on an anchor is an object's (arXiv 1708.02002, Sec. 4).
IOU = 0.5
# detectron2 pads images to multiples of the coarsest stride of the backbone without its FPN.
DIVISIBILITY = 32
# Larger sides of images that are tried, as factors.
FACTORS = (1.5, 2, 3)
# Locations looked at at a time.
MAX_LOCATIONS = 1 << 22


class _Resized(NamedTuple):
    """Objects as the network gets them in a test."""

    objects: Objects
    sizes: Tensor  # (M, 2) width and height of each one's image


def coverage(check: Check, cfg: CfgNode) -> dict:
    """Count the objects that no anchor reaches, and what locations objects have without anchors.

    Images are resized as in a test (``INPUT.MIN_SIZE_TEST``, ``INPUT.MAX_SIZE_TEST``). Objects
    are parted by their area in the annotation file, as evaluation does. Boxes that cannot be used
    and crowds are left out.

    Returns:
        ``min_size_test``, ``max_size_test``, ``iou``; ``sides``, for images 1.5, 2 and 3 times as
        large ``min_size_test``, ``max_size_test`` and ``no_anchor`` by group; ``advice``, a
        sentence for a person; and ``groups``: for "all", "small", "medium" and "large" a dict of
        ``objects``; ``no_anchor``, those whose best anchor has a lower IoU;
        ``mean_best_iou``; ``least_locations``, that any of them has on any level without anchors;
        ``shared``, those that lose locations to smaller objects on the level that their size
        chooses, and ``covered``, those that lose all of them. The mean and the least are None
        without objects, the last three for detectors that do not count locations beforehand.

    Raises:
        ValueError: the config's levels are not those of an FPN (p3, p4, ...).
    """
    areas = object_areas(check)[_usable(check)]
    groups = {"all": np.ones(len(areas), dtype=bool), **size_masks(areas)}
    groups = {name: torch.from_numpy(mask) for name, mask in groups.items()}
    strides = _strides(cfg)
    resized, iou = _reach(check, cfg, strides)
    counts = _locations(resized, torch.tensor(strides), cfg)
    sides = [
        {
            "min_size_test": larger.INPUT.MIN_SIZE_TEST,
            "max_size_test": larger.INPUT.MAX_SIZE_TEST,
            "no_anchor": {name: int((found[mask] < IOU).sum()) for name, mask in groups.items()},
        }
        for larger in (_enlarged(check, cfg, factor) for factor in FACTORS)
        for found in (_reach(check, larger, strides)[1],)
    ]
    found = {
        "min_size_test": cfg.INPUT.MIN_SIZE_TEST,
        "max_size_test": cfg.INPUT.MAX_SIZE_TEST,
        "iou": IOU,
        "sides": sides,
        "groups": {
            name: {
                "objects": int(mask.sum()),
                "no_anchor": int((iou[mask] < IOU).sum()),
                "mean_best_iou": iou[mask].mean().item() if mask.any() else None,
                **_counted(counts, mask),
            }
            for name, mask in groups.items()
        },
    }
    return {**found, "advice": advise(found, cfg, resized.objects.boxes[iou < IOU])}


def _reach(check: Check, cfg: CfgNode, strides: list[int]) -> tuple[_Resized, Tensor]:
    """The objects as a test has them, and the IoU (M,) of the best anchor of each."""
    resized = _resize(check, cfg)
    padded = -(-resized.sizes // DIVISIBILITY) * DIVISIBILITY
    steps = torch.tensor(strides)
    map_sizes = -(-padded[:, None] // steps[:, None])
    kinds = _anchor_kinds(cfg, strides)
    return resized, best_anchor_ious(kinds, resized.objects.boxes, steps, map_sizes)


def _enlarged(check: Check, cfg: CfgNode, factor: float) -> CfgNode:
    """The config with so many times the side of images, that they have where it is not set."""
    cfg = cfg.clone()
    cfg.defrost()
    sides = check.boxes.sizes[_usable(check)].min(axis=1)
    own = cfg.INPUT.MIN_SIZE_TEST or (np.median(sides) if len(sides) else 0)
    cfg.INPUT.MIN_SIZE_TEST = round(own * factor)
    cfg.INPUT.MAX_SIZE_TEST = round(cfg.INPUT.MAX_SIZE_TEST * factor)
    return cfg


def _usable(check: Check) -> np.ndarray:
    """Places of the objects that are looked at, in the order of their images."""
    entries, boxes = check.entries, check.boxes
    usable = boxes.is_usable & ~entries.is_crowd & np.isfinite(boxes.sizes).all(axis=1)
    chosen = np.flatnonzero(usable)
    return chosen[np.argsort(entries.image_index[chosen], kind="stable")]


def _resize(check: Check, cfg: CfgNode) -> _Resized:
    """The objects as a test has them, in the order of their images."""
    entries, boxes, chosen = check.entries, check.boxes, _usable(check)
    corners = boxes.clipped()[chosen]
    corners[:, 2:] += corners[:, :2]
    shapes, index = np.unique(boxes.sizes[chosen], axis=0, return_inverse=True)
    new_shapes = np.array([_new_size(*shape, cfg) for shape in shapes]).reshape(-1, 2)
    index = index.reshape(-1)
    sizes = new_shapes[index]
    corners *= np.tile(sizes / shapes[index], 2)
    _, image_index = np.unique(entries.image_index[chosen], return_inverse=True)
    objects = Objects(
        torch.from_numpy(corners).float(),
        torch.from_numpy(entries.category_index[chosen]).clamp(min=0),
        torch.from_numpy(image_index.reshape(-1)),
    )
    return _Resized(objects, torch.from_numpy(sizes).long())


def _new_size(width: float, height: float, cfg: CfgNode) -> tuple[int, int]:
    if cfg.INPUT.MIN_SIZE_TEST == 0:
        return int(width), int(height)
    new_height, new_width = ResizeShortestEdge.get_output_shape(
        int(height), int(width), cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    )
    return max(new_width, 1), max(new_height, 1)


def _strides(cfg: CfgNode) -> list[int]:
    """Of the levels that have anchors."""
    key = traits_of(cfg).anchor_levels_key
    names = value_of(cfg, key)
    for name in names:
        if not re.fullmatch(r"(p|res)\d", name):
            raise ValueError(
                f"{key} has {name!r}, of which the stride is not known: levels of an FPN are named "
                "p3, p4 and so on, those of a ResNet res4 and so on."
            )
    return [2 ** int(name[-1]) for name in names]


def _anchor_kinds(cfg: CfgNode, strides: list[int]) -> AnchorKinds:
    generator = build_anchor_generator(cfg, [ShapeSpec(stride=stride) for stride in strides])
    return AnchorKinds.of_generator(generator)


def _counted(counts: LocationCounts | None, mask: Tensor) -> dict[str, int | None]:
    if counts is None:
        return {"least_locations": None, "shared": None, "covered": None}
    return {
        "least_locations": int(counts.least[mask].min()) if mask.any() else None,
        "shared": int((counts.kept < counts.owned)[mask].sum()),
        "covered": int((counts.kept == 0)[mask].sum()),
    }


def _locations(resized: _Resized, strides: Tensor, cfg: CfgNode) -> LocationCounts | None:
    """Count the locations of objects, if the detector can.

    Images are laid on canvases of whole cells of the coarsest level. What a larger canvas adds is
    beyond the image, where no object's centre is.
    """
    count = traits_of(cfg).count_locations
    if count is None:
        return None
    objects, coarsest = resized.objects, int(strides[-1])
    found = LocationCounts(*torch.zeros(3, len(objects.boxes), dtype=torch.int64))
    canvases = -(-resized.sizes // coarsest) * coarsest
    for canvas in torch.unique(canvases, dim=0):
        grid = Grid.of(strides, canvas.flip(0) // strides[:, None], torch.device("cpu"))
        of_canvas = (canvases == canvas).all(dim=1).nonzero().squeeze(1)
        images, image_index = torch.unique(objects.image_index[of_canvas], return_inverse=True)
        step = max(MAX_LOCATIONS // grid.num_locations, 1)
        ends = torch.searchsorted(image_index, torch.arange(0, len(images) + step, step))
        for first, last in zip(ends[:-1].tolist(), ends[1:].tolist()):
            index = of_canvas[first:last]
            local = image_index[first:last] - image_index[first]
            part = Objects(objects.boxes[index], objects.classes[index], local)
            for field, values in zip(found, count(part, grid, int(local.max()) + 1)):
                field[index] = values
    return found
