"""COCO's sizes of objects: counted in one way by checks and by evaluation."""

from __future__ import annotations

import numpy as np

# Pixels; a box with a side of so many or less has no area.
LEAST_SIDE = 0.01
# In square pixels of the image as it is; an area on a limit belongs to both sides.
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e5**2)}


def size_masks(areas: np.ndarray) -> dict[str, np.ndarray]:
    """For each of :data:`SIZES` which of the areas (M,) are of it, as (M,) bool."""
    return {size: (areas >= low) & (areas <= high) for size, (low, high) in SIZES.items()}


def count_by_size(areas: np.ndarray) -> dict[str, int]:
    """How many areas (M,) are of each of :data:`SIZES`; on a limit, one counts twice."""
    return {size: int(mask.sum()) for size, mask in size_masks(areas).items()}
