"""From dense predictions to detections: decode a level, merge levels and branches, suppress.

All images of a batch are treated at once, in tensors whose sizes do not depend on what is found, so
that a GPU is waited for only when boxes are suppressed.

Letters: N images; A boxes per location; K classes; C places for candidates in each image. Boxes are
(x0, y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from detectron2.layers import batched_nms
from torch import Tensor
from torch.nn import functional as F
from torchvision import ops

# The score of a place without a candidate.
NONE = -1.0
# Candidates of an image that a GPU suppresses at first: the best detections come from them nearly
# always, and the time grows with their number.
FIRST_CANDIDATES = 1024
# Levels and branches are told apart by a number below this.
NUM_PARTS = 64


class Candidates(NamedTuple):
    """Boxes that passed the score threshold: C places for every image, or the boxes of one."""

    boxes: Tensor  # (N, C, 4)
    scores: Tensor  # (N, C), NONE where a place is empty
    classes: Tensor  # (N, C) in 0..K-1
    levels: Tensor  # (N, C) the pyramid level that answered, in 0..L-1
    anchor_free: Tensor  # (N, C) bool, the branch that answered


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
    anchor_free: bool,
) -> tuple[Candidates, Tensor]:
    """Decode the best (box, class) pairs of one level.

    Args:
        logits, deltas: (N, A * K, H, W) and (N, A * 4, H, W).
        boxes_at: gives the boxes (..., 4) that deltas refer to, of indices (...) in 0..H*W*A-1.
        apply_deltas: decodes deltas (T, 4) on boxes (T, 4).
        score_thresh: only scores above it count.
        topk_candidates: how many pairs are kept at the most.

    Returns:
        the candidates of each image, best first, the first of equals first; and (N,) the highest
        score that two of them share, or one of them and the best that is left out; else NONE.
    """
    # One more than asked for shows whether the last one shares its score.
    count = topk_candidates + 1
    num_images, _, height, width = logits.shape
    logits = logits.reshape(num_images, -1, num_classes, height * width)
    deltas = deltas.reshape(num_images, -1, 4, height * width)
    num_anchors = logits.shape[1]
    index = best_rows(logits.transpose(1, 2), count)

    image = torch.arange(num_images, device=logits.device)[:, None]
    rows = logits[image, index % num_anchors, :, index // num_anchors]
    scores = rows.float().sigmoid().flatten(1)
    scores = scores.masked_fill(~(scores > score_thresh), NONE)
    # Deviates from the paper: it keeps the best 1000 locations of a level, not (location, class)
    # pairs; RetinaNet's anchors are cut by pairs, and both branches are treated alike.
    scores, pair = stable_topk(scores, count)
    equal = F.pad(scores[:, 1:] == scores[:, :-1], (1, 0))
    shared = scores.masked_fill(~equal, NONE).amax(dim=1)
    scores, pair = scores[:, :topk_candidates], pair[:, :topk_candidates]

    index, classes = index.gather(1, pair // num_classes), pair % num_classes
    chosen = deltas[image, index % num_anchors, :, index // num_anchors].float()
    boxes = apply_deltas(chosen.flatten(0, 1), boxes_at(index).flatten(0, 1)).view_as(chosen)
    scores = scores.masked_fill(~torch.isfinite(boxes).all(dim=2), NONE)
    branch = torch.full_like(classes, int(anchor_free), dtype=torch.bool)
    return Candidates(boxes, scores, classes, torch.full_like(classes, level), branch), shared


def best_rows(logits: Tensor, count: int) -> Tensor:
    """Find the boxes that can be among the best (box, class) pairs of a level.

    The ``count`` best pairs, the first of equals first, lie in the ``count`` boxes of highest best
    score. Looking for these first spares sorting every pair.

    Args:
        logits: (N, K, A, H * W).

    Returns:
        (N, at most count) indices in 0..H*W*A-1, rising.
    """
    best = logits.amax(dim=1)
    if best.device.type != "cpu" or torch.jit.is_tracing() or torch.isnan(best).any():
        best = logits.nan_to_num(nan=-torch.inf).amax(dim=1)
    # Scores, not logits: large logits differ where their scores are both 1.
    scores = best.float().sigmoid().transpose(1, 2).flatten(1)
    return stable_topk(scores, count)[1].sort(dim=1).values


def stable_topk(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the highest values (N, C), the first of equals first; none is NaN.

    Returns:
        (N, at most count) values, falling, and their indices.
    """
    if torch.onnx.is_in_onnx_export():
        # ONNX defines that the first of equals comes first.
        return values.topk(torch.tensor(count).minimum(values.shape[1]), dim=1)
    return _stable_topk(values, count)


