"""From dense predictions to detections: decode a level, merge levels and branches, suppress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from detectron2.layers import batched_nms
from torch import Tensor
from torchvision import ops


class Candidates(NamedTuple):
    """C boxes that passed the score threshold."""

    boxes: Tensor  # (C, 4) in pixels of the network's input
    scores: Tensor  # (C,)
    classes: Tensor  # (C,) in 0..K-1
    levels: Tensor  # (C,) the pyramid level that answered, in 0..L-1
    anchor_free: Tensor  # (C,) bool, the branch that answered


def decode_points(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    points: Sequence[Tensor],
    apply_deltas: Callable[[Tensor, Tensor], Tensor],
    *,
    score_thresh: float,
    topk_candidates: int,
) -> list[Candidates]:
    """Decode the anchor-free predictions of every level of one image.

    Args:
        logits, deltas: (R, K) and (R, 4) of each level, R its locations.
        points: (R, 4) of each level, the square boxes that deltas refer to.
        apply_deltas: decodes deltas (C, 4) on boxes (C, 4).
        score_thresh: only scores above it count.
        topk_candidates: how many (location, class) pairs of a level are kept at the most.

    Returns:
        the candidates of each level, best first.
    """
    parts = []
    for level in range(len(logits)):
        rows = best_rows(logits[level], topk_candidates)
        scores = logits[level][rows].float().sigmoid()
        keep = scores > score_thresh
        # Deviates from the paper: it keeps the best 1000 locations of a level, not (location,
        # class) pairs; RetinaNet's anchors are cut by pairs, and both branches are treated alike.
        scores, best = scores[keep].sort(descending=True, stable=True)
        scores, best = scores[:topk_candidates], best[:topk_candidates]
        index, classes = keep.nonzero()[best].unbind(dim=1)
        index = rows[index]
        boxes = apply_deltas(deltas[level][index].float(), points[level][index])
        parts.append(as_candidates(boxes, scores, classes, level, anchor_free=True))
    return parts


def best_rows(logits: Tensor, count: int) -> Tensor:
    """Find the predictions that can be among the best (prediction, class) pairs of a level.

    The ``count`` best pairs lie in the ``count`` predictions of highest best score. Looking for
    these first spares sorting every pair.

    Args:
        logits: (R, K).

    Returns:
        (at least min(count, R),) indices, rising; all predictions that tie for the last place.
    """
    if len(logits) <= count:
        return torch.arange(len(logits), device=logits.device)
    best = logits.amax(dim=1)
    if torch.isnan(best).any():
        best = logits.nan_to_num(nan=-torch.inf).amax(dim=1)
    # Scores, not logits: large logits differ where their scores are both 1.
    scores = best.float().sigmoid()
    return (scores >= scores.topk(count).values[-1]).nonzero().squeeze(1)


def has_ties(scores: Tensor, count: int) -> bool:
    """Whether any of the ``count`` best of all scores are equal."""
    best = scores.flatten().topk(min(count, scores.numel())).values
    return bool((best[1:] == best[:-1]).any())


def as_candidates(
    boxes: Tensor, scores: Tensor, classes: Tensor, level: int, *, anchor_free: bool
) -> Candidates:
    """Note the level and the branch that answered; leave out boxes that are not finite."""
    finite = torch.isfinite(boxes).all(dim=1)
    boxes, scores, classes = boxes[finite], scores[finite], classes[finite]
    branch = torch.full_like(classes, anchor_free, dtype=torch.bool)
    return Candidates(boxes, scores, classes, torch.full_like(classes, level), branch)


def clip_to_image(candidates: Candidates, image_size: tuple[int, int]) -> Candidates:
    """Clip boxes to an image of the given (height, width); drop those without an area in it."""
    boxes = ops.clip_boxes_to_image(candidates.boxes, image_size)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return Candidates(*(field[keep] for field in candidates._replace(boxes=boxes)))


def merge(
    parts: Sequence[Candidates],
    *,
    nms_thresh: float,
    max_detections: int,
    nms_per_level: bool,
) -> Candidates:
    """Merge the candidates of all levels and branches of one image by class-wise NMS.

    Args:
        parts: one entry per level and branch.
        nms_thresh: IoU above which the lower score is suppressed.
        max_detections: how many are kept at the most.
        nms_per_level: suppress within each level of each branch first.

    Returns:
        the detections, best first.
    """
    merged = Candidates(*(torch.cat(field) for field in zip(*parts)))
    if nms_per_level:
        keep = _nms_within_parts(merged, nms_thresh)
        merged = Candidates(*(field[keep] for field in merged))
    keep = batched_nms(merged.boxes, merged.scores, merged.classes, nms_thresh)[:max_detections]
    return Candidates(*(field[keep] for field in merged))


def _nms_within_parts(candidates: Candidates, nms_thresh: float) -> Tensor:
    num_levels = int(candidates.levels.max()) + 1 if len(candidates.levels) else 1
    part = candidates.anchor_free.long() * num_levels + candidates.levels
    num_parts = 2 * num_levels
    # float64: batched NMS shifts the boxes of each group apart, and with a group for every class of
    # every level the shifts leave float32 too few digits for the boxes.
    return ops.batched_nms(
        candidates.boxes.double(),
        candidates.scores.double(),
        candidates.classes * num_parts + part,
        nms_thresh,
    )
