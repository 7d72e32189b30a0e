"""RetinaNet's matching of anchors with objects, without computing the pairs that cannot match.

The labels are those of detectron2's Matcher on the full matrix of IoUs (arXiv 1708.02002, Sec. 4).
An anchor far from an object, or of another size, cannot reach the lowest threshold with it; which
cells of which level can is known from the box alone.

Letters: M objects, those of all images together; L levels; R locations of one image over all
levels; A anchors per location; S = L * A kinds of anchors; Q anchors that are not background.
Boxes are (x0, y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .anchors import AnchorKinds
from .grid import Cells, Grid, list_locations, split_by_total
from .objects import Objects

# Windows are found in float64 and IoUs compared in float32; this is far above what they differ by.
SLACK = 1e-4
# Side of the tiles that anchors are sorted into, in cells.
TILE = 4
# Pairs computed at a time where anchors are compared with all objects about them.
MAX_PAIRS = 1 << 18


class AnchorMatches(NamedTuple):
    """All anchors that are not background, in the order of anchor, and so of level, and image."""

    image_index: Tensor  # (Q,) in 0..N-1
    anchor_index: Tensor  # (Q,) in 0..R*A-1
    object_index: Tensor  # (Q,) in 0..M-1, the object of the highest IoU
    labels: Tensor  # (Q,) 1: an object's, -1: ignored


def match_anchors(
    kinds: AnchorKinds,
    objects: Objects,
    grid: Grid,
    *,
    num_images: int,
    thresholds: Sequence[float],
    labels: Sequence[int],
    keep_best: bool = True,
) -> AnchorMatches:
    """Label anchors by their highest IoU; every object also keeps its best anchors.

    Args:
        kinds: of the anchors of one image, as all images have the same.
        thresholds: rising IoUs that part the labels.
        labels: one more than thresholds, of 0 (background), -1 (ignored) and 1; the first is 0.
        keep_best: whether an object keeps its best anchors although they are below the thresholds.

    Returns:
        the anchors that are not background. An object that no anchor overlaps has none, where
        detectron2 gives it every anchor, as all of them have its best IoU.
    """
    lowest = min(low for low, label in zip(thresholds, labels[1:]) if label != 0)
    pair_object, pair_anchor = near_pairs(kinds, objects.boxes, grid, lowest)
    iou = paired_iou(objects.boxes[pair_object], kinds.boxes(pair_anchor, grid))

    best_of_object = iou.new_zeros(len(objects.boxes)).scatter_reduce(0, pair_object, iou, "amax")
    kept = (iou > 0) & (iou == best_of_object[pair_object]) & keep_best
    listed = kept | (iou >= lowest)
    pair_object, pair_anchor, iou, kept = (x[listed] for x in (pair_object, pair_anchor, iou, kept))

    key = pair_anchor * num_images + objects.image_index[pair_object]
    key, place = torch.unique(key, return_inverse=True)
    best_iou, best_object = _keep_best(
        iou.new_zeros(len(key)), torch.zeros_like(key), place, pair_object, iou
    )
    is_kept = torch.zeros_like(key, dtype=torch.bool)
    is_kept[place[kept]] = True
    anchor_index, image_index = key // num_images, key % num_images

    # An anchor that is kept for an object below all thresholds may overlap another one more.
    weak = (best_iou < lowest).nonzero().squeeze(1)
    best_object[weak] = best_objects(
        anchor_index[weak], image_index[weak], best_iou[weak], kinds, objects, grid
    )

    bounds = torch.tensor(thresholds, dtype=iou.dtype, device=iou.device)
    by_iou = torch.tensor(labels, device=iou.device)[torch.bucketize(best_iou, bounds, right=True)]
    label = torch.where(is_kept, 1, by_iou)
    matches = AnchorMatches(image_index, anchor_index, best_object, label)
    return AnchorMatches(*(field[label != 0] for field in matches))


def near_pairs(
    kinds: AnchorKinds, boxes: Tensor, grid: Grid, lowest: float | Tensor
) -> tuple[Tensor, Tensor]:
    """List pairs of object and anchor with an IoU of at least ``lowest``, or the object's best.

    Some further pairs are listed as well.

    Args:
        lowest: the same for all objects, or (M, 1).

    Returns:
        (T,) objects, rising, and (T,) anchors.
    """
    num_levels, num_per_location = len(grid.strides), kinds.num_per_location
    level = torch.arange(num_levels, device=boxes.device).repeat_interleave(num_per_location)
    windows = _windows(kinds, boxes, grid, level, lowest)
    index, kind = (windows[..., 2:] > windows[..., :2]).all(dim=2).nonzero().unbind(dim=1)
    region, location = list_locations(windows[index, kind], level[kind], grid)
    anchor = location * num_per_location + kind[region] % num_per_location
    return index[region], anchor


def _windows(
    kinds: AnchorKinds, boxes: Tensor, grid: Grid, level: Tensor, lowest: float | Tensor
) -> Tensor:
    """Bound the cells whose anchor of a kind can have the IoU that an object asks for.

    Intervals of lengths v and w whose centres are d apart overlap by min(v, w, (v + w) / 2 - d).

    Returns:
        (M, S, 4) half-open ranges of cells, some of them empty.
    """
    center, nearest, limits = centers_in_cells(kinds, boxes, grid, level)
    boxes, cell_anchors = boxes.double()[:, None], kinds.cell_anchors.double()
    strides = grid.strides[level].double()[:, None]
    box_size, size = boxes[..., 2:] - boxes[..., :2], cell_anchors[:, 2:] - cell_anchors[:, :2]
    reach = (box_size + size) / 2
    longest = torch.minimum(box_size, size)

    distance = (center - nearest).abs() * strides
    intersection = torch.minimum(longest, reach - distance).clamp(min=0).prod(dim=2)
    areas = box_size.prod(dim=2) + size.prod(dim=1)
    best = (intersection / (areas - intersection)).nan_to_num(0).amax(dim=1, keepdim=True)
    asked = best.clamp(max=lowest) * (1 - SLACK)

    # IoU >= t means that the intersection is at least t / (1 + t) of both areas.
    needed = (asked / (1 + asked) * areas)[..., None] / longest.flip(2)
    radius = torch.where(needed <= longest, reach - needed, -1.0) / strides
    impossible = (radius < 0).any(dim=2, keepdim=True) | (best <= 0)[..., None]
    first = (center - radius - SLACK).ceil().maximum(torch.zeros_like(center))
    last = ((center + radius + SLACK).floor() + 1).minimum(limits.double())
    first, last = (x.masked_fill(impossible, 0) for x in (first, last))
    return torch.cat([first, last], dim=2).long()


def centers_in_cells(
    kinds: AnchorKinds, boxes: Tensor, grid: Grid, level: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Say where boxes (M, 4) lie among the anchors of each kind, in cells and in float64.

    Args:
        level: (S,) of the kinds.

    Returns:
        (M, S, 2) their centres, as x and y, among those of the anchors; (M, S, 2) the nearest cell
        that there is; and (S, 2) how many there are in a row and in a column.
    """
    limits = torch.stack([grid.widths, grid.heights], dim=1)[level]
    corners, shapes = boxes.double()[:, None], kinds.cell_anchors.double()
    center = (corners[..., :2] + corners[..., 2:] - shapes[:, :2] - shapes[:, 2:]) / 2
    center = center / grid.strides[level].double()[:, None] - kinds.offset
    return center, center.round().clamp(min=0).minimum(limits - 1.0), limits


