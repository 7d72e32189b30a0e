"""The two losses of a branch that predicts a class and four distances at every location."""

from __future__ import annotations

from torch import Tensor

from .iou_loss import point_iou_loss
from .sparse_focal_loss import dense, memory_index, sparse_focal_loss_sum


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
        ignored: (N, R, K) bool; such a channel has neither loss nor gradient, and is not positive.

    Returns:
        the two sums, scalars.
    """
    logits = dense(logits)
    num_classes = logits.shape[-1]
    positive = (labels != num_classes).nonzero(as_tuple=True)
    focal_loss = sparse_focal_loss_sum(
        logits,
        memory_index(logits, *positive, labels[positive]),
        memory_index(logits, *ignored.nonzero(as_tuple=True)),
        alpha=focal_loss_alpha,
        gamma=focal_loss_gamma,
    )
    return focal_loss, point_iou_loss(deltas[positive], target_deltas).sum()
