"""Which objects anchors and locations reach, before anything is trained.

Letters: M objects, those of all images together; L levels; A anchors per location; S = L * A kinds
of anchors. Boxes are (x0, y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .anchor_matching import paired_iou
from .anchors import AnchorKinds
from .feature_selection import SelectionRule, select_levels_by_size, smallest_objects
from .grid import Grid, count_locations
from .objects import Objects
from .regions import region_cells

# Pairs of object and kind compared at a time.
MAX_PAIRS = 1 << 20


def best_anchor_ious(
    kinds: AnchorKinds, boxes: Tensor, strides: Tensor, map_sizes: Tensor
) -> Tensor:
    """Find the highest IoU that any anchor has with each object.

    Anchors of a kind overlap an object the more, the nearer they are in x and in y. So the one in
    the nearest cell is the best of its kind, and no other is looked at.

    Args:
        kinds: of the anchors of every image.
        boxes: (M, 4).
        strides: (L,) in pixels.
        map_sizes: (M, L, 2) width and height of the levels of each object's image, in cells.

    Returns:
        (M,) float64.
    """
    strides = strides.double().repeat_interleave(kinds.num_per_location)[:, None]
    cell_anchors = kinds.cell_anchors.double()
    anchor_centers = (cell_anchors[:, :2] + cell_anchors[:, 2:]) / 2
    best = [boxes.new_zeros(0, dtype=torch.float64)]
    step = max(MAX_PAIRS // len(cell_anchors), 1)
    for part, sizes in zip(boxes.double().split(step), map_sizes.split(step)):
        centers = (part[:, None, :2] + part[:, None, 2:]) / 2
        cells = ((centers - anchor_centers) / strides - kinds.offset).round()
        last = sizes.repeat_interleave(kinds.num_per_location, dim=1) - 1
        cells = cells.clamp(min=0).minimum(last.double())
        anchors = cell_anchors + ((cells + kinds.offset) * strides).repeat(1, 1, 2)
        best.append(paired_iou(part[:, None], anchors).amax(dim=1))
    return torch.cat(best)


class LocationCounts(NamedTuple):
    """How many locations objects have before anything is trained."""

    least: Tensor  # (M,) on any level
    owned: Tensor  # (M,) on the level that their size chooses
    kept: Tensor  # (M,) of these, those that no smaller object takes


def count_locations_of(
    objects: Objects, grid: Grid, num_images: int, *, rule: SelectionRule
) -> LocationCounts:
    """Count the locations in the effective regions of objects.

    Where regions meet, the smallest object has the location, as in training.
    """
    cells = region_cells(objects.boxes, rule.effective_scale, grid, point_offset=rule.point_offset)
    levels = select_levels_by_size(
        objects.boxes,
        grid,
        canonical_level=rule.canonical_level,
        canonical_box_size=rule.canonical_box_size,
    )
    owners = smallest_objects(levels, cells, objects, grid, num_images).flatten()
    num_objects = len(objects.boxes)
    kept = torch.bincount(owners, minlength=num_objects + 1)[:num_objects]
    counts = count_locations(cells)
    return LocationCounts(counts.amin(dim=1), counts[torch.arange(num_objects), levels], kept)
