"""What passed the score threshold, of all images of a batch at once.

Tensors have sizes that do not depend on what is found, so that nothing waits for a GPU.

Letters: N images; C places for candidates in each image. Boxes are (x0, y0, x1, y1) in pixels of
the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

# The score of a place without a candidate.
NONE = -1.0


class Candidates(NamedTuple):
    """Boxes that passed the score threshold: C places for every image, or the boxes of one."""

    boxes: Tensor  # (N, C, 4)
    scores: Tensor  # (N, C), NONE where a place is empty
    classes: Tensor  # (N, C) in 0..K-1
    levels: Tensor  # (N, C) the pyramid level that answered, in 0..L-1
    branches: Tensor  # (N, C) the branch that answered, by its place among the detector's

    def at(self, index: Tensor) -> Candidates:
        """Those in the places (N, P) of each image."""
        boxes = self.boxes.gather(1, index[..., None].expand(-1, -1, 4))
        return Candidates(boxes, *(field.gather(1, index) for field in self[1:]))


def joined(parts: Sequence[Candidates]) -> Candidates:
    """The candidates of several levels and branches, side by side."""
    return Candidates(*(torch.cat(field, dim=1) for field in zip(*parts)))


def compact(taken: Tensor, count: int) -> Tensor:
    """Indices of the first ``count`` True of every row (N, C), rising, filled up with 0."""
    place = taken.cumsum(dim=1) - 1
    place = torch.where(taken & (place < count), place, count)
    index = torch.arange(taken.shape[1], device=taken.device).expand_as(place)
    return place.new_zeros((len(taken), count + 1)).scatter_(1, place, index)[:, :-1]


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
        index = compact(above | (tied & (tied.cumsum(dim=1) <= room)), count)
        values, order = values.gather(1, index).sort(dim=1, descending=True, stable=True)
        return values, index.gather(1, order)
    return values.sort(dim=1, descending=True, stable=True)


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


def resized(found: Candidates, sizes: Tensor, wanted: Tensor) -> Candidates:
    """Scale boxes from the images as the network had them to other sizes, and clip them there.

    Args:
        sizes, wanted: (N, 2), height and width before and after.
    """
    scale = (wanted.double() / sizes.double()).to(found.boxes.dtype)
    boxes = found.boxes * scale.flip(1)[:, None].repeat(1, 1, 2)
    everywhere = torch.ones(len(sizes), dtype=torch.bool, device=boxes.device)
    return clip_to_images(found._replace(boxes=boxes), wanted, everywhere)


def to_instances(found: Candidates, sizes: Sequence[tuple[int, int]]) -> list[Instances]:
    """What was found, in detectron2's format; sizes are height and width of each image."""
    return [
        Instances(
            size,
            pred_boxes=Boxes(each.boxes),
            scores=each.scores,
            pred_classes=each.classes,
            pred_levels=each.levels,
            pred_branches=each.branches,
        )
        for size, each in zip(sizes, of_each_image(found))
    ]


def of_each_image(found: Candidates) -> list[Candidates]:
    """What was found in each image, without the empty places; a GPU is waited for once."""
    there = found.scores != NONE
    packed = found.at(compact(there, there.shape[1]))
    counts = there.sum(dim=1).tolist()
    return [
        Candidates(*(field[:count] for field in fields)) for count, *fields in zip(counts, *packed)
    ]
