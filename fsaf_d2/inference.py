"""From dense predictions to detections: decode a level, merge levels and branches, suppress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from detectron2.layers import batched_nms
from torch import Tensor
from torchvision import ops


class Candidates(NamedTuple):
    """Boxes that passed the score threshold, C of them, best first within a level."""

    boxes: Tensor  # (C, 4) in pixels of the network's input
    scores: Tensor  # (C,)
    classes: Tensor  # (C,) in 0..K-1
    levels: Tensor  # (C,) the pyramid level that answered, in 0..L-1
    anchor_free: Tensor  # (C,) bool, the branch that answered


def decode_level(
    logits: Tensor,
    deltas: Tensor,
    reference_boxes: Tensor,
    apply_deltas: Callable[[Tensor, Tensor], Tensor],
    *,
    score_thresh: float,
    topk_candidates: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode the best predictions of one level of one image, as detectron2's dense detectors do.

    Args:
        logits: (R, K), R predictions of the level.
        deltas: (R, 4).
        reference_boxes: (R, 4), the anchors or points that the deltas refer to.
        apply_deltas: decodes deltas (C, 4) on boxes (C, 4).
        score_thresh: only scores above it count.
        topk_candidates: how many (prediction, class) pairs are kept at the most.

    Returns:
        boxes (C, 4), scores (C,) in falling order, and classes (C,). Predictions that are not
        finite are left out.
    """
    scores = logits.float().sigmoid()
    keep = scores > score_thresh
    # Deviates from the paper: it keeps the best 1000 locations of a level, not (location, class)
    # pairs; RetinaNet's anchors are cut by pairs, and both branches are treated alike.
    scores, best = scores[keep].sort(descending=True, stable=True)
    index, classes = keep.nonzero()[best[:topk_candidates]].unbind(dim=1)
    boxes = apply_deltas(deltas[index].float(), reference_boxes[index])
    finite = torch.isfinite(boxes).all(dim=1)
    return boxes[finite], scores[:topk_candidates][finite], classes[finite]


def decode_branch(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    reference_boxes: Sequence[Tensor],
    apply_deltas: Callable[[Tensor, Tensor], Tensor],
    *,
    anchor_free: bool,
    score_thresh: float,
    topk_candidates: int,
) -> list[Candidates]:
    """Decode every level of one branch of one image; see :func:`decode_level`."""
    parts = []
    for level, level_inputs in enumerate(zip(logits, deltas, reference_boxes)):
        boxes, scores, classes = decode_level(
            *level_inputs,
            apply_deltas,
            score_thresh=score_thresh,
            topk_candidates=topk_candidates,
        )
        levels = torch.full_like(classes, level)
        branch = torch.full_like(classes, anchor_free, dtype=torch.bool)
        parts.append(Candidates(boxes, scores, classes, levels, branch))
    return parts


def clip_to_image(candidates: Candidates, image_size: tuple[int, int]) -> Candidates:
    """Clip boxes to an image of the given (height, width)."""
    return candidates._replace(boxes=ops.clip_boxes_to_image(candidates.boxes, image_size))


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