def best_objects(
    anchor_index: Tensor,
    image_index: Tensor,
    known_iou: Tensor,
    kinds: AnchorKinds,
    objects: Objects,
    grid: Grid,
) -> Tensor:
    """Find the object of highest IoU in float32, the first of equals, in the anchor's own image.

    An object is compared with the anchors of those tiles of cells from where one can reach it.

    Args:
        anchor_index, image_index: (Q,), of anchors that overlap some object.
        known_iou: (Q,) that they have with one of their objects.

    Returns:
        (Q,) in 0..M-1.
    """
    num_objects = len(objects.boxes)
    sizes = -(-torch.stack([grid.heights, grid.widths], dim=1) // TILE)
    tiles = Grid.of(grid.strides * TILE, sizes, sizes.device)
    level, x, y = Cells.at(anchor_index // kinds.num_per_location, grid)
    tile = tiles.starts[level] + y // TILE * tiles.widths[level] + x // TILE
    tile += image_index * tiles.num_locations
    order = torch.argsort(tile)
    num_images = int(objects.image_index.max()) + 1 if num_objects else 0
    counts = torch.bincount(tile, minlength=num_images * tiles.num_locations)
    starts = counts.cumsum(0) - counts

    boxes = kinds.boxes(anchor_index, grid)
    areas, object_areas = _area(boxes), _area(objects.boxes)
    # An IoU is no more than the smaller of two areas is of the larger.
    smallest, largest = (areas * known_iou * (1 - SLACK), areas / known_iou * (1 + SLACK))
    best_iou = torch.zeros(len(order))
    best = torch.full_like(order, num_objects)
    for pair_tile, pair_object in _reached_tiles(kinds, objects, tiles):
        for part in split_by_total(counts[pair_tile], MAX_PAIRS):
            tile = pair_tile[part]
            pair = torch.repeat_interleave(counts[tile])
            offset = torch.arange(len(pair)) - (counts[tile].cumsum(0) - counts[tile])[pair]
            anchor, found = order[starts[tile][pair] + offset], pair_object[part][pair]
            area = object_areas[found]
            possible = (area >= smallest[anchor]) & (area <= largest[anchor])
            anchor, found = anchor[possible], found[possible]
            iou = paired_iou(objects.boxes[found], boxes[anchor]).float()
            best_iou, best = _keep_best(best_iou, best, anchor, found, iou)
    return best


def _reached_tiles(
    kinds: AnchorKinds, objects: Objects, tiles: Grid
) -> Iterator[tuple[Tensor, Tensor]]:
    """List the tiles with anchors that objects can overlap: pieces of (T,) tiles and objects."""
    num_levels = len(tiles.strides)
    # An anchor overlaps an object only where its point is in the object widened by its own sides.
    sides = kinds.cell_anchors.view(num_levels, -1, 4)
    reach = torch.cat([sides[..., 2:].amax(dim=1), sides[..., :2].amin(dim=1)], dim=1)
    limits = torch.stack([tiles.widths, tiles.heights], dim=1)
    size = max(MAX_PAIRS // tiles.num_locations, 1)
    for start in range(0, len(objects.boxes), size):
        boxes = objects.boxes[start : start + size].double()
        ends = (boxes[:, None] - reach) / tiles.strides[:, None] - kinds.offset / TILE
        ends = ends.floor().long()
        first = ends[..., :2].clamp(min=0).minimum(limits)
        last = (ends[..., 2:] + 1).minimum(limits).maximum(first)
        region, tile = list_locations(
            torch.cat([first, last], dim=2).flatten(0, 1),
            torch.arange(num_levels).repeat(len(boxes)),
            tiles,
        )
        object_index = start + region // num_levels
        yield tile + objects.image_index[object_index] * tiles.num_locations, object_index


def _keep_best(
    best_iou: Tensor, best: Tensor, place: Tensor, pair_object: Tensor, iou: Tensor
) -> tuple[Tensor, Tensor]:
    """Update the highest IoU of places (Q,) and its object, the first of equals as in detectron2.

    Args:
        best_iou, best: (Q,) before, 0 and M where no pair was seen.
        place, pair_object, iou: (T,) of further pairs.
    """
    highest = best_iou.scatter_reduce(0, place, iou, "amax")
    best = best.masked_fill(highest > best_iou, torch.iinfo(best.dtype).max)
    first = torch.where(iou == highest[place], pair_object, torch.iinfo(best.dtype).max)
    return highest, best.scatter_reduce(0, place, first, "amin")


def paired_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """IoU of pairs, in the operations of detectron2's pairwise_iou and so to the last bit its."""
    size = torch.minimum(boxes[..., 2:], anchors[..., 2:])
    size = (size - torch.maximum(boxes[..., :2], anchors[..., :2])).clamp(min=0)
    intersection = size.prod(dim=-1)
    union = _area(boxes) + _area(anchors) - intersection
    return torch.where(intersection > 0, intersection / union, torch.zeros_like(intersection))


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
