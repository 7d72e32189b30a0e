"""FCOS's labels: locations about an object's centre, on the level of its size.

From arXiv 1904.01355, Sec. 3.2 and its extension arXiv 2006.09214 (centre sampling).

Letters: M objects, those of all images together; L levels; R locations of one image over all
levels; P locations that answer for an object. Boxes are (x0, y0, x1, y1) in pixels of the network's
input. All is known from the objects alone, and computed on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .grid import Cells, Grid, list_locations, split_by_total
from .objects import Objects, smallest_first

# Locations listed at a time: bounds the memory that many objects take.
MAX_LISTED = 1 << 19


class PositivePoints(NamedTuple):
    """The locations that answer for an object, in the order of location and image."""

    image_index: Tensor  # (P,) in 0..N-1
    location: Tensor  # (P,) in 0..R-1
    object_index: Tensor  # (P,) in 0..M-1
    distances: Tensor  # (P, 4) > 0, to the left, top, right and bottom side, in pixels


@torch.no_grad()
def sample_centers(
    objects: Objects,
    grid: Grid,
    *,
    num_images: int,
    size_limits: Sequence[float],
    radius: float,
    point_offset: float = 0.5,
) -> PositivePoints:
    """Find the locations that answer for an object.

    A location does if it lies in the object's box, less than ``radius`` strides from its centre in
    x and in y, and if the largest of its distances to the sides lies in the range of its level. Of
    several objects the smallest has it.

    Args:
        size_limits: (L - 1,) rising, in pixels: level l takes distances from its predecessor's
            limit to its own, both included.
        radius: in strides of the level.
        point_offset: where in its cell a location lies, in cells.
    """
    limits = torch.tensor([0.0, *size_limits, math.inf], dtype=torch.float64)
    cells = _near_centers(objects.boxes, grid, radius, point_offset)
    num_objects, num_levels = cells.shape[:2]
    order = smallest_first(objects)
    rank = torch.argsort(order)
    best = torch.full((num_images * grid.num_locations,), num_objects)
    for part in split_by_total(
        (cells[..., 2:] - cells[..., :2]).prod(dim=2).sum(dim=1), MAX_LISTED
    ):
        level = torch.arange(num_levels).repeat(len(cells[part]))
        region, location = list_locations(cells[part].flatten(0, 1), level, grid)
        index = part.start + region // num_levels
        distances, offset = _distances(location, objects.boxes[index], grid, point_offset)
        size = distances.amax(dim=1)
        level = region % num_levels
        taken = (distances > 0).all(dim=1) & (offset < radius)
        taken &= (size >= limits[level]) & (size <= limits[level + 1])
        row = objects.image_index[index[taken]] * grid.num_locations + location[taken]
        best.scatter_reduce_(0, row, rank[index[taken]], "amin")
    location, image = (best < num_objects).view(num_images, -1).T.nonzero().unbind(dim=1)
    object_index = order[best.view(num_images, -1)[image, location]]
    distances, _ = _distances(location, objects.boxes[object_index], grid, point_offset)
    return PositivePoints(image, location, object_index, distances.to(objects.boxes.dtype))


def _near_centers(boxes: Tensor, grid: Grid, radius: float, point_offset: float) -> Tensor:
    """Ranges (M, L, 4) of cells that hold all points within the radius of the centres."""
    boxes = boxes.double()
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    center = centers[:, None] / grid.strides[:, None] - point_offset
    limits = torch.stack([grid.widths, grid.heights], dim=1)
    # A centre may lie off the map, or be no number at all.
    center = center.nan_to_num(0.0).clamp(-1e6, 1e6)
    first = (center - radius).ceil().long().clamp(min=0).minimum(limits)
    last = ((center + radius).floor().long() + 1).clamp(min=0).minimum(limits)
    return torch.cat([first, last.maximum(first)], dim=2)


def _distances(
    location: Tensor, boxes: Tensor, grid: Grid, point_offset: float
) -> tuple[Tensor, Tensor]:
    """Distances (P, 4) to the sides of boxes, in pixels, and (P,) to their centres, in strides."""
    cells = Cells.at(location, grid)
    stride = grid.strides[cells.level].double()
    point = (torch.stack([cells.x, cells.y], dim=1) + point_offset) * stride[:, None]
    boxes = boxes.double()
    distances = torch.cat([point - boxes[:, :2], boxes[:, 2:] - point], dim=1)
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    return distances, (point - center).abs().amax(dim=1) / stride
