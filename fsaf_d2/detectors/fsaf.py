"""FSAF: RetinaNet with an anchor-free branch on every level, trained jointly (arXiv 1903.00621).

Letters: N images; M objects of the batch; L levels; R locations of one image over all levels; K
classes. Boxes are (x0, y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from ..assignment.anchors import AnchorKinds
from ..assignment.coverage import count_locations_of
from ..assignment.feature_selection import SelectionRule, label_points, point_box_transform
from ..assignment.grid import Grid, to_device
from ..assignment.objects import Objects
from ..inference.candidates import Candidates
from ..inference.decode import decode_levels
from ..losses import background_loss_sums, point_loss_sums
from .branch import (
    LocationCounter,
    register_branch,
    require,
    require_positive,
    require_weight,
)
from .contract import LossTerm
from .focal_branch import FocalBranch
from .one_stage import OneStageDetector


class PointPredictions(NamedTuple):
    """The output of :class:`PointBranch`, a tensor per level."""

    point_logits: list[Tensor]  # (N, K, H, W)
    point_deltas: list[Tensor]  # (N, 4, H, W), distances >= 0 in units of BOX_NORMALIZER strides


@register_branch("point")
class PointBranch(FocalBranch):
    """The anchor-free branch of FSAF, with online feature selection (Sec. 3).

    Every object is assigned to the level whose predictions for it cost least, and to a small region
    about its centre there.

    Attributes:
        selected_levels: (M,) in 0..L-1, which the objects of the last losses have selected.
    """

    loss_names = ("loss_point_cls", "loss_point_box_reg")
    step_keys = ("MODEL.FSAF.HEURISTIC_STEPS",)

    @configurable
    def __init__(
        self,
        *,
        strides: Sequence[int],
        selection_rule: SelectionRule | None = None,
        heuristic_steps: int = 0,
        loss_weight: float = 0.5,
        box_normalizer: float = 4.0,
        bbox_bias: float = 0.1,
        **shared,
    ) -> None:
        """
        Args:
            strides: of the levels, in pixels.
            selection_rule: how objects choose level and locations; the paper's by default.
            heuristic_steps: so many first steps of training select levels by size in any case.
            loss_weight: lambda.
            box_normalizer: S, strides that a predicted distance of 1 is.
            bbox_bias: initial value of the four distances.
            shared: the arguments of :class:`FocalBranch`.

        Raises:
            ValueError: an argument is out of its range; the message has the config key's name.
        """
        super().__init__(**shared)
        self.selection_rule = selection_rule or SelectionRule()
        point_offset = self.selection_rule.point_offset
        require_weight("MODEL.FSAF.LOSS_WEIGHT", loss_weight)
        require_positive("MODEL.FSAF.BOX_NORMALIZER", box_normalizer)
        # Below 0 the ReLU has no gradient anywhere, and the branch could never learn.
        require_positive("MODEL.FSAF.BBOX_BIAS", bbox_bias)
        require(heuristic_steps >= 0, "MODEL.FSAF.HEURISTIC_STEPS", "at least 0", heuristic_steps)
        self.cls_score = self.class_layer()
        self.bbox_pred = self.output_layer(4, bbox_bias)
        self.strides = list(strides)
        # One square box about every location, whose side is the unit of the predicted distances.
        self.kinds = AnchorKinds.of_points(self.strides, box_normalizer, point_offset)
        self.heuristic_steps, self.loss_weight = heuristic_steps, loss_weight
        self.selected_levels = torch.zeros(0, dtype=torch.int64)
        self._selects_by_size = False

    @classmethod
    def add_config(cls, cfg: CfgNode) -> None:
        """Add ``MODEL.FSAF``; sections are those of the paper."""
        fsaf = cfg.MODEL.FSAF = CfgNode()
        # Sec. 3.2. Sides of the effective and the ignoring region, as shares of the object's box.
        fsaf.EFFECTIVE_SCALE, fsaf.IGNORE_SCALE = 0.2, 0.5
        # Sec. 3.2. S: a predicted distance of 1 is S strides of the level, in image pixels.
        fsaf.BOX_NORMALIZER = 4.0
        # Where in its cell a location lies, in cells: its pixel is (x + POINT_OFFSET) * stride.
        fsaf.POINT_OFFSET = 0.5
        # Sec. 3.3. "online": the level of least loss; "heuristic": by box size, Eq. 3.
        fsaf.LEVEL_SELECTION = "online"
        # Eq. 3: a box with sqrt(width * height) = CANONICAL_BOX_SIZE pixels is CANONICAL_LEVEL's
        # (5 is the level of stride 2^5).
        fsaf.CANONICAL_LEVEL, fsaf.CANONICAL_BOX_SIZE = 5, 224
        # So many first steps of training select by box size in any case: the losses of a network
        # that has learnt little say little about levels. Not in the paper.
        fsaf.HEURISTIC_STEPS = 0
        # Sec. 3.4. lambda, the losses' weight beside the anchor branch's; and the initial value of
        # the four predicted distances, in units of S strides.
        fsaf.LOSS_WEIGHT, fsaf.BBOX_BIAS = 0.5, 0.1
        # One that is False is left out of MODEL.BRANCHES, or of the two that stand for none.
        fsaf.ANCHOR_BRANCH, fsaf.ANCHOR_FREE_BRANCH = True, True
        # Suppress within each level of each branch before all levels are merged and suppressed.
        fsaf.NMS_PER_LEVEL = False

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Read FSAF's keys, and RetinaNet's for what both have."""
        fsaf = cfg.MODEL.FSAF
        return {
            **super().from_config(cfg, input_shape),
            "strides": [shape.stride for shape in input_shape],
            "selection_rule": _selection_rule(cfg),
            "heuristic_steps": fsaf.HEURISTIC_STEPS,
            "loss_weight": fsaf.LOSS_WEIGHT,
            "box_normalizer": fsaf.BOX_NORMALIZER,
            "bbox_bias": fsaf.BBOX_BIAS,
        }

    @classmethod
    def location_counter(cls, cfg: CfgNode) -> LocationCounter:
        """Counts the cells of effective regions."""
        return functools.partial(count_locations_of, rule=_selection_rule(cfg))

    @classmethod
    def notes(cls, cfg: CfgNode) -> list[str]:
        """Say that no step is left to online selection, where that is so."""
        steps = cfg.MODEL.FSAF.HEURISTIC_STEPS
        if cfg.MODEL.FSAF.LEVEL_SELECTION != "online" or not 0 < cfg.SOLVER.MAX_ITER <= steps:
            return []
        return [
            f"MODEL.FSAF.HEURISTIC_STEPS {steps}: in none of the {cfg.SOLVER.MAX_ITER} steps do "
            "objects select their level online. Lower it, or train longer."
        ]

    def at_step(self, step: int) -> None:
        """Select by size in the first steps, if so many were asked for."""
        self._selects_by_size = step < self.heuristic_steps

    def forward(self, class_features: list[Tensor], box_features: list[Tensor]) -> PointPredictions:
        """Predict a class and four distances at every location."""
        return PointPredictions(
            [self.cls_score(x) for x in class_features],
            [F.relu(self.bbox_pred(x)) for x in box_features],
        )

    def losses(
        self, predictions: PointPredictions, objects: Objects, grid: Grid
    ) -> dict[str, LossTerm]:
        """Sum the focal and IoU losses (Sec. 3.2, 3.4); both have the number of positives below."""
        logits, deltas = (
            torch.cat([level.flatten(2) for level in levels], dim=2) for levels in predictions
        )
        deltas, device = deltas.transpose(1, 2), logits.device
        points = self._points(grid, device)
        by_size = {"level_selection": "heuristic"} if self._selects_by_size else {}
        rule = dataclasses.replace(self.selection_rule, **by_size)
        focal_args = {f"focal_loss_{name}": x for name, x in self.focal_loss.items()}
        background_losses = background_loss_sums(logits, **self.focal_loss)
        levels, targets = label_points(
            logits.transpose(1, 2),
            deltas,
            points,
            objects,
            grid,
            rule,
            background_losses=background_losses,
            **focal_args,
        )
        positive = targets.object_index < len(objects.boxes)
        focal_loss, iou_loss = point_loss_sums(
            logits,
            deltas,
            targets.planes,
            targets.labels,
            positive,
            _target_deltas(points, objects, targets.object_index),
            background_losses=background_losses,
            **focal_args,
        )
        # Deviates from the paper: a location in two effective regions counts once, and the batch
        # is that of all processes.
        count = positive.sum().float()
        each_level = torch.arange(len(grid.strides), device=levels.device)
        num_objects = (levels[:, None] == each_level).sum(dim=0)
        self.counted = {"num_pos_points": count / len(logits), "num_objects": num_objects}
        self.selected_levels = levels
        return {
            "loss_point_cls": LossTerm(focal_loss, count, self.loss_weight),
            "loss_point_box_reg": LossTerm(iou_loss, count, self.loss_weight),
        }

    def _points(self, grid: Grid, device: torch.device) -> Tensor:
        """The square boxes of all locations, (R, 4)."""
        device_grid = Grid(*to_device(torch.stack(grid), device))
        index = torch.arange(grid.num_locations, device=device)
        return self.kinds.to(device).boxes(index, device_grid)

    def decode(self, predictions: PointPredictions, grid: Grid) -> list[Candidates]:
        """Decode the best locations of each level."""
        return decode_levels(
            *predictions,
            self.kinds,
            point_box_transform.apply_deltas,
            grid,
            **self.decoding,
        )


