"""Regions of objects on the levels of a pyramid, in whole cells (arXiv 1903.00621, Sec. 3.2).

Letters: M objects; L levels. Boxes are (x0, y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import Grid


def region_cells(boxes: Tensor, scale: float, grid: Grid, *, point_offset: float = 0.5) -> Tensor:
    """Find the cells that boxes, scaled about their centres, touch on every level.

    A cell is here the square of one stride about its point, so that a region lies about the centre
    of its object wherever in their cells the points are.

    Args:
        boxes: (M, 4).
        scale: share of the box's width and height (0.2 effective, 0.5 ignoring region).
        point_offset: where in its cell the point lies; with 0.5 the squares are the cells.

    Returns:
        (M, L, 4) int64, the half-open ranges x0 <= x < x1, y0 <= y < y1 in cells. Every range lies
        on the map and holds at least one cell, also for boxes off the map or without an area.
    """
    # float64: at a scale of 0.3, float32 rounds some sides across the cell border that they are on.
    boxes = boxes.double()
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    half_sizes = (boxes[:, 2:] - boxes[:, :2]) * scale / 2
    strides = grid.strides[:, None]
    limits = torch.stack([grid.widths, grid.heights], dim=1)
    shift = point_offset - 0.5

    first = ((centers - half_sizes)[:, None] / strides - shift).floor().long()
    first = first.clamp(min=0).minimum(limits - 1)
    last = ((centers + half_sizes)[:, None] / strides - shift).ceil().long()
    last = last.maximum(first + 1).minimum(limits)
    return torch.cat([first, last], dim=2)
