"""Regions of objects on the levels of a pyramid, in whole cells (FSAF, arXiv 1903.00621, Sec. 3.2).

Letters: M objects; L levels; R locations of one image over all levels, level after level and row by
row within a level; P regions; T listed locations. Boxes are (x0, y0, x1, y1) in pixels of the
network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Grid(NamedTuple):
    """The cells of every level."""

    strides: Tensor  # (L,) in pixels
    widths: Tensor  # (L,) in cells
    heights: Tensor  # (L,) in cells
    starts: Tensor  # (L,) index in 0..R-1 of the level's first location

    @classmethod
    def of(
        cls, strides: Sequence[int], sizes: Sequence[Sequence[int]], device: torch.device
    ) -> Grid:
        """Describe levels of the given strides and sizes (height, width)."""
        heights, widths = torch.tensor([list(size) for size in sizes]).unbind(dim=1)
        counts = heights * widths
        parts = (torch.tensor(strides), widths, heights, counts.cumsum(0) - counts)
        return cls(*(part.to(device) for part in parts))


def region_cells(boxes: Tensor, scale: float, grid: Grid) -> Tensor:
    """Find the cells that boxes, scaled about their centres, touch on every level.

    Args:
        boxes: (M, 4).
        scale: share of the box's width and height (0.2 effective, 0.5 ignoring region).

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

    first = ((centers - half_sizes)[:, None] / strides).floor().long()
    first = first.clamp(min=0).minimum(limits - 1)
    last = ((centers + half_sizes)[:, None] / strides).ceil().long()
    last = last.maximum(first + 1).minimum(limits)
    return torch.cat([first, last], dim=2)


def list_locations(cells: Tensor, levels: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """List the locations of regions.

    Args:
        cells: (P, 4), ranges as from :func:`region_cells`.
        levels: (P,) the level of each region.

    Returns:
        (T,) the region, in 0..P-1, and (T,) the location, in 0..R-1, of every cell of every region.
    """
    x0, y0, x1, y1 = cells.unbind(dim=1)
    widths = x1 - x0
    counts = widths * (y1 - y0)
    region = torch.repeat_interleave(counts)
    offset = torch.arange(len(region), device=cells.device) - (counts.cumsum(0) - counts)[region]
    x = x0[region] + offset % widths[region]
    y = y0[region] + offset // widths[region]
    level = levels[region]
    return region, grid.starts[level] + y * grid.widths[level] + x
