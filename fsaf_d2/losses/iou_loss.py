"""IoU losses of boxes, given by their distances to a point or by their corners."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_IOU = 1e-7
_TINY = torch.finfo(torch.float32).tiny


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
    iou = point_iou(pred_distances, target_distances.clamp(min=0))
    return -torch.log(iou.clamp(min=MIN_IOU))


def point_iou(pred_distances: Tensor, target_distances: Tensor) -> Tensor:
    """IoU of two boxes around the same point, in float32: (..., 4), (..., 4) -> (...).

    Args:
        pred_distances, target_distances: distances >= 0 from the point to the left, top, right and
            bottom side, in one unit.
    """
    intersection, union = _overlap(pred_distances.float(), target_distances.float())
    # A union of 0 means that both boxes are the point itself.
    return intersection / union.clamp(min=_TINY)


def point_giou_loss(pred_distances: Tensor, target_distances: Tensor) -> Tensor:
    """1 - GIoU of two boxes around the same point (arXiv 1902.09630), in float32.

    Args:
        pred_distances, target_distances: (..., 4), distances >= 0 from the point to the left, top,
            right and bottom side, in one unit.

    Returns:
        (...) the loss of each box, between 0 and 2.
    """
    pred_distances, target_distances = pred_distances.float(), target_distances.float()
    intersection, union = _overlap(pred_distances, target_distances)
    hull = _area(torch.maximum(pred_distances, target_distances))
    return _giou_loss(intersection, union, hull)


def box_giou_loss(pred_boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """1 - GIoU of pairs of boxes (arXiv 1902.09630), in float32: (..., 4), (..., 4) -> (...).

    Unlike fvcore's, it never waits for a GPU.

    Args:
        pred_boxes, target_boxes: (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1.
    """
    pred_first, pred_last = pred_boxes.float().split(2, dim=-1)
    target_first, target_last = target_boxes.float().split(2, dim=-1)
    sides = torch.minimum(pred_last, target_last) - torch.maximum(pred_first, target_first)
    intersection = sides.clamp(min=0).prod(dim=-1)
    areas = (pred_last - pred_first).prod(dim=-1) + (target_last - target_first).prod(dim=-1)
    hull = torch.maximum(pred_last, target_last) - torch.minimum(pred_first, target_first)
    return _giou_loss(intersection, areas - intersection, hull.prod(dim=-1))


def _giou_loss(intersection: Tensor, union: Tensor, hull: Tensor) -> Tensor:
    return 1 - intersection / union.clamp(min=_TINY) + (hull - union) / hull.clamp(min=_TINY)


def _overlap(pred_distances: Tensor, target_distances: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of boxes around the same point."""
    intersection = _area(torch.minimum(pred_distances, target_distances))
    return intersection, _area(pred_distances) + _area(target_distances) - intersection


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
