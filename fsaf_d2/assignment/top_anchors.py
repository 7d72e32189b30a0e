"""The anchors that overlap each object most, as many for every object (arXiv 1912.05086, Sec. 3.1).

All is known from the objects alone, and computed on the CPU, without comparing every object with
every anchor: those about an object's centre say what IoU its best anchors have at least, and which
cells of which level can have it is known from the box.

Letters: M objects, those of all images together; L levels; R locations of one image over all
levels; A anchors per location; S = L * A kinds of anchors; T pairs; Q chosen anchors. Boxes are
(x0, y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .anchor_matching import (
    SLACK,
    AnchorMatches,
    best_objects,
    centers_in_cells,
    near_pairs,
    paired_iou,
)
from .anchors import AnchorKinds
from .grid import Grid
from .objects import Objects, smallest_first

# Anchors about centres compared at a time: bounds the memory that many objects take.
MAX_PAIRS = 1 << 17
# All pairs of this IoU are looked at, chosen or not: it is what an anchor has with its best object
# in most cases, which then needs no search of its own.
CERTAIN = 0.3
_LOW_BITS = (1 << 32) - 1


@torch.no_grad()
def assign_top_anchors(
    kinds: AnchorKinds, objects: Objects, grid: Grid, *, num_images: int, count: int
) -> AnchorMatches:
    """Find the anchors that are among the best of some object, and whose they are.

    An object chooses the ``count`` anchors of the highest IoU with it, of equals the first in the
    order of anchors, and only such that overlap it. An anchor belongs to the object with which it
    has the highest IoU, of equals to the smallest; that may be another than the one that chose it.
    IoUs are computed in float64 and compared in float32, so that rounding makes no difference of
    equal ones.

    Args:
        kinds: of the anchors of one image, as all images have the same.
        count: at least 1.

    Returns:
        the chosen anchors, all labelled 1, in the order of anchor, and so of level, and image. A
        box that is not finite or has no area has none.
    """
    kinds = kinds._replace(cell_anchors=kinds.cell_anchors.double())
    order = smallest_first(objects)
    order = order[torch.isfinite(objects.boxes[order]).all(dim=1)]
    # From here on the first object is the smallest.
    objects = Objects(objects.boxes[order].double(), *(field[order] for field in objects[1:]))

    num_anchors = grid.num_locations * kinds.num_per_location
    best = torch.zeros(num_images * num_anchors, dtype=torch.int64)
    size = max(MAX_PAIRS // (9 * len(kinds.cell_anchors)), 1)
    keys = [order[:0]]
    for first in range(0, len(order), size):
        index, anchor, iou, good = _pairs(kinds, objects.boxes[first : first + size], grid, count)
        image = objects.image_index[first + index]
        best.scatter_reduce_(0, image * num_anchors + anchor, _encode(iou, first + index), "amax")
        chosen = good[_first_of_each(index[good], anchor[good], iou[good], count)]
        keys.append(anchor[chosen] * num_images + image[chosen])
    key = torch.unique(torch.cat(keys))
    anchor, image = key // num_images, key % num_images
    iou, owner = _decode(best[image * num_anchors + anchor])
    # Pairs of a lower IoU were not all looked at.
    weak = (iou < CERTAIN).nonzero().squeeze(1)
    owner[weak] = best_objects(anchor[weak], image[weak], iou[weak], kinds, objects, grid)
    return AnchorMatches(image, anchor, order[owner], torch.ones_like(key))


def _pairs(
    kinds: AnchorKinds, boxes: Tensor, grid: Grid, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """List pairs of object and anchor: each object's ``count`` best, and all that are certain.

    Returns:
        (T,) objects, rising, (T,) anchors and (T,) IoUs > 0 in float32; places of the pairs that
        can be among the ``count`` best.
    """
    least = _least_iou(kinds, boxes, grid, count)
    index, anchor = near_pairs(kinds, boxes, grid, least.clamp(max=CERTAIN).double()[:, None])
    iou = paired_iou(boxes[index], kinds.boxes(anchor, grid)).float()
    taken = (iou > 0) & (iou >= least[index].clamp(max=CERTAIN))
    index, anchor, iou = index[taken], anchor[taken], iou[taken]
    return index, anchor, iou, (iou >= least[index]).nonzero().squeeze(1)


def _least_iou(kinds: AnchorKinds, boxes: Tensor, grid: Grid, count: int) -> Tensor:
    """An IoU that the ``count`` best anchors of each object have: (M, 4) -> (M,) float32.

    It is just below that of the best among 3 x 3 cells of every kind about the object's centre. The
    overlap of intervals of lengths v and w, centres d apart, is min(v, w, (v + w) / 2 - d).
    """
    level = torch.arange(len(grid.strides)).repeat_interleave(kinds.num_per_location)
    center, nearest, limits = centers_in_cells(kinds, boxes, grid, level)
    strides, shapes = grid.strides[level].double()[:, None], kinds.cell_anchors
    box_size, size = boxes[:, None, 2:] - boxes[:, None, :2], shapes[:, 2:] - shapes[:, :2]
    cells = nearest[..., None] + torch.arange(-1.0, 2.0, dtype=center.dtype)
    distance = (center[..., None] - cells).abs() * strides[..., None]
    overlap = ((box_size + size) / 2)[..., None] - distance
    overlap = overlap.minimum(torch.minimum(box_size, size)[..., None])
    overlap.masked_fill_((overlap < 0) | (cells < 0) | (cells >= limits[..., None]), 0)
    intersection = overlap[..., 0, :, None] * overlap[..., 1, None, :]
    areas = (box_size.prod(dim=2) + size.prod(dim=1))[..., None, None]
    iou = (intersection / (areas - intersection)).nan_to_num_(0).flatten(1)
    if iou.shape[1] < count:
        return boxes.new_zeros(len(boxes), dtype=torch.float32)
    return iou.float().topk(count, dim=1, sorted=False).values.amin(dim=1) * (1 - SLACK)


def _first_of_each(index: Tensor, anchor: Tensor, iou: Tensor, count: int) -> Tensor:
    """The ``count`` pairs of the highest IoU of each object, of equals the first anchors.

    Args:
        index: (T,) objects, as small as can be.
        anchor, iou: (T,).

    Returns:
        (at most T,) places among the pairs.
    """
    order = anchor.argsort(stable=True)
    order = order[iou[order].argsort(descending=True, stable=True)]
    order = order[index[order].argsort(stable=True)]
    counts = torch.bincount(index)
    starts = counts.cumsum(0) - counts
    return order[torch.arange(len(order)) - starts[index[order]] < count]


def _encode(iou: Tensor, index: Tensor) -> Tensor:
    """Numbers > 0 that rise with the IoU, and of equal ones with a lower index."""
    # float32 numbers of one sign are in the order of their bits.
    return (iou.view(torch.int32).long() << 32) + (_LOW_BITS - index)


def _decode(code: Tensor) -> tuple[Tensor, Tensor]:
    """The IoUs and indices of :func:`_encode`."""
    return (code >> 32).int().view(torch.float32), _LOW_BITS - (code & _LOW_BITS)
