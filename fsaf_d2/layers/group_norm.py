"""Group norm for layers of any width."""

from __future__ import annotations

from torch import nn


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with detectron2's 32 groups; of fewer than 64 channels, groups of 4 or more.

    A group of one channel would be an instance norm, which a map of a single cell has none of.
    """
    if channels >= 64 and channels % 32 == 0:
        return nn.GroupNorm(32, channels)
    groups = (g for g in range(min(channels // 4, 32), 0, -1) if channels % g == 0)
    return nn.GroupNorm(next(groups, 1), channels)