@META_ARCH_REGISTRY.register()
class FSAF(OneStageDetector):
    """RetinaNet's anchors joined by the anchor-free branch, as the paper has them."""

    @classmethod
    def branch_names(cls, cfg: CfgNode) -> list[str]:
        """Both, unless ``MODEL.BRANCHES`` or a switch says otherwise."""
        fsaf = cfg.MODEL.FSAF
        switches = {"anchor": fsaf.ANCHOR_BRANCH, "point": fsaf.ANCHOR_FREE_BRANCH}
        names = [x for x in cfg.MODEL.BRANCHES or switches if switches.get(x, True)]
        if not names:
            raise ValueError(
                "MODEL.FSAF.ANCHOR_BRANCH and MODEL.FSAF.ANCHOR_FREE_BRANCH leave no branch on: "
                "a detector needs one."
            )
        return names

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Read the arguments from a config."""
        args = super().from_config(cfg)
        suppression = dataclasses.replace(
            args["suppression"], nms_per_level=cfg.MODEL.FSAF.NMS_PER_LEVEL
        )
        return {**args, "suppression": suppression}


def _selection_rule(cfg: CfgNode) -> SelectionRule:
    fsaf = cfg.MODEL.FSAF
    try:
        return SelectionRule(
            effective_scale=fsaf.EFFECTIVE_SCALE,
            ignore_scale=fsaf.IGNORE_SCALE,
            level_selection=fsaf.LEVEL_SELECTION,
            canonical_level=fsaf.CANONICAL_LEVEL,
            canonical_box_size=fsaf.CANONICAL_BOX_SIZE,
            point_offset=fsaf.POINT_OFFSET,
        )
    except ValueError as error:
        raise ValueError(f"MODEL.FSAF.{error}") from error


def _target_deltas(points: Tensor, objects: Objects, object_index: Tensor) -> Tensor:
    """Distances from locations to the sides of their objects: (N, R, 4)."""
    boxes = to_device(F.pad(objects.boxes, (0, 0, 0, 1)), points.device)[object_index]
    deltas = point_box_transform.get_deltas(points.repeat(len(boxes), 1), boxes.flatten(0, 1))
    return deltas.view_as(boxes)