@torch.jit.script_if_tracing
def _stable_topk(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    if values.shape[1] > count:
        last = values.topk(count, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
        above, tied = values > last, values == last
        room = count - above.sum(dim=1, keepdim=True)
        index = _compact(above | (tied & (tied.cumsum(dim=1) <= room)), count)
        values, order = values.gather(1, index).sort(dim=1, descending=True, stable=True)
        return values, index.gather(1, order)
    return values.sort(dim=1, descending=True, stable=True)


def _compact(taken: Tensor, count: int) -> Tensor:
    """Indices of the first ``count`` True of every row (N, C), rising, filled up with 0."""
    place = taken.cumsum(dim=1) - 1
    place = torch.where(taken & (place < count), place, count)
    index = torch.arange(taken.shape[1], device=taken.device).expand_as(place)
    return place.new_zeros((len(taken), count + 1)).scatter_(1, place, index)[:, :-1]


def clip_to_images(candidates: Candidates, sizes: Tensor, images: Tensor) -> Candidates:
    """Clip boxes to their image; drop those without an area in it.

    Args:
        sizes: (N, 2), height and width.
        images: (N,) bool, the images where this is done.
    """
    limits = sizes.flip(1)[:, None].repeat(1, 1, 2).to(candidates.boxes.dtype)
    clipped = candidates.boxes.clamp(min=0).minimum(limits)
    empty = ~(clipped[..., 2:] > clipped[..., :2]).all(dim=2)
    boxes = torch.where(images[:, None, None], clipped, candidates.boxes)
    scores = candidates.scores.masked_fill(images[:, None] & empty, NONE)
    return candidates._replace(boxes=boxes, scores=scores)


def merge(
    parts: Sequence[Candidates],
    *,
    nms_thresh: float,
    max_detections: int,
    nms_per_level: bool,
) -> list[Candidates]:
    """Merge the candidates of all levels and branches of every image by class-wise NMS.

    Args:
        parts: one entry per level and branch.
        nms_thresh: IoU above which the lower score is suppressed.
        max_detections: how many of an image are kept at the most.
        nms_per_level: suppress within each level of each branch first.

    Returns:
        the detections of each image, best first.
    """
    merged = Candidates(*(torch.cat(field, dim=1) for field in zip(*parts)))
    merge_images = merge_each if merged.boxes.device.type == "cpu" else merge_jointly
    return merge_images(
        merged,
        nms_thresh=nms_thresh,
        max_detections=max_detections,
        nms_per_level=nms_per_level,
    )


def merge_each(
    candidates: Candidates, *, nms_thresh: float, max_detections: int, nms_per_level: bool
) -> list[Candidates]:
    """Merge image by image, as detectron2 does: to the last bit, where nothing waits for it."""
    detections = []
    for image in zip(*candidates):
        image = Candidates(*image)
        keep = surviving(
            image.boxes,
            image.scores,
            image.classes,
            _part(image),
            nms_thresh=nms_thresh,
            nms_per_level=nms_per_level,
        )
        detections.append(Candidates(*(field[keep[:max_detections]] for field in image)))
    return detections


def surviving(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    parts: Tensor,
    nms_thresh: float,
    nms_per_level: bool,
    none: float = NONE,
    num_parts: int = NUM_PARTS,
) -> Tensor:
    """Suppress within one image, as detectron2 does. TorchScript compiles it too.

    Args:
        boxes, scores, classes, parts: (C, 4), (C,), (C,), (C,); parts are levels of branches.
        none: the score of an empty place.
        num_parts: parts are below it.

    Returns:
        indices in 0..C-1 of what stays, best first.
    """
    found = torch.nonzero(scores != none).squeeze(1)
    if nms_per_level:
        groups = classes[found] * num_parts + parts[found]
        found = found[_nms_within_parts(boxes[found], scores[found], groups, nms_thresh)]
    return found[batched_nms(boxes[found], scores[found], classes[found], nms_thresh)]


def _nms_within_parts(boxes: Tensor, scores: Tensor, groups: Tensor, nms_thresh: float) -> Tensor:
    # float64: batched NMS shifts the boxes of each group apart, and with a group for every class of
    # every level the shifts leave float32 too few digits for the boxes.
    return ops.batched_nms(boxes.double(), scores.double(), groups, nms_thresh)


def merge_jointly(
    candidates: Candidates, *, nms_thresh: float, max_detections: int, nms_per_level: bool
) -> list[Candidates]:
    """Merge all images at once: two waits for a GPU, whatever the number of images.

    Whether a box stays depends on those of higher scores alone. So the best few are suppressed
    first, and all of them only if these leave too few detections in some image.
    """
    count = candidates.scores.shape[1]
    for limit in (min(FIRST_CANDIDATES, count), count):
        scores, index = stable_topk(candidates.scores, limit)
        best = Candidates(
            candidates.boxes.gather(1, index[..., None].expand(-1, -1, 4)),
            scores,
            *(field.gather(1, index) for field in candidates[2:]),
        )
        keep = scores != NONE
        if nms_per_level:
            keep = _suppress(best, best.classes * NUM_PARTS + _part(best), keep, nms_thresh)
        keep = _suppress(best, best.classes, keep, nms_thresh)
        counts = keep.sum(dim=1).clamp(max=max_detections)
        complete = (counts == max_detections) | (scores[:, -1:] == NONE).all(dim=1)
        counts, complete = torch.stack([counts, complete]).tolist()
        if all(complete):
            break
    index = _compact(keep, max_detections)
    image = torch.arange(len(index), device=index.device)[:, None]
    return [
        Candidates(*(field[:count] for field in fields))
        for count, *fields in zip(counts, *(field[image, index] for field in best))
    ]


def _suppress(best: Candidates, groups: Tensor, keep: Tensor, nms_thresh: float) -> Tensor:
    """Suppress boxes, sorted by score, within groups of each image: keep (N, C) -> (N, C)."""
    num_images, count = keep.shape
    image = torch.arange(num_images, device=keep.device)[:, None]
    # What is out already becomes one and the same box, of which all but the first go at once.
    unit_box = torch.arange(4, device=keep.device) // 2
    boxes = torch.where(keep[..., None], best.boxes, unit_box)
    group = torch.where(keep, groups * num_images + image, -1).flatten()
    # float64: groups are shifted apart, and float32 would have too few digits for their boxes.
    boxes = boxes.flatten(0, 1).double()
    boxes += (group * (boxes.amax() - boxes.amin() + 1))[:, None]
    priority = torch.arange(len(boxes), 0, -1, device=keep.device, dtype=boxes.dtype)
    stay = torch.zeros_like(group, dtype=torch.bool)
    stay[ops.nms(boxes, priority, nms_thresh)] = True
    return stay.view(num_images, count) & keep


def _part(candidates: Candidates) -> Tensor:
    return candidates.levels * 2 + candidates.anchor_free
