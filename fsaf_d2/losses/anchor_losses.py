"""RetinaNet's two losses of anchors, computed on the head's outputs as they lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .logits_memory import dense, memory_index
from .sparse_focal_loss import sparse_focal_loss_sum


class AnchorPlaces(NamedTuple):
    """Some anchors of one level, by where the head answers for them."""

    image: Tensor  # (Q,)
    anchor: Tensor  # (Q,) in 0..A-1, the kind of anchor in its cell
    y: Tensor  # (Q,)
    x: Tensor  # (Q,)


def anchor_class_places(
    logits: Sequence[Tensor],
    positives: Sequence[AnchorPlaces],
    classes: Tensor,
    ignored: Sequence[AnchorPlaces],
    *,
    num_classes: int,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Say where in memory the logits of objects and of ignored anchors are.

    Args:
        logits, positives, classes, ignored: see :func:`anchor_focal_loss_sums`.

    Returns:
        of each level the logits, dense in memory, (P,) the places of the positives' own classes and
        (I * K,) those of all classes of the ignored.
    """
    found = []
    labels_of_levels = classes.split([len(places.image) for places in positives])
    for level, places, labels, without in zip(
        logits, positives, labels_of_levels, ignored, strict=True
    ):
        level = dense(level)
        found.append((level, *_class_places(level, places, labels, without, num_classes)))
    return found


def anchor_focal_loss_sums(
    logits: Sequence[Tensor],
    positives: Sequence[AnchorPlaces],
    classes: Tensor,
    ignored: Sequence[AnchorPlaces],
    *,
    num_classes: int,
    alpha: float,
    gamma: float,
) -> list[Tensor]:
    """Sum the focal loss over all anchors of each level but the ignored (arXiv 1708.02002, Eq. 5).

    Args:
        logits: (N, A * K, H, W) of each level.
        positives: of each level, the anchors of objects.
        classes: (P,) in 0..K-1, of the positives of all levels.
        ignored: of each level, the anchors without loss or gradient.

    Returns:
        a scalar for each level.
    """
    found = anchor_class_places(logits, positives, classes, ignored, num_classes=num_classes)
    return [sparse_focal_loss_sum(*level, alpha=alpha, gamma=gamma) for level in found]


def _class_places(
    level: Tensor, places: AnchorPlaces, labels: Tensor, without: AnchorPlaces, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Where in a level's memory the logits of objects' classes, and of the ignored, are."""
    channel = places.anchor * num_classes + labels
    each_class = torch.arange(num_classes, device=level.device)
    ignored_channels = without.anchor[:, None] * num_classes + each_class
    image, y, x = (index[:, None] for index in (without.image, without.y, without.x))
    return (
        memory_index(level, places.image, channel, places.y, places.x),
        memory_index(level, image, ignored_channels, y, x).flatten(),
    )


def gather_anchor_deltas(
    deltas: Sequence[Tensor], places: Sequence[AnchorPlaces], size: int = 4
) -> Tensor:
    """Gather what is said of some anchors, such as box deltas, of which each has 4.

    Args:
        deltas: (N, A * size, H, W) of each level.
        places: of each level.
        size: of numbers for an anchor.

    Returns:
        (Q, size).
    """
    parts = []
    for level, (image, anchor, y, x) in zip(deltas, places, strict=True):
        by_anchor = level.unflatten(1, (-1, size))
        parts.append(by_anchor[image, anchor, :, y, x])
    return torch.cat(parts)
