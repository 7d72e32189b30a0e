"""From the dense predictions of a level to its best candidates.

Letters: N images; A boxes per location; K classes; D numbers that describe a box.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..assignment.anchors import AnchorKinds
from ..assignment.grid import Grid
from .candidates import NONE, Candidates, stable_topk

# From scores of classes and of a location's quality, both 0 to 1, to scores.
Combine = Callable[[Tensor, Tensor], Tensor]


def geometric_mean(scores: Tensor, quality: Tensor) -> Tensor:
    """The square root of score times quality, as FCOS has it (arXiv 2006.09214, Sec. 2.3)."""
    return (scores * quality).sqrt()


def decode_levels(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    kinds: AnchorKinds,
    apply_deltas: Callable[[Tensor, Tensor], Tensor],
    grid: Grid,
    *,
    quality: Sequence[Tensor] | None = None,
    **settings,
) -> list[Candidates]:
    """Decode the best (box, class) pairs of every level.

    Args:
        logits, deltas, quality: of each level, see :func:`decode_level`.
        kinds: of the boxes that deltas refer to, on the CPU.
        grid: of the levels, on the CPU.
        settings: further arguments of :func:`decode_level`.
    """
    kinds = kinds.to(logits[0].device)
    results = []
    for level, stride in enumerate(grid.strides.tolist()):
        width = logits[level].shape[-1]
        found = decode_level(
            logits[level],
            deltas[level],
            functools.partial(kinds.boxes_of_level, level=level, stride=stride, width=width),
            apply_deltas,
            level=level,
            quality=None if quality is None else quality[level],
            **settings,
        )
        results.append(found)
    return results


def decode_level(
    logits: Tensor,
    deltas: Tensor,
    boxes_at: Callable[[Tensor], Tensor],
    apply_deltas: Callable[[Tensor, Tensor], Tensor],
    *,
    num_classes: int,
    score_thresh: float,
    topk_candidates: int,
    level: int,
    quality: Tensor | None = None,
    combine: Combine = torch.mul,
) -> Candidates:
    """Decode the best (box, class) pairs of one level.

    Args:
        logits, deltas: (N, A * K, H, W) and (N, A * D, H, W).
        boxes_at: gives the boxes (..., 4) that deltas refer to, of indices (...) in 0..H*W*A-1.
        apply_deltas: decodes deltas (T, D) on boxes (T, 4).
        score_thresh: only scores above it count.
        topk_candidates: how many pairs are kept at the most.
        level: which one it is, in 0..L-1.
        quality: (N, A, H, W), logits of how well a location describes its object, if there are.
        combine: of scores and quality; rises with both.

    Returns:
        the candidates of each image, best first, the first of equals first, of branch 0.
    """
    num_images, _, height, width = logits.shape
    logits = logits.reshape(num_images, -1, num_classes, height * width)
    num_anchors = logits.shape[1]
    deltas = deltas.reshape(num_images, num_anchors, -1, height * width)
    if quality is not None:
        quality = quality.reshape(num_images, num_anchors, height * width)
    index = best_rows(logits.transpose(1, 2), topk_candidates, quality, combine)

    image = torch.arange(num_images, device=logits.device)[:, None]
    place = image, index % num_anchors, slice(None), index // num_anchors
    scores = logits[place].float().sigmoid()
    if quality is not None:
        scores = combine(scores, quality[:, :, None][place].float().sigmoid())
    scores = scores.flatten(1)
    scores = scores.masked_fill(~(scores > score_thresh), NONE)
    # Deviates from the paper of anchor-free branches: it keeps the best 1000 locations of a level,
    # not (location, class) pairs; RetinaNet's anchors are cut by pairs, and all are treated alike.
    scores, pair = stable_topk(scores, topk_candidates)

    index, classes = index.gather(1, pair // num_classes), pair % num_classes
    chosen = deltas[image, index % num_anchors, :, index // num_anchors].float()
    boxes = apply_deltas(chosen.flatten(0, 1), boxes_at(index).flatten(0, 1))
    boxes = boxes.view(*index.shape, 4)
    scores = scores.masked_fill(~torch.isfinite(boxes).all(dim=2), NONE)
    levels, branches = torch.full_like(classes, level), torch.zeros_like(classes)
    return Candidates(boxes, scores, classes, levels, branches)


def best_rows(
    logits: Tensor, count: int, quality: Tensor | None = None, combine: Combine = torch.mul
) -> Tensor:
    """Find the boxes that can be among the best (box, class) pairs of a level.

    The ``count`` best pairs, the first of equals first, lie in the ``count`` boxes of highest best
    score. Looking for these first spares sorting every pair.

    Args:
        logits: (N, K, A, H * W).
        quality, combine: see :func:`decode_level`; here (N, A, H * W).

    Returns:
        (N, at most count) indices in 0..H*W*A-1, rising.
    """
    best = logits.amax(dim=1)
    if best.device.type != "cpu" or torch.jit.is_tracing() or torch.isnan(best).any():
        best = logits.nan_to_num(nan=-torch.inf).amax(dim=1)
    # Scores, not logits: large logits differ where their scores are both 1.
    scores = best.float().sigmoid()
    if quality is not None:
        scores = combine(scores, quality.float().sigmoid()).nan_to_num(nan=NONE)
    return stable_topk(scores.transpose(1, 2).flatten(1), count)[1].sort(dim=1).values
