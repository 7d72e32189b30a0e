"""The objects of a batch.

Letters: N images; M objects, those of all images together; K classes. Boxes are (x0, y0, x1, y1)
in pixels of the network's input.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Objects(NamedTuple):
    """The objects of a batch, packed, on the CPU."""

    boxes: Tensor  # (M, 4)
    classes: Tensor  # (M,) in 0..K-1
    image_index: Tensor  # (M,) in 0..N-1


def smallest_first(objects: Objects) -> Tensor:
    """Sort objects by area; those of equal area by class and corners, never by their place."""
    x0, y0, x1, y1 = objects.boxes.unbind(dim=1)
    order = torch.arange(len(objects.boxes), device=objects.boxes.device)
    for key in (x0, y0, x1, y1, objects.classes, (x1 - x0) * (y1 - y0)):
        order = order[torch.argsort(key[order], stable=True)]
    return order
