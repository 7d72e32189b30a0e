"""The two losses of a branch that predicts a class and four distances at every location."""

from __future__ import annotations

from fvcore.nn import sigmoid_focal_loss
from torch import Tensor
from torch.nn import functional as F

from .iou_loss import point_iou_loss


def point_loss_sums(
    logits: Tensor,
    deltas: Tensor,
    labels: Tensor,
    target_deltas: Tensor,
    ignored: Tensor,
    *,
    focal_loss_alpha: float,
    focal_loss_gamma: float,
) -> tuple[Tensor, Tensor]:
    """Sum the focal loss over all not ignored and the IoU loss over positives (FSAF Sec. 3.2).

    Args:
        logits: (N, R, K) float32.
        deltas: (N, R, 4) float32, distances >= 0.
        labels: (N, R) in 0..K, K means background.
        target_deltas: (P, 4), of the P positive locations in their order in ``labels``.
        ignored: (N, R, K) bool; such a channel has neither loss nor gradient.

    Returns:
        the two sums, scalars.
    """
    num_classes = logits.shape[-1]
    one_hot = F.one_hot(labels, num_classes + 1)[..., :-1].to(logits.dtype)
    focal_loss = sigmoid_focal_loss(logits, one_hot, alpha=focal_loss_alpha, gamma=focal_loss_gamma)
    iou_loss = point_iou_loss(deltas[labels != num_classes], target_deltas)
    return focal_loss.masked_fill(ignored, 0).sum(), iou_loss.sum()
