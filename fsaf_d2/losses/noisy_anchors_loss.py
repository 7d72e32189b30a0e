"""Anchors that do not deserve their labels count less (arXiv 1912.05086, Sec. 3).

How good a positive anchor is, the network says itself: by the IoU of the box that it predicts there
and by the score that it gives the object's class. Both make the anchor's label soft and weigh its
losses. Nothing here waits for a GPU.

Letters: N images; P positives of the batch; K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .anchor_losses import AnchorPlaces, gather_anchor_deltas
from .sparse_focal_loss import dense, sparse_focal_loss_sum

# The least of 1 - IoU and of 1 - score, by which weights are divided.
LEAST_ERROR = 1e-6


@torch.no_grad()
def soft_labels_and_weights(
    ious: Tensor, scores: Tensor, image_index: Tensor, *, num_images: int, mix: float
) -> tuple[Tensor, Tensor]:
    """Turn the quality of positives into soft labels and weights, image by image.

    Both mix what IoU and score say, each divided by its mean over the positives of the image. Soft
    labels mix IoU and score, and are then scaled to reach from the image's mean IoU to 1; where all
    are equal, as that of an only positive, they are 1, as that of the best always is. Weights mix
    1 / (1 - IoU) and 1 / (1 - score), with 1 - IoU and 1 - score at least 1e-6; their mean is 1.

    Args:
        ious: (P,) of the boxes that positives predict with those of their objects.
        scores: (P,) that positives give their objects' classes.
        image_index: (P,) in 0..N-1.
        num_images: N.
        mix: share of what the IoU says, 0 to 1.

    Returns:
        (P,) soft labels and (P,) weights, without gradient.
    """
    images = _Images(image_index, num_images)
    quality = images.mixed(ious, scores, mix)
    worst, best = images.extreme(quality, "amin"), images.extreme(quality, "amax")
    share = torch.where(best > worst, (quality - worst) / (best - worst), 1)
    lowest = images.mean(ious)
    soft_labels = lowest + share * (1 - lowest)
    errors = ((1 - x).clamp(min=LEAST_ERROR) for x in (ious, scores))
    return soft_labels, images.mixed(*(1 / error for error in errors), mix)


class _Images:
    """Statistics over the positives (P,) of each image, given to each of them."""

    def __init__(self, image_index: Tensor, num_images: int) -> None:
        self.image_index, self.num_images = image_index, num_images

    def mean(self, values: Tensor) -> Tensor:
        table = torch.stack([values, torch.ones_like(values)])
        table = table.new_zeros(2, self.num_images).index_add(1, self.image_index, table)
        total, count = table[:, self.image_index]
        return total / count

    def extreme(self, values: Tensor, kind: str) -> Tensor:
        """The least or the greatest, by ``amin`` or ``amax``."""
        found = values.new_zeros(self.num_images)
        found = found.scatter_reduce(0, self.image_index, values, kind, include_self=False)
        return found[self.image_index]

    def mixed(self, by_iou: Tensor, by_score: Tensor, mix: float) -> Tensor:
        # Where all values are 0, so is their share of the mean.
        tiny = torch.finfo(by_iou.dtype).tiny
        by_iou, by_score = (x / self.mean(x).clamp(min=tiny) for x in (by_iou, by_score))
        return mix * by_iou + (1 - mix) * by_score


def soft_focal_loss(logits: Tensor, targets: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """-y alpha (1 - p)^gamma ln p - (1 - y) (1 - alpha) p^gamma ln(1 - p) with p = sigmoid(logit).

    Args:
        logits: any shape.
        targets: the same shape, y in 0..1.
        alpha, gamma: see :func:`sparse_focal_loss_sum`.

    Returns:
        the shape of the logits.
    """
    of_objects, of_background = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
    objects = torch.sigmoid(-logits) ** gamma * F.softplus(-logits)
    background = torch.sigmoid(logits) ** gamma * F.softplus(logits)
    return targets * of_objects * objects + (1 - targets) * of_background * background


def noisy_anchors_focal_loss(
    logits: Sequence[Tensor],
    positives: Sequence[AnchorPlaces],
    classes: Tensor,
    soft_labels: Tensor,
    weights: Tensor,
    *,
    num_classes: int,
    alpha: float,
    gamma: float,
) -> Tensor:
    """Sum the focal loss over all anchors, those of objects with soft labels and weights.

    An anchor's weight is that of its losses of all classes; the background's is 1.

    Args:
        logits: (N, A * K, H, W) of each level.
        positives: of each level, the anchors of objects, each once.
        classes: (P,) in 0..K-1, of the positives of all levels.
        soft_labels, weights: (P,), without gradient.
        alpha, gamma: see :func:`sparse_focal_loss_sum`.

    Returns:
        scalar, see :func:`reweighted_sum`.
    """
    settings = {"alpha": alpha, "gamma": gamma}
    nothing = classes[:0]
    everywhere = [
        sum(sparse_focal_loss_sum(dense(x), nothing, nothing, **settings) for x in levels_of_image)
        for levels_of_image in zip(*(level.split(1) for level in logits))
    ]
    chosen = gather_anchor_deltas(logits, positives, num_classes)
    targets = torch.zeros_like(chosen)
    background = soft_focal_loss(chosen, targets, **settings).sum(dim=1)
    targets = targets.scatter(1, classes[:, None], soft_labels[:, None])
    losses = soft_focal_loss(chosen, targets, **settings).sum(dim=1)
    image_index = torch.cat([places.image for places in positives])
    rest = torch.stack(everywhere).index_add(0, image_index, -background)
    return reweighted_sum(losses, weights, image_index, rest)


def reweighted_sum(losses: Tensor, weights: Tensor, image_index: Tensor, rest: Tensor) -> Tensor:
    """Sum weighted losses and the rest of each image, times what gives their sum without weights.

    So weights change the gradients alone, and the rest's with the others'.

    Args:
        losses, weights, image_index: (P,).
        rest: (N,).

    Returns:
        scalar, the sum over all images.
    """
    # Deviates from the paper: its code has one factor for the images of a GPU together. With one
    # for each image, several processes learn what one does with all images.
    plain = rest.index_add(0, image_index, losses)
    weighted = rest.index_add(0, image_index, losses * weights)
    ratio = torch.where(weighted != 0, plain / weighted, 1)
    return (weighted * ratio.detach()).sum()
