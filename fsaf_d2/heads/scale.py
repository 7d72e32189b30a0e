"""A number for each level that its maps are multiplied by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class LevelScales(nn.Module):
    """One learnable factor a level, 1 at first (FCOS, arXiv 1904.01355, Sec. 3.2)."""

    def __init__(self, num_levels: int) -> None:
        """
        Args:
            num_levels: L.
        """
        super().__init__()
        self.scales = nn.ParameterList(torch.ones(()) for _ in range(num_levels))

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Multiply one map of any shape for each level."""
        return [level * scale for level, scale in zip(levels, self.scales, strict=True)]
