"""ATSS: each object's own threshold on the IoU of the anchors about its centre.

Adaptive training sample selection, arXiv 1912.02424, Alg. 1. All is known from the objects alone,
and computed on the CPU.

Letters: M objects, those of all images together; L levels; R locations of one image over all
levels; A anchors per location; T candidates of an object; P positive anchors. Boxes are (x0, y0,
x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .anchor_matching import AnchorMatches, paired_iou
from .anchors import AnchorKinds
from .grid import Grid
from .objects import Objects, smallest_first

# Candidates compared at a time: bounds the memory that many objects take.
MAX_LISTED = 1 << 18
# What the mean of equal IoUs is off by at the most, relatively, and more.
SLACK = 1e-12


@torch.no_grad()
def assign_atss(
    kinds: AnchorKinds, objects: Objects, grid: Grid, *, num_images: int, top_k: int = 9
) -> AnchorMatches:
    """Find the anchors that answer for an object.

    Candidates of an object are the anchors of the ``top_k`` cells of every level whose points are
    nearest to its centre, the first of equals first; of a level with fewer cells, all. One is
    positive if its IoU with the object is at least the mean plus the standard deviation of all
    candidates' and its centre lies in the box, not on its border. Of several objects an anchor
    answers for that of the highest IoU, of equals for the smallest.

    Args:
        kinds: of the anchors of one image, as all images have the same; each is centred on the
            point of its cell.
        top_k: at least 1.

    Returns:
        the positives alone, in the order of anchor, and so of level, and image. A box without an
        area or with a side at infinity has none.
    """
    kinds = kinds._replace(cell_anchors=kinds.cell_anchors.double())
    boxes = objects.boxes.double()
    size = max(MAX_LISTED // (top_k * len(kinds.cell_anchors)), 1)
    starts = range(0, max(len(boxes), 1), size)
    found = [_positives(kinds, boxes[i : i + size], grid, top_k, i) for i in starts]
    object_index, anchor, iou = (torch.cat(part) for part in zip(*found))

    order = smallest_first(objects)
    rank = torch.argsort(order)[object_index]
    key = anchor * num_images + objects.image_index[object_index]
    key, place = torch.unique(key, return_inverse=True)
    highest = iou.new_zeros(len(key)).scatter_reduce(0, place, iou, "amax")
    rank = torch.where(iou == highest[place], rank, len(order))
    best = torch.full_like(key, len(order)).scatter_reduce(0, place, rank, "amin")
    return AnchorMatches(key % num_images, key // num_images, order[best], torch.ones_like(key))


def _positives(
    kinds: AnchorKinds, boxes: Tensor, grid: Grid, top_k: int, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of object and positive anchor of some objects.

    Args:
        boxes: (M, 4) float64.
        first: the index of the first of these objects among all.

    Returns:
        objects, anchors and IoUs, one each for a pair.
    """
    each = torch.arange(kinds.num_per_location)
    location = nearest_cells(boxes, grid, top_k, kinds.offset)
    anchor = (location[..., None] * kinds.num_per_location + each).flatten(1)
    candidates = kinds.boxes(anchor, grid)
    boxes = boxes[:, None]
    iou = paired_iou(boxes, candidates)
    mean = iou.mean(dim=1, keepdim=True)
    # A candidate alone has no deviation.
    variance = ((iou - mean) ** 2).sum(dim=1, keepdim=True) / max(iou.shape[1] - 1, 1)
    threshold = (mean + variance.sqrt()) * (1 - SLACK)
    center = (candidates[..., :2] + candidates[..., 2:]) / 2
    inside = ((center > boxes[..., :2]) & (center < boxes[..., 2:])).all(dim=2)
    index, place = (inside & (iou > 0) & (iou >= threshold)).nonzero().unbind(dim=1)
    return first + index, anchor[index, place], iou[index, place]


def nearest_cells(boxes: Tensor, grid: Grid, count: int, offset: float) -> Tensor:
    """Find the cells of every level whose points are nearest to the centres of boxes.

    Args:
        boxes: (M, 4) float64.
        count: of cells of a level; where there are fewer, all.
        offset: where in its cell the point lies, in cells.

    Returns:
        (M, sum over levels) locations in 0..R-1; of a level the nearest first, and of equally near
        ones that of the lower index.
    """
    # A centre may lie off the map, or be no number at all.
    centers = ((boxes[:, :2] + boxes[:, 2:]) / 2).nan_to_num(0.0)
    parts = []
    for stride, width, height, start in zip(*(field.tolist() for field in grid)):
        center = centers / stride - offset
        column, x_distance = _nearest_on_axis(center[:, 0], width, count)
        row, y_distance = _nearest_on_axis(center[:, 1], height, count)
        # In the i-th nearest column and the j-th nearest row, i * j - 1 cells come before.
        i = torch.arange(column.shape[1])[:, None].expand(-1, row.shape[1])
        j = torch.arange(row.shape[1]).expand_as(i)
        near = (i + 1) * (j + 1) <= count
        i, j = i[near], j[near]
        cell, order = (row[:, j] * width + column[:, i]).sort(dim=1)
        distance = (x_distance[:, i] ** 2 + y_distance[:, j] ** 2).gather(1, order)
        order = distance.argsort(dim=1, stable=True)[:, :count]
        parts.append(start + cell.gather(1, order))
    return torch.cat(parts, dim=1)


def _nearest_on_axis(position: Tensor, length: int, count: int) -> tuple[Tensor, Tensor]:
    """Indices in 0..length-1 nearest to positions (M,), and their distances, nearest first.

    Returns:
        (M, at most count) each; of equally near ones the lower comes first.
    """
    count = min(count, length)
    first = (position - count / 2).ceil().clamp(0, length - count).long()
    index = first[:, None] + torch.arange(count)
    distance, order = (index - position[:, None]).abs().sort(dim=1, stable=True)
    return index.gather(1, order), distance
