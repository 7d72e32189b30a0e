"""IoU losses of boxes, most of them given by their distances to a point."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_IOU = 1e-7


def point_iou_loss(pred_distances: Tensor, target_distances: Tensor) -> Tensor:
    """-ln(IoU) of two boxes around the same point (UnitBox, arXiv 1608.01471).

    The loss does not depend on the unit. It is computed in float32, and IoU is at least 1e-7.

    Args:
        pred_distances: (..., 4), distances >= 0 from the point to the left, top, right and bottom
            side of the predicted box.
        target_distances: (..., 4), the same for the object's box, in the same unit. A negative
            distance (the point lies outside the box on that side) counts as 0: the target is then
            the least box that holds both the object and the point, which a branch that predicts
            distances >= 0 can reach.

    Returns:
        (...) the loss of each box, between 0 and -ln(1e-7) = 16.1.
    """
    pred_distances = pred_distances.float()
    target_distances = target_distances.float().clamp(min=0)

    overlap = torch.minimum(pred_distances, target_distances)
    intersection = _area(overlap)
    union = _area(pred_distances) + _area(target_distances) - intersection
    # A union of 0 means that both boxes are the point itself.
    iou = intersection / union.clamp(min=torch.finfo(torch.float32).tiny)
    return -torch.log(iou.clamp(min=MIN_IOU))


def point_giou_loss(pred_distances: Tensor, target_distances: Tensor) -> Tensor:
    """1 - GIoU of two boxes around the same point (arXiv 1902.09630), in float32.

    Args:
        pred_distances, target_distances: (..., 4), distances >= 0 from the point to the left, top,
            right and bottom side, in one unit.

    Returns:
        (...) the loss of each box, between 0 and 2.
    """
    pred_distances, target_distances = pred_distances.float(), target_distances.float()
    tiny = torch.finfo(torch.float32).tiny
    intersection = _area(torch.minimum(pred_distances, target_distances))
    union = _area(pred_distances) + _area(target_distances) - intersection
    hull = _area(torch.maximum(pred_distances, target_distances))
    iou = intersection / union.clamp(min=tiny)
    return 1 - iou + (hull - union) / hull.clamp(min=tiny)


def paired_giou(boxes: Tensor, targets: Tensor) -> Tensor:
    """GIoU (arXiv 1902.09630) of pairs of boxes, in their own precision.

    Args:
        boxes, targets: (4, T), the rows x0, y0, x1 and y1; no side is below 0.

    Returns:
        (T,) between -1 and 1.
    """
    low, high = boxes.split(2)
    target_low, target_high = targets.split(2)
    inner = torch.minimum(high, target_high) - torch.maximum(low, target_low)
    intersection = _product(inner.clamp(min=0))
    union = _product(high - low) + _product(target_high - target_low) - intersection
    hull = _product(torch.maximum(high, target_high) - torch.minimum(low, target_low))
    tiny = torch.finfo(boxes.dtype).tiny
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def _product(sizes: Tensor) -> Tensor:
    return sizes[0] * sizes[1]


def _area(distances: Tensor) -> Tensor:
    left, top, right, bottom = distances.unbind(dim=-1)
    return (left + right) * (top + bottom)
