"""Anchors that do not deserve their labels count less (arXiv 1912.05086, Sec. 3).

How good a positive anchor is, the network says itself: by the IoU of the box that it predicts there
and by the score that it gives the object's class. Both make the anchor's label soft and weigh its
losses. Nothing here waits for a GPU.

Letters: N images; P positives of the batch; K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .anchor_losses import AnchorPlaces, anchor_class_places
from .logits_memory import in_memory_order, on_cpu, wide
from .sparse_focal_loss import (
    CHUNK,
    background_loss,
    background_slope,
    label_weight,
)

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

    With p = sigmoid(logit), the loss of a label y in 0..1 is
    -y alpha (1 - p)^gamma ln p - (1 - y) (1 - alpha) p^gamma ln(1 - p). An anchor's weight is that
    of its losses of all classes; the background's is 1. Every logit is read once forward and once
    backward; nothing of their size is kept in between.

    Args:
        logits: (N, A * K, H, W) of each level.
        positives: of each level, the anchors of objects, each once.
        classes: (P,) in 0..K-1, of the positives of all levels.
        soft_labels, weights: (P,), without gradient.
        alpha, gamma: see :func:`sparse_focal_loss_sum`.

    Returns:
        scalar, see :func:`reweighted_sum`.
    """
    nothing = [AnchorPlaces(*(x[:0] for x in places)) for places in positives]
    levels, own, _ = zip(
        *anchor_class_places(logits, positives, classes, nothing, num_classes=num_classes)
    )
    settings = (num_classes, alpha, gamma)
    return _ReweightedFocalLoss.apply(settings, positives, soft_labels, weights, *levels, *own)


class _ReweightedFocalLoss(torch.autograd.Function):
    """Takes each level's logits, and the places of the logits of its positives' own classes."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        settings: tuple[int, float, float],
        positives: Sequence[AnchorPlaces],
        soft_labels: Tensor,
        weights: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        num_classes, alpha, gamma = settings
        of_object, of_background = (label_weight(alpha, label) for label in (1, 0))
        levels, own = _halves(tensors)
        sums = [_background_sums(level, num_classes, gamma) for level in levels]
        everywhere = sum(x.flatten(1).sum(dim=1, dtype=torch.float64) for x in sums)
        background = torch.cat([x[places] for x, places in zip(sums, positives)]).double()
        scores = torch.cat([in_memory_order(x)[places] for x, places in zip(levels, own)]).double()
        softened = of_object * background_loss(-scores, gamma)
        softened -= of_background * background_loss(scores, gamma)
        losses = of_background * background + soft_labels * softened
        image_index = torch.cat([places.image for places in positives])
        rest = everywhere.index_add(0, image_index, -background) * of_background
        weighted, ratio = _weighted_and_ratio(losses, weights.double(), image_index, rest)
        ctx.save_for_backward(soft_labels, weights, ratio, *tensors)
        ctx.settings, ctx.positives = settings, positives
        return (weighted * ratio).sum().to(wide(levels[0]))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor):
        num_classes, alpha, gamma = ctx.settings
        of_object, of_background = (label_weight(alpha, label) for label in (1, 0))
        soft_labels, weights, ratio, *tensors = ctx.saved_tensors
        levels, own = _halves(tensors)
        scale = (ratio * grad_output).to(wide(levels[0]))
        counts = [len(places) for places in own]
        parts = (x.split(counts) for x in (soft_labels, weights))
        gradients = []
        for level, at, places, y, weight in zip(levels, ctx.positives, own, *parts):
            factor = weight * scale[at.image]
            factors = _by_anchor(level, num_classes).copy_(scale[:, None, None, None])
            factors[at] = factor.to(factors.dtype)
            gradient = _background_slopes(level, factors * of_background, num_classes, gamma)
            x = in_memory_order(level)[places].to(wide(level))
            slope = (1 - y) * of_background * background_slope(x, gamma)
            slope -= y * of_object * background_slope(-x, gamma)
            in_memory_order(gradient)[places] = (slope * factor).to(gradient.dtype)
            gradients.append(gradient)
        return None, None, None, None, *gradients, *([None] * len(own))


def _background_sums(level: Tensor, num_classes: int, gamma: float) -> Tensor:
    """Sum each anchor's background losses, unweighted: (N, A * K, H, W) -> (N, A, H, W)."""
    sums = _by_anchor(level, num_classes).zero_()
    for chunk, total in _chunks(level, sums, num_classes):
        total += background_loss(chunk.to(total.dtype), gamma).sum(dim=1)
    return sums


def _background_slopes(level: Tensor, factors: Tensor, num_classes: int, gamma: float) -> Tensor:
    """The gradient of the background losses, times each anchor's factor, (N, A, H, W)."""
    # It keeps the logits' memory order, so that the same places hold.
    gradient = torch.empty_like(level)
    pairs = zip(_chunks(level, factors, num_classes), _chunks(gradient, factors, num_classes))
    for (chunk, factor), (slope, _) in pairs:
        found = background_slope(chunk.to(factor.dtype), gamma)
        torch.mul(found, factor[:, None], out=slope)
    return gradient


def _by_anchor(level: Tensor, num_classes: int) -> Tensor:
    """Make room for a number of each anchor, in the order in which the logits lie in memory."""
    num_images, channels, height, width = level.shape
    kind = torch.contiguous_format if level.is_contiguous() else torch.channels_last
    shape = num_images, channels // num_classes, height, width
    return level.new_empty(shape, dtype=wide(level)).to(memory_format=kind)


def _chunks(level: Tensor, by_anchor: Tensor, num_classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of the logits (G, k, R) and of what is said of their anchors (G, R).

    Anchors of G groups lie side by side in memory, those of one kind or one alone.
    """
    together = level.shape[2] * level.shape[3] if level.is_contiguous() else 1
    logits = in_memory_order(level).view(-1, num_classes, together)
    anchors = in_memory_order(by_anchor).view(-1, together)
    size = CHUNK if on_cpu(level) else level.numel()
    groups = max(size // (num_classes * together), 1)
    for group, part in zip(logits.split(groups), anchors.split(groups)):
        for chunk in group.split(max(size // (len(group) * together), 1), dim=1):
            yield chunk, part


def _halves(tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    middle = len(tensors) // 2
    return tensors[:middle], tensors[middle:]


def reweighted_sum(losses: Tensor, weights: Tensor, image_index: Tensor, rest: Tensor) -> Tensor:
    """Sum weighted losses and the rest of each image, times what gives their sum without weights.

    So weights change the gradients alone, and the rest's with the others'.

    Args:
        losses, weights, image_index: (P,).
        rest: (N,).

    Returns:
        scalar, the sum over all images.
    """
    weighted, ratio = _weighted_and_ratio(losses, weights, image_index, rest)
    return (weighted * ratio).sum()


def _weighted_and_ratio(
    losses: Tensor, weights: Tensor, image_index: Tensor, rest: Tensor
) -> tuple[Tensor, Tensor]:
    """Each image's (N,) weighted sum, and what it is to be times, without gradient."""
    # Deviates from the paper: its code has one factor for the images of a GPU together. With one
    # for each image, several processes learn what one does with all images.
    plain = rest.index_add(0, image_index, losses)
    weighted = rest.index_add(0, image_index, losses * weights)
    return weighted, torch.where(weighted != 0, plain / weighted, 1).detach()
