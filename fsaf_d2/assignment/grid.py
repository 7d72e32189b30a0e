"""The cells of a pyramid, and how ranges of them are counted and listed.

Letters: M objects; L levels; R locations of one image over all levels, level after level and row by
row within a level; P regions; T listed locations. Boxes are (x0, y0, x1, y1) in pixels of the
network's input.

Ranges of cells are known on the CPU, where the objects come from, and so is how many locations they
have: listing these on a GPU never waits for it.
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
        cls,
        strides: Sequence[int] | Tensor,
        sizes: Sequence[Sequence[int]] | Tensor,
        device: torch.device,
    ) -> Grid:
        """Describe levels of the given strides (L,) and sizes (L, 2), height and width."""
        heights, widths = torch.as_tensor(sizes).unbind(dim=1)
        counts = heights * widths
        table = torch.stack([torch.as_tensor(strides), widths, heights, counts.cumsum(0) - counts])
        return cls(*to_device(table, device))

    @property
    def num_locations(self) -> int:
        """R; to be asked of a grid on the CPU."""
        return int(self.starts[-1] + self.widths[-1] * self.heights[-1])


class Cells(NamedTuple):
    """Cells of a pyramid."""

    level: Tensor  # in 0..L-1
    x: Tensor
    y: Tensor

    @classmethod
    def at(cls, locations: Tensor, grid: Grid) -> Cells:
        """Find the cells of locations in 0..R-1, of any shape, on the grid's device."""
        level = torch.bucketize(locations, grid.starts, right=True) - 1
        cell = locations - grid.starts[level]
        width = grid.widths[level]
        return cls(level, cell % width, cell // width)

    def place(self, shapes: Tensor, stride: Tensor | int, offset: float) -> Tensor:
        """Move boxes (..., 4), given about the origin, to the points of the cells.

        Args:
            stride: of the cells, or the one that all of them have, in pixels.
            offset: where in its cell the point lies, in cells.
        """
        x, y = ((index.double() + offset) * stride for index in (self.x, self.y))
        return shapes + torch.stack([x, y, x, y], dim=-1).to(shapes.dtype)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy without waiting for the device."""
    return tensor.to(device, non_blocking=True)


def count_locations(cells: Tensor) -> Tensor:
    """Count the cells of regions: (..., 4) ranges -> (...)."""
    return (cells[..., 2:] - cells[..., :2]).prod(dim=-1)


def list_locations(
    cells: Tensor, levels: Tensor, grid: Grid, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """List the locations of regions.

    Args:
        cells: (P, 4), half-open ranges x0 <= x < x1, y0 <= y < y1 in cells.
        levels: (P,) the level of each region.
        grid: like cells and levels, on the CPU.
        device: where to list them, the CPU by default.

    Returns:
        (T,) the region, in 0..P-1, and (T,) the location, in 0..R-1, of every cell of every region.
    """
    x0, y0, x1, _ = cells.unbind(dim=1)
    counts = count_locations(cells)
    row = grid.widths[levels]
    first = grid.starts[levels] + y0 * row + x0
    table = torch.stack([counts, counts.cumsum(0) - counts, first, x1 - x0, row])
    counts, start, first, width, row = to_device(table, device or cells.device)
    region = torch.repeat_interleave(counts, output_size=int(table[0].sum()))
    cell = torch.arange(len(region), device=region.device) - start[region]
    width = width[region]
    return region, first[region] + cell // width * row[region] + cell % width


def split_by_total(counts: Tensor, limit: int) -> list[slice]:
    """Part things that have counts (M,) so that a part has ``limit`` or little more in all."""
    part = (counts.cumsum(dim=0) - 1).clamp(min=0) // limit
    _, sizes = torch.unique_consecutive(part, return_counts=True)
    ends = sizes.cumsum(dim=0)
    return [slice(*ends) for ends in torch.stack([ends - sizes, ends], dim=1).tolist()]
