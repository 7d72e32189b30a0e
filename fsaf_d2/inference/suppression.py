"""Class-wise suppression of all levels and branches together.

Letters: N images; C places for candidates in each image. Boxes are (x0, y0, x1, y1) in pixels of
the network's input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from detectron2.layers import batched_nms
from torch import Tensor
from torch.nn import functional as F
from torchvision import ops

from .candidates import NONE, Candidates, compact, joined, stable_topk

# Candidates of an image that a GPU suppresses at first: the best detections come from them nearly
# always, and the time grows with their number.
FIRST_CANDIDATES = 1024
# A level of a branch is told apart by a number: level * MAX_BRANCHES + branch, below NUM_PARTS.
MAX_BRANCHES = 16
NUM_PARTS = 16 * MAX_BRANCHES


@dataclasses.dataclass(frozen=True)
class Suppression:
    """Merges the candidates of all levels and branches of every image by class-wise NMS.

    Attributes:
        nms_thresh: IoU above which the lower score is suppressed.
        max_detections: how many of an image are kept at the most.
        nms_per_level: suppress within each level of each branch first.
    """

    nms_thresh: float = 0.5
    max_detections: int = 100
    nms_per_level: bool = False

    def __call__(self, parts: Sequence[Candidates]) -> Candidates:
        """Merge.

        Args:
            parts: one entry per level and branch.

        Returns:
            the detections of each image, best first; behind them, places are empty.
        """
        merged = joined(parts)
        if merged.boxes.device.type == "cpu":
            return self._merge_each(merged)
        return self._merge_jointly(merged)

    def _merge_each(self, candidates: Candidates) -> Candidates:
        """Merge image by image, as detectron2 does: to the last bit, where nothing waits for it."""
        keeps = []
        for boxes, scores, classes, levels, branches in zip(*candidates):
            keep = surviving(
                boxes,
                scores,
                classes,
                part_of(levels, branches),
                nms_thresh=self.nms_thresh,
                nms_per_level=self.nms_per_level,
            )
            keeps.append(keep[: self.max_detections])
        count = max(map(len, keeps), default=0)
        index = torch.stack([F.pad(keep, (0, count - len(keep))) for keep in keeps])
        return _with_places(candidates.at(index), torch.tensor([len(keep) for keep in keeps]))

    def _merge_jointly(self, candidates: Candidates) -> Candidates:
        """Merge all images at once: two waits for a GPU, whatever the number of images.

        Whether a box stays depends on those of higher scores alone. So the best few are suppressed
        first, and all of them only if these leave too few detections in some image.
        """
        count = candidates.scores.shape[1]
        for limit in (min(FIRST_CANDIDATES, count), count):
            scores, index = stable_topk(candidates.scores, limit)
            best = candidates.at(index)
            keep = scores != NONE
            if self.nms_per_level:
                groups = best.classes * NUM_PARTS + part_of(best.levels, best.branches)
                keep = _suppress(best, groups, keep, self.nms_thresh)
            keep = _suppress(best, best.classes, keep, self.nms_thresh)
            counts = keep.sum(dim=1).clamp(max=self.max_detections)
            complete = (counts == self.max_detections) | (scores[:, -1:] == NONE).all(dim=1)
            if limit == count or complete.all():
                break
        return _with_places(best.at(compact(keep, self.max_detections)), counts)


def _with_places(found: Candidates, counts: Tensor) -> Candidates:
    """Empty the places (N, D) of each image from the count (N,) on."""
    place = torch.arange(found.scores.shape[1], device=found.scores.device)
    return found._replace(scores=found.scores.masked_fill(place >= counts[:, None], NONE))


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


def part_of(levels: Tensor, branches: Tensor) -> Tensor:
    """A number below NUM_PARTS for each level of each branch."""
    return levels * MAX_BRANCHES + branches
