"""How near the centre of its object a location lies (FCOS, arXiv 1904.01355, Sec. 3.3)."""

from __future__ import annotations

from torch import Tensor


def centerness(distances: Tensor) -> Tensor:
    """How near the centre a location lies, 0 to 1 (arXiv 1904.01355, Eq. 3): (..., 4) -> (...).

    Args:
        distances: > 0, to the left, top, right and bottom side, in any unit.
    """
    pairs = distances.unflatten(-1, (2, 2))
    return (pairs.amin(dim=-2) / pairs.amax(dim=-2)).prod(dim=-1).sqrt()
