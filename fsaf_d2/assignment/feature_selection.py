"""Which locations of which level answer for an object (FSAF, arXiv 1903.00621, Sec. 3.2-3.3).

Letters: N images; M objects, those of all images together; L levels; R locations of one image over
all levels, level after level and row by row within a level; K classes; T listed locations.
Boxes are (x0, y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from torch import Tensor

from ..losses import focal_loss, point_iou_loss
from .regions import Grid, list_locations, region_cells

# Distances from the centre of a point box to the sides of an object, in units of the point's side.
point_box_transform = Box2BoxTransformLinear(normalize_by_size=True)


class Objects(NamedTuple):
    """The objects of a batch, packed."""

    boxes: Tensor  # (M, 4)
    classes: Tensor  # (M,) in 0..K-1
    image_index: Tensor  # (M,) in 0..N-1


@dataclass(frozen=True)
class SelectionRule:
    """How objects choose their level and their locations.

    Args:
        effective_scale, ignore_scale: sides of an object's two regions, as shares of its box.
        level_selection: "online", by loss, or "heuristic", by size.
        canonical_level, canonical_box_size: of the heuristic, see :func:`select_levels_by_size`.

    Raises:
        ValueError: a value is out of its range; the message has the config key's name.
    """

    effective_scale: float = 0.2
    ignore_scale: float = 0.5
    level_selection: str = "online"
    canonical_level: int = 5
    canonical_box_size: float = 224

    def __post_init__(self) -> None:
        if self.level_selection not in ("online", "heuristic"):
            raise ValueError(
                "MODEL.FSAF.LEVEL_SELECTION must be 'online' or 'heuristic', not "
                f"{self.level_selection!r}."
            )
        if not 0 < self.effective_scale <= self.ignore_scale <= 1:
            raise ValueError(
                "MODEL.FSAF.EFFECTIVE_SCALE and MODEL.FSAF.IGNORE_SCALE must satisfy 0 < effective "
                f"<= ignore <= 1, not {self.effective_scale} and {self.ignore_scale}."
            )
        if not 0 < self.canonical_box_size < math.inf:
            raise ValueError(
                "MODEL.FSAF.CANONICAL_BOX_SIZE must be more than 0 and finite, not "
                f"{self.canonical_box_size}."
            )


class PointTargets(NamedTuple):
    """What every location of a batch shall answer."""

    labels: Tensor  # (N, R) in 0..K, K means background
    matched_boxes: Tensor  # (N, R, 4), undefined for the background
    ignored: Tensor  # (N, R, K) bool, True where a channel is neither positive nor negative


@torch.no_grad()
def label_points(
    point_logits: Tensor,
    point_deltas: Tensor,
    points: Tensor,
    objects: Objects,
    grid: Grid,
    rule: SelectionRule,
    *,
    focal_loss_alpha: float,
    focal_loss_gamma: float,
) -> tuple[Tensor, PointTargets]:
    """Select a level for every object and label all locations.

    Args:
        point_logits, point_deltas: (N, R, K) and (N, R, 4), the anchor-free predictions.
        points: (R, 4), the square boxes that deltas refer to.

    Returns:
        (M,) the levels, in 0..L-1, and the targets.
    """
    effective_cells = region_cells(objects.boxes, rule.effective_scale, grid)
    if rule.level_selection == "online":
        costs = level_costs(
            point_logits,
            point_deltas,
            points,
            objects,
            effective_cells,
            grid,
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
    ignore_cells = region_cells(objects.boxes, rule.ignore_scale, grid)
    num_images, num_locations, num_classes = point_logits.shape
    targets = assign_points(
        levels,
        effective_cells,
        ignore_cells,
        objects,
        grid,
        num_images=num_images,
        num_locations=num_locations,
        num_classes=num_classes,
    )
    return levels, targets


@torch.no_grad()
def level_costs(
    point_logits: Tensor,
    point_deltas: Tensor,
    points: Tensor,
    objects: Objects,
    effective_cells: Tensor,
    grid: Grid,
    *,
    focal_loss_alpha: float,
    focal_loss_gamma: float,
) -> Tensor:
    """Measure what each level would pay for each object (FSAF Eq. 1 and 2).

    The cost is the mean, over the whole effective region, of the focal loss summed over all K
    channels for the object's class plus the IoU loss of the location's box.

    Args:
        point_logits, point_deltas: (N, R, K) and (N, R, 4), the anchor-free predictions.
        points: (R, 4), the square boxes that deltas refer to.
        effective_cells: (M, L, 4), see :func:`region_cells`.

    Returns:
        (M, L) float32.
    """
    num_objects, num_levels = effective_cells.shape[:2]
    levels = torch.arange(num_levels, device=points.device).repeat(num_objects)
    region, location = list_locations(effective_cells.flatten(0, 1), levels, grid)
    index = region // num_levels
    row = objects.image_index[index] * len(points) + location

    focal_args = {"alpha": focal_loss_alpha, "gamma": focal_loss_gamma}
    logits = point_logits.flatten(0, 1)
    class_logits = logits[row, objects.classes[index]]
    background_loss = focal_loss(logits, 0, **focal_args).sum(dim=1)
    focal = background_loss[row] - focal_loss(class_logits, 0, **focal_args)
    focal += focal_loss(class_logits, 1, **focal_args)
    target_deltas = point_box_transform.get_deltas(points[location], objects.boxes[index])
    iou = point_iou_loss(point_deltas.flatten(0, 1)[row], target_deltas)

    # float64, so that levels of equal loss tie exactly whatever the sizes of their regions.
    total = torch.zeros(len(levels), dtype=torch.float64, device=points.device)
    total.index_add_(0, region, (focal + iou).double())
    count = torch.zeros_like(total).index_add_(0, region, torch.ones_like(total[region]))
    return (total / count).float().view(num_objects, num_levels)


def select_levels_online(costs: Tensor) -> Tensor:
    """Choose the level of least cost, the finer one of equals (FSAF Eq. 2): (M, L) -> (M,)."""
    return costs.argmin(dim=1)


def select_levels_by_size(
    boxes: Tensor, grid: Grid, *, canonical_level: int, canonical_box_size: float
) -> Tensor:
    """Choose the level by the box's size alone, floor(l0 + log2(sqrt(w h) / size)) (FSAF Eq. 3).

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
    num_locations: int,
    num_classes: int,
) -> PointTargets:
    """Turn the objects' levels into targets for every location (FSAF Sec. 3.2).

    On an object's level its effective region is positive for its class. On that level and the two
    beside it the ignoring region is ignored in the channel of its class alone, save where that
    channel is positive. Where effective regions meet the smaller object wins; the larger one's
    class is ignored there, being in its ignoring region. The objects' order plays no part.

    Args:
        levels: (M,), the selected level of each object.
        effective_cells, ignore_cells: (M, L, 4), see :func:`region_cells`.
    """
    device = levels.device
    each = torch.arange(len(levels), device=device)
    labels = torch.full((num_images * num_locations,), num_classes, device=device)
    boxes = objects.boxes.new_zeros((num_images * num_locations, 4))
    ignored = torch.zeros(
        (num_images * num_locations, num_classes), dtype=torch.bool, device=device
    )

    if len(levels) > 0:
        neighbours = levels[:, None] + torch.tensor([-1, 0, 1], device=device)
        neighbours = neighbours.clamp(0, len(grid.strides) - 1)
        cells = ignore_cells[each[:, None], neighbours]
        region, location = list_locations(cells.flatten(0, 1), neighbours.flatten(), grid)
        index = region // 3
        ignored[objects.image_index[index] * num_locations + location, objects.classes[index]] = (
            True
        )

        order = _smallest_first(objects)
        rank = torch.empty_like(order)
        rank[order] = each
        index, location = list_locations(effective_cells[each, levels], levels, grid)
        row = objects.image_index[index] * num_locations + location
        best = torch.full_like(labels, len(levels)).scatter_reduce(0, row, rank[index], "amin")
        positive = (best < len(levels)).nonzero().squeeze(1)
        winner = order[best[positive]]
        labels[positive] = objects.classes[winner]
        boxes[positive] = objects.boxes[winner]
        # Deviates from the paper: there, an ignoring region may cover a positive of the same class,
        # which is then lost; here an object keeps its locations.
        ignored[positive, objects.classes[winner]] = False

    shape = (num_images, num_locations)
    return PointTargets(
        labels.view(shape), boxes.view(*shape, 4), ignored.view(*shape, num_classes)
    )


def _smallest_first(objects: Objects) -> Tensor:
    """Sort objects by area; those of equal area by class and corners, never by their place."""
    x0, y0, x1, y1 = objects.boxes.unbind(dim=1)
    order = torch.arange(len(objects.boxes), device=objects.boxes.device)
    for key in (x0, y0, x1, y1, objects.classes, (x1 - x0) * (y1 - y0)):
        order = order[torch.argsort(key[order], stable=True)]
    return order
