"""The boxes that predictions refer to, known on the CPU, and where a head answers for them.

Letters: L levels; R locations of one image over all levels; A boxes per location; S = L * A kinds
of boxes; Q listed ones. Boxes are (x0, y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor

from ..losses import AnchorPlaces
from .grid import Cells, Grid, to_device


class AnchorKinds(NamedTuple):
    """The anchors of a pyramid: kind s stands once in every cell of its level."""

    cell_anchors: Tensor  # (S, 4), about the point of the cell, level after level
    num_per_location: int  # A
    offset: float  # where in its cell the point lies, in cells

    @classmethod
    def of_generator(cls, generator: DefaultAnchorGenerator) -> AnchorKinds:
        """Describe a generator's anchors, which are as many on every level."""
        cell_anchors = [boxes.cpu() for boxes in generator.cell_anchors]
        return cls(torch.cat(cell_anchors), generator.num_anchors[0], generator.offset)

    @classmethod
    def of_points(cls, strides: Sequence[int], side: float, offset: float) -> AnchorKinds:
        """Describe one square box about every location, ``side`` strides of its level wide."""
        half = torch.tensor([side * stride / 2 for stride in strides])[:, None]
        return cls(torch.cat([-half, -half, half, half], dim=1), 1, offset)

    def to(self, device: torch.device) -> AnchorKinds:
        """The same on a device, which is not waited for."""
        return self._replace(cell_anchors=to_device(self.cell_anchors, device))

    def boxes(self, anchor_index: Tensor, grid: Grid) -> Tensor:
        """The boxes of anchors in 0..R*A-1, of any shape: (...) -> (..., 4)."""
        cells = Cells.at(anchor_index // self.num_per_location, grid)
        kind = cells.level * self.num_per_location + anchor_index % self.num_per_location
        return cells.place(self.cell_anchors[kind], grid.strides[cells.level], self.offset)

    def boxes_of_level(self, index: Tensor, level: int, *, stride: int, width: int) -> Tensor:
        """The boxes of a level's anchors in 0..H*W*A-1, of any shape: (...) -> (..., 4).

        Args:
            stride: of the level, in pixels.
            width: of the level, in cells.
        """
        location, kind = index // self.num_per_location, index % self.num_per_location
        shapes = self.cell_anchors[level * self.num_per_location + kind]
        cells = Cells(level, location % width, location // width)
        return cells.place(shapes, stride, self.offset)


def locate(
    image_index: Tensor,
    anchor_index: Tensor,
    num_per_location: int,
    grid: Grid,
    device: torch.device,
) -> list[AnchorPlaces]:
    """Say where a head answers for anchors, level by level, in the order of the anchors.

    Args:
        image_index: (Q,).
        anchor_index: (Q,) in 0..R*A-1, rising with the level; on the CPU, as is all else.
        num_per_location: A.
        device: of the result.

    Raises:
        ValueError: the anchors do not come level by level.
    """
    cells = Cells.at(anchor_index // num_per_location, grid)
    if (cells.level.diff() < 0).any():
        raise ValueError("Anchors must come level by level: sort them by their index.")
    kind = anchor_index % num_per_location
    places = torch.stack([image_index, kind, cells.y, cells.x])
    counts = torch.bincount(cells.level, minlength=len(grid.strides)).tolist()
    return [AnchorPlaces(*part) for part in to_device(places, device).split(counts, dim=1)]
