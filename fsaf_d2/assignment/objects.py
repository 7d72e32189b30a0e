"""The objects of a batch.

Letters: N images; M objects, those of all images together; K classes. Boxes are (x0, y0, x1, y1)
in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor


class Objects(NamedTuple):
    """The objects of a batch, packed, on the CPU."""

    boxes: Tensor  # (M, 4)
    classes: Tensor  # (M,) in 0..K-1
    image_index: Tensor  # (M,) in 0..N-1

    @classmethod
    def of(cls, ground_truths: Sequence[Instances]) -> Objects:
        """Pack the ``gt_boxes`` and ``gt_classes`` of each image."""
        boxes = torch.cat([x.gt_boxes.tensor.cpu() for x in ground_truths])
        classes = torch.cat([x.gt_classes.cpu() for x in ground_truths])
        counts = torch.tensor([len(x) for x in ground_truths])
        return cls(boxes, classes, torch.repeat_interleave(counts))


def smallest_first(objects: Objects) -> Tensor:
    """Sort objects by area; those of equal area by class and corners, never by their place."""
    x0, y0, x1, y1 = objects.boxes.unbind(dim=1)
    order = torch.arange(len(objects.boxes), device=objects.boxes.device)
    for key in (x0, y0, x1, y1, objects.classes, (x1 - x0) * (y1 - y0)):
        order = order[torch.argsort(key[order], stable=True)]
    return order
