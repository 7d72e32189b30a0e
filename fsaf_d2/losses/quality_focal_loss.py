"""Quality focal loss: scores that learn the quality of boxes (GFL, arXiv 2006.04388, Sec. 3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from .anchor_losses import AnchorPlaces
from .logits_memory import dense, memory_index
from .sparse_focal_loss import sparse_focal_loss_sum


def quality_focal_loss(logits: Tensor, quality: Tensor, *, beta: float) -> Tensor:
    """|y - s|^beta (-(1 - y) ln(1 - s) - y ln s) with s = sigmoid(logit), in float32.

    Args:
        logits: any shape.
        quality: the same shape, y in 0..1.
        beta: 0 or at least 1.

    Returns:
        the shape of the logits.
    """
    logits, quality = logits.float(), quality.float()
    entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return (quality - logits.sigmoid()).abs() ** beta * entropy


def quality_focal_loss_sums(
    logits: Sequence[Tensor],
    positives: Sequence[AnchorPlaces],
    classes: Tensor,
    quality: Tensor,
    *,
    num_classes: int,
    beta: float,
) -> list[Tensor]:
    """Sum the quality focal loss over all anchors and classes of each level.

    Every logit is background, y = 0, but those of the positives' classes.

    Args:
        logits: (N, A * K, H, W) of each level.
        positives: of each level, the anchors of objects, each once.
        classes: (P,) in 0..K-1, of the positives of all levels.
        quality: (P,) in 0..1, without gradient.
        beta: see :func:`quality_focal_loss`.

    Returns:
        a scalar for each level.
    """
    counts = [len(places.image) for places in positives]
    sums = []
    for level, places, labels, targets in zip(
        logits, positives, classes.split(counts), quality.split(counts), strict=True
    ):
        level = dense(level)
        channel = places.anchor * num_classes + labels
        place = places.image, channel, places.y, places.x
        # Without alpha, focal loss of background is this loss with y = 0.
        background = sparse_focal_loss_sum(
            level, labels[:0], memory_index(level, *place), alpha=-1, gamma=beta
        )
        objects = quality_focal_loss(level[place], targets, beta=beta)
        sums.append(background + objects.sum())
    return sums
