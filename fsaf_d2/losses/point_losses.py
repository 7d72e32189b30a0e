"""The two losses of a branch that predicts a class and four distances at every location."""

from __future__ import annotations

import torch
from torch import Tensor

from .iou_loss import point_iou_loss
from .sparse_focal_loss import plane_focal_loss_sum


def point_loss_sums(
    logits: Tensor,
    deltas: Tensor,
    planes: Tensor,
    labels: Tensor,
    positive: Tensor,
    target_deltas: Tensor,
    *,
    background_losses: Tensor,
    focal_loss_alpha: float,
    focal_loss_gamma: float,
) -> tuple[Tensor, Tensor]:
    """Sum the focal loss over all not ignored and the IoU loss over positives.

    From arXiv 1903.00621, Sec. 3.2.

    Args:
        logits: (N, K, R) float32, contiguous.
        deltas: (N, R, 4) float32, distances >= 0.
        planes, labels, background_losses: see :func:`plane_focal_loss_sum`.
        positive: (N, R) bool, the locations of objects.
        target_deltas: (N, R, 4), of any finite value where a location is not positive.

    Returns:
        the two sums, scalars.
    """
    focal_loss = plane_focal_loss_sum(
        logits,
        planes,
        labels,
        background_losses=background_losses,
        alpha=focal_loss_alpha,
        gamma=focal_loss_gamma,
    )
    # All locations are computed, as picking the positive ones would mean to wait for a GPU. What
    # the others predict is put out of the way first: it need not be finite.
    pred_deltas = torch.where(positive[..., None], deltas, 0)
    iou_loss = torch.where(positive, point_iou_loss(pred_deltas, target_deltas), 0)
    return focal_loss, iou_loss.sum()
