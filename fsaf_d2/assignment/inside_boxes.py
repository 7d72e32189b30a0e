"""The bag of an object: all locations inside its box, on every level (arXiv 2007.03496, Sec. 3).

Letters: M objects, those of all images together; B bags, of the objects that have a location; L
levels; R locations of one image over all levels; T pairs of a bag and a location of it. Boxes are
(x0, y0, x1, y1) in pixels of the network's input.

Which locations a bag has follows from the object alone and is computed on the CPU. Pairs are listed
where the predictions are, some bags at a time: large objects have thousands of locations each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .grid import Cells, Grid, count_locations, list_locations, split_by_total, to_device
from .objects import Objects

# Pairs listed at a time. On a CPU what is computed of them stays in its cache.
MAX_PAIRS = {"cpu": 1 << 15, "other": 1 << 20}
# Up to so many pairs in all are listed once and kept.
MAX_KEPT = 1 << 20


class BagPairs(NamedTuple):
    """Some bags, and every pair of one of them and a location of it, bag after bag."""

    bags: slice  # of the B
    bag: Tensor  # (T,) counted from the first of these bags
    region: Tensor  # (T,) bag * L + level, counted from the first of all bags
    location: Tensor  # (T,) in 0..R-1

    @property
    def num_bags(self) -> int:
        """How many bags these are."""
        return self.bags.stop - self.bags.start


class Bags(NamedTuple):
    """The bags of a batch, on the CPU; an object without a location inside its box has none."""

    objects: Objects  # (B,) the bags' own
    cells: Tensor  # (B, L, 4) half-open ranges x0 <= x < x1, y0 <= y < y1 in cells

    def pairs(self, grid: Grid, device: torch.device) -> Callable[[], Iterable[BagPairs]]:
        """What lists all pairs on a device, which is not waited for; each time the same.

        Args:
            grid: of the levels, on the CPU.
        """
        list_pairs = functools.partial(self._pairs, grid, device)
        if int(count_locations(self.cells).sum()) > MAX_KEPT:
            return list_pairs
        kept = list(list_pairs())
        return lambda: kept

    def _pairs(self, grid: Grid, device: torch.device) -> Iterator[BagPairs]:
        num_levels = self.cells.shape[1]
        limit = MAX_PAIRS["cpu" if device.type == "cpu" else "other"]
        for part in split_by_total(count_locations(self.cells).sum(dim=1), limit):
            cells = self.cells[part].flatten(0, 1)
            level = torch.arange(num_levels).repeat(part.stop - part.start)
            region, location = list_locations(cells, level, grid, device)
            bag = torch.div(region, num_levels, rounding_mode="floor")
            yield BagPairs(part, bag, region + part.start * num_levels, location)

    def centers(self, grid: Grid) -> Tensor:
        """The centres of the boxes in strides of each level, (2, B, L)."""
        boxes = self.objects.boxes.double().T
        return (boxes[:2, :, None] + boxes[2:, :, None]) / 2 / grid.strides


def fill_bags(objects: Objects, grid: Grid, *, point_offset: float = 0.5) -> Bags:
    """Give every object the locations that lie strictly inside its box, on all levels.

    Args:
        objects, grid: on the CPU.
        point_offset: where in its cell a location lies, in cells.
    """
    cells = inside_cells(objects.boxes, grid, point_offset=point_offset)
    there = count_locations(cells).sum(dim=1) > 0
    return Bags(Objects(*(field[there] for field in objects)), cells[there])


def inside_cells(boxes: Tensor, grid: Grid, *, point_offset: float = 0.5) -> Tensor:
    """Find the cells whose points lie strictly inside boxes.

    Args:
        boxes: (M, 4); one that is not finite holds nothing.
        point_offset: where in its cell the point lies, in cells.

    Returns:
        (M, L, 4) int64, the half-open ranges x0 <= x < x1, y0 <= y < y1 in cells.
    """
    # float64: what is strictly inside must not depend on how a quotient is rounded.
    sides = boxes.double()[:, None] / grid.strides[:, None] - point_offset
    limits = torch.stack([grid.widths, grid.heights], dim=1)
    sides = sides.nan_to_num().clamp(-1.0, limits.max().item() + 1.0)
    first = (sides[..., :2].floor().long() + 1).clamp(min=0).minimum(limits)
    last = sides[..., 2:].ceil().long().clamp(min=0).minimum(limits).maximum(first)
    cells = torch.cat([first, last], dim=2)
    finite = torch.isfinite(boxes).all(dim=1)
    return cells * finite[:, None, None]


def points_of(grid: Grid, device: torch.device, point_offset: float) -> Tensor:
    """Where the locations lie: (2, R), in strides of their level."""
    device_grid = Grid(*to_device(torch.stack(grid), device))
    cells = Cells.at(torch.arange(grid.num_locations, device=device), device_grid)
    return torch.stack([cells.x, cells.y]) + point_offset
