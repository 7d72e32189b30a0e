"""Which locations of which level answer for an object (arXiv 1903.00621, Sec. 3.2-3.3).

Letters: N images; M objects, those of all images together; L levels; R locations of one image over
all levels, level after level and row by row within a level; K classes; T listed locations; U pairs
of image and class that have an object. Boxes are (x0, y0, x1, y1) in pixels of the network's input.

Objects and their regions are on the CPU. What depends on predictions is on the predictions' device
and of a size that is known beforehand, so that nothing waits for a GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from torch import Tensor
from torch.nn import functional as F

from ..losses import focal_loss, point_iou_loss
from .grid import Grid, count_locations, list_locations, split_by_total, to_device
from .objects import Objects, smallest_first
from .regions import region_cells

# Distances from the centre of a point box to the sides of an object, in units of the point's side.
point_box_transform = Box2BoxTransformLinear(normalize_by_size=True)


# Locations listed at a time: bounds the memory that many large objects take.
MAX_LISTED = 1 << 19


@dataclass(frozen=True)
class SelectionRule:
    """How objects choose their level and their locations.

    Args:
        effective_scale, ignore_scale: sides of an object's two regions, as shares of its box.
        level_selection: "online", by loss, or "heuristic", by size.
        canonical_level, canonical_box_size: of the heuristic, see :func:`select_levels_by_size`.
        point_offset: where in its cell a location lies, in cells.

    Raises:
        ValueError: a value is out of its range; the message has the config key's name.
    """

    effective_scale: float = 0.2
    ignore_scale: float = 0.5
    level_selection: str = "online"
    canonical_level: int = 5
    canonical_box_size: float = 224
    point_offset: float = 0.5

    def __post_init__(self) -> None:
        if self.level_selection not in ("online", "heuristic"):
            raise ValueError(
                f"LEVEL_SELECTION must be 'online' or 'heuristic', not {self.level_selection!r}."
            )
        if not 0 < self.effective_scale <= self.ignore_scale <= 1:
            raise ValueError(
                "EFFECTIVE_SCALE and IGNORE_SCALE must satisfy 0 < effective "
                f"<= ignore <= 1, not {self.effective_scale} and {self.ignore_scale}."
            )
        if not 0 <= self.point_offset < 1:
            raise ValueError(
                f"POINT_OFFSET must be at least 0 and less than 1, not {self.point_offset}."
            )
        if not 0 < self.canonical_box_size < math.inf:
            raise ValueError(
                f"CANONICAL_BOX_SIZE must be more than 0 and finite, not {self.canonical_box_size}."
            )


class PointTargets(NamedTuple):
    """What every location of a batch shall answer."""

    object_index: Tensor  # (N, R) the object it answers for, M means background
    planes: Tensor  # (U,) image * K + class of every pair that has an object, rising
    labels: Tensor  # (U, R) int8 in such a pair's channel: 1 positive, -1 ignored, 0 background


@torch.no_grad()
def label_points(
    logits: Tensor,
    deltas: Tensor,
    points: Tensor,
    objects: Objects,
    grid: Grid,
    rule: SelectionRule,
    *,
    background_losses: Tensor,
    focal_loss_alpha: float,
    focal_loss_gamma: float,
) -> tuple[Tensor, PointTargets]:
    """Select a level for every object and label all locations.

    Args:
        logits, deltas, points, background_losses: see :func:`level_costs`.

    Returns:
        (M,) the levels, in 0..L-1, and the targets.
    """
    effective_cells, ignore_cells = (
        region_cells(objects.boxes, scale, grid, point_offset=rule.point_offset)
        for scale in (rule.effective_scale, rule.ignore_scale)
    )
    if rule.level_selection == "online":
        costs = level_costs(
            logits,
            deltas,
            points,
            objects,
            effective_cells,
            grid,
            background_losses=background_losses,
            focal_loss_alpha=focal_loss_alpha,
            focal_loss_gamma=focal_loss_gamma,
        )
        levels = select_levels_online(costs)
    else:
        levels = select_levels_by_size(
            objects.boxes,
            grid,
            canonical_level=rule.canonical_level,
            canonical_box_size=rule.canonical_box_size,
        )
    targets = assign_points(
        to_device(levels, logits.device),
        effective_cells,
        ignore_cells,
        objects,
        grid,
        num_images=len(logits),
        num_classes=logits.shape[2],
    )
    return levels, targets


@torch.no_grad()
def level_costs(
    logits: Tensor,
    deltas: Tensor,
    points: Tensor,
    objects: Objects,
    effective_cells: Tensor,
    grid: Grid,
    *,
    background_losses: Tensor,
    focal_loss_alpha: float,
    focal_loss_gamma: float,
) -> Tensor:
    """Measure what each level would pay for each object (Eq. 1 and 2).

    The cost is the mean, over the whole effective region, of the focal loss summed over all K
    channels for the object's class plus the IoU loss of the location's box.

    Args:
        logits, deltas: (N, R, K) and (N, R, 4), the anchor-free predictions.
        points: (R, 4), the square boxes that deltas refer to.
        effective_cells: (M, L, 4), see :func:`region_cells`.
        background_losses: (N, R), the focal loss of a location without object, of all channels.

    Returns:
        (M, L) float32.
    """
    num_levels = len(grid.strides)
    costs = [points.new_zeros((0, num_levels))]
    focal_args = {"alpha": focal_loss_alpha, "gamma": focal_loss_gamma}
    boxes, classes, image_index = (to_device(field, points.device) for field in objects)
    for part in split_by_total(_num_listed(effective_cells), MAX_LISTED):
        cells = effective_cells[part]
        levels = torch.arange(num_levels).repeat(len(cells))
        region, location = list_locations(cells.flatten(0, 1), levels, grid, points.device)
        index = part.start + region // num_levels
        image, box = image_index[index], boxes[index]

        class_logits = logits[image, location, classes[index]]
        focal = background_losses[image, location] - focal_loss(class_logits, 0, **focal_args)
        focal += focal_loss(class_logits, 1, **focal_args)
        target_deltas = point_box_transform.get_deltas(points[location], box)
        iou = point_iou_loss(deltas[image, location], target_deltas)

        # float64, so that levels of equal loss tie exactly whatever the sizes of their regions.
        total = torch.zeros(len(levels), dtype=torch.float64, device=points.device)
        total.index_add_(0, region, (focal + iou).double())
        count = to_device(count_locations(cells), points.device)
        costs.append((total.view_as(count) / count).float())
    return torch.cat(costs)


def _num_listed(cells: Tensor) -> Tensor:
    return count_locations(cells).sum(dim=1)


def select_levels_online(costs: Tensor) -> Tensor:
    """Choose the level of least cost, the finer one of equals (Eq. 2): (M, L) -> (M,)."""
    return costs.argmin(dim=1)


def select_levels_by_size(
    boxes: Tensor, grid: Grid, *, canonical_level: int, canonical_box_size: float
) -> Tensor:
    """Choose the level by the box's size alone, floor(l0 + log2(sqrt(w h) / size)) (Eq. 3).

    Args:
        boxes: (M, 4).
        canonical_level: l0; level l has stride 2^l.
        canonical_box_size: in pixels.

    Returns:
        (M,) in 0..L-1, clamped to the levels there are.
    """
    width, height = (boxes[:, 2:] - boxes[:, :2]).double().clamp(min=0).unbind(dim=1)
    level = torch.floor(canonical_level + torch.log2((width * height).sqrt() / canonical_box_size))
    finest, coarsest = torch.log2(grid.strides[[0, -1]].double())
    return (level.clamp(finest, coarsest) - finest).long()


@torch.no_grad()
def assign_points(
    levels: Tensor,
    effective_cells: Tensor,
    ignore_cells: Tensor,
    objects: Objects,
    grid: Grid,
    *,
    num_images: int,
    num_classes: int,
) -> PointTargets:
    """Turn the objects' levels into targets for every location (Sec. 3.2).

    On an object's level its effective region is positive for its class. On that level and the two
    beside it the ignoring region is ignored in the channel of its class alone, save where that
    channel is positive. Where effective regions meet the smaller object wins; the larger one's
    class is ignored there, being in its ignoring region. The objects' order plays no part.

    Args:
        levels: (M,), the selected level of each object, on the device of the result.
        effective_cells, ignore_cells: (M, L, 4), see :func:`region_cells`.
    """
    object_index = smallest_objects(levels, effective_cells, objects, grid, num_images)
    planes, plane_index = torch.unique(
        objects.image_index * num_classes + objects.classes, return_inverse=True
    )
    ignored = _cover(levels, ignore_cells, plane_index, grid, len(planes))
    # Deviates from the paper: there, an ignoring region may cover a positive of the same class,
    # which is then lost; here an object keeps its locations. The background writes to a plane that
    # is left out.
    labels = torch.cat([-ignored.to(torch.int8), ignored.new_zeros((1, grid.num_locations))])
    plane = to_device(F.pad(plane_index, (0, 1), value=len(planes)), levels.device)[object_index]
    labels.scatter_(0, plane, 1)
    return PointTargets(object_index, to_device(planes, levels.device), labels[:-1])


def smallest_objects(
    levels: Tensor, effective_cells: Tensor, objects: Objects, grid: Grid, num_images: int
) -> Tensor:
    """Find the smallest object whose effective region a location is in: (N, R), M for none."""
    num_objects, num_levels = effective_cells.shape[:2]
    order = smallest_first(objects)
    rank = to_device(torch.argsort(order), levels.device)
    image_index = to_device(objects.image_index, levels.device)
    shape = (num_images * grid.num_locations,)
    best = torch.full(shape, num_objects, device=levels.device)
    for part in split_by_total(_num_listed(effective_cells), MAX_LISTED):
        cells = effective_cells[part]
        level = torch.arange(num_levels).repeat(len(cells))
        region, location = list_locations(cells.flatten(0, 1), level, grid, levels.device)
        index = part.start + region // num_levels
        chosen = region % num_levels == levels[index]
        row = image_index[index] * grid.num_locations + location
        best.scatter_reduce_(0, row, torch.where(chosen, rank[index], num_objects), "amin")
    by_rank = to_device(F.pad(order, (0, 1), value=num_objects), levels.device)
    return by_rank[best].view(num_images, -1)


def _cover(
    levels: Tensor, cells: Tensor, plane_index: Tensor, grid: Grid, num_planes: int
) -> Tensor:
    """Mark what regions on an object's level and the two beside it cover, in the object's plane.

    Args:
        levels: (M,), on the device of the result.
        cells: (M, L, 4), ranges of the regions on every level.
        plane_index: (M,) in 0..U-1.

    Returns:
        (U, R) bool.
    """
    num_levels, stride = len(grid.strides), grid.num_locations + 1
    first_columns = cells.flatten(0, 1).clone()
    first_columns[:, 2] = first_columns[:, 0] + 1
    level = torch.arange(num_levels).repeat(len(cells))
    region, begin = list_locations(first_columns, level, grid, levels.device)
    index = region // num_levels
    # A row of cells is an interval of locations. Along all of them its start counts one up and its
    # end one down, so that their running sum counts the rows that a location lies in.
    plane_index, widths = (
        to_device(x, levels.device)
        for x in (plane_index, (cells[..., 2] - cells[..., 0]).flatten())
    )
    begin += plane_index[index] * stride
    step = ((region % num_levels - levels[index]).abs() <= 1).to(torch.int32)
    changes = step.new_zeros(num_planes * stride)
    changes.index_add_(0, begin, step).index_add_(0, begin + widths[region], -step)
    return changes.view(num_planes, stride).cumsum(dim=1, dtype=torch.int32)[:, :-1] > 0
