"""AutoAssign: objects learn where they are answered for (arXiv 2007.03496).

Letters: N images; M objects of the batch; B those that hold a location; L levels; R locations of
one image over all levels; K classes. Boxes are (x0, y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from ..assignment.anchors import AnchorKinds
from ..assignment.feature_selection import point_box_transform
from ..assignment.grid import Grid, to_device
from ..assignment.inside_boxes import Bags, fill_bags, points_of
from ..assignment.objects import Objects
from ..heads.scale import LevelScales
from ..inference.candidates import Candidates
from ..inference.decode import decode_levels
from ..losses.autoassign_loss import (
    BagTables,
    best_ious,
    prior_losses,
    prior_table,
    shares_of_planes,
    sum_bags,
)
from ..losses.product_focal_loss import product_background_loss_sum
from .branch import register_branch, require, require_positive, require_weight
from .contract import LossTerm
from .focal_branch import FocalBranch


class AutoAssignPredictions(NamedTuple):
    """The output of :class:`AutoAssignBranch`, a tensor per level."""

    autoassign_logits: list[Tensor]  # (N, K, H, W)
    autoassign_deltas: list[Tensor]  # (N, 4, H, W), distances >= 0 in strides of the level
    autoassign_objectness: list[Tensor]  # (N, 1, H, W), logits


class CenterPrior(nn.Module):
    """Where, about the centre of an object, locations answer for it: learnt for each class."""

    def __init__(self, num_classes: int) -> None:
        """
        Args:
            num_classes: K.
        """
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(num_classes, 2))  # x and y, in strides
        self.sigma = nn.Parameter(torch.ones(num_classes, 2))

    def forward(self, centers: Tensor, classes: Tensor) -> Tensor:
        """Look up what :func:`fsaf_d2.losses.autoassign_loss.prior_table` has for some objects."""
        return prior_table(centers, self.mean, self.sigma, classes)


@register_branch("autoassign")
class AutoAssignBranch(FocalBranch):
    """A class, four distances and an implicit objectness at every location.

    No location is an object's beforehand. All that lie in its box, on all levels, are its bag; how
    much each counts follows from where it lies (a prior learnt for each class) and from what it
    predicts. What predicts no object's box well is background.
    """

    loss_names = ("loss_autoassign_positive", "loss_autoassign_negative", "loss_autoassign_prior")

    @configurable
    def __init__(
        self,
        *,
        strides: Sequence[int],
        point_offset: float = 0.5,
        bbox_bias: float = 4.0,
        prior_loss_weight: float = 0.75,
        loss_weight: float = 1.0,
        prior_prob: float = 0.02,
        **shared,
    ) -> None:
        """
        Args:
            strides: of the levels, in pixels.
            point_offset: where in its cell a location lies, in cells.
            bbox_bias: initial value of the four distances, in strides.
            prior_loss_weight: of the third loss; those of the first two are alpha and 1 - alpha of
                the focal loss, 1 and 1 for a negative alpha.
            loss_weight: of all three losses, beside those of other branches.
            prior_prob, shared: the arguments of :class:`FocalBranch`.

        Raises:
            ValueError: an argument is out of its range; the message has the config key's name.
        """
        section = "MODEL.AUTOASSIGN"
        require(0 < prior_prob < 1, f"{section}.PRIOR_PROB", "between 0 and 1", prior_prob)
        super().__init__(prior_prob=prior_prob, **shared)
        require(
            0 <= point_offset < 1,
            f"{section}.POINT_OFFSET",
            "at least 0 and less than 1",
            point_offset,
        )
        # Below 0 the ReLU has no gradient anywhere, and the branch could never learn.
        require_positive(f"{section}.BBOX_BIAS", bbox_bias)
        require_weight(f"{section}.PRIOR_LOSS_WEIGHT", prior_loss_weight)
        require_weight(f"{section}.LOSS_WEIGHT", loss_weight)
        self.cls_score = self.class_layer()
        self.bbox_pred = self.output_layer(4, bbox_bias)
        self.objectness = self.output_layer(1)
        self.scales = LevelScales(len(strides))
        self.center_prior = CenterPrior(self.num_classes)
        self.kinds = AnchorKinds.of_points(strides, 1.0, point_offset)
        alpha = self.focal_loss["alpha"]
        weights = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
        self.loss_weights = [loss_weight * x for x in (*weights, prior_loss_weight)]

    @classmethod
    def add_config(cls, cfg: CfgNode) -> None:
        """Add ``MODEL.AUTOASSIGN``; sections are those of the paper."""
        autoassign = cfg.MODEL.AUTOASSIGN = CfgNode()
        # Where in its cell a location lies, in cells: its pixel is (x + POINT_OFFSET) * stride.
        autoassign.POINT_OFFSET = 0.5
        # Sec. 4.1. The initial score of every class, and the initial value of the four predicted
        # distances, in strides.
        autoassign.PRIOR_PROB, autoassign.BBOX_BIAS = 0.02, 4.0
        # Of the loss that keeps centre priors from vanishing. Those of the other two are
        # MODEL.RETINANET.FOCAL_LOSS_ALPHA and 1 - alpha (Sec. 3.4). In the authors' code.
        autoassign.PRIOR_LOSS_WEIGHT = 0.75
        # Weight of its losses beside those of other branches. Not in the paper.
        autoassign.LOSS_WEIGHT = 1.0

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Read AutoAssign's keys, and RetinaNet's for what both have."""
        autoassign = cfg.MODEL.AUTOASSIGN
        return {
            **super().from_config(cfg, input_shape),
            "strides": [shape.stride for shape in input_shape],
            "point_offset": autoassign.POINT_OFFSET,
            "bbox_bias": autoassign.BBOX_BIAS,
            "prior_loss_weight": autoassign.PRIOR_LOSS_WEIGHT,
            "loss_weight": autoassign.LOSS_WEIGHT,
            "prior_prob": autoassign.PRIOR_PROB,
        }

    def forward(
        self, class_features: list[Tensor], box_features: list[Tensor]
    ) -> AutoAssignPredictions:
        """Predict at every location."""
        return AutoAssignPredictions(
            [self.cls_score(x) for x in class_features],
            [F.relu(x) for x in self.scales([self.bbox_pred(x) for x in box_features])],
            [self.objectness(x) for x in box_features],
        )

    def losses(
        self, predictions: AutoAssignPredictions, objects: Objects, grid: Grid
    ) -> dict[str, LossTerm]:
        """Sum the three losses (Sec. 3.4).

        The first is -ln of what each bag finds, divided by the number of objects; one that holds no
        location on any level has no bag and adds nothing, but is counted. The second is the focal
        loss of all scores, class times objectness, but for what is objects'; it is divided by the
        sum of the centre priors in all bags. The third is the mean over images of their number of
        objects divided by that sum of the image's, 0 for an image without bags.
        """
        logits, deltas, objectness = (
            torch.cat([level.flatten(2) for level in levels], dim=2) for levels in predictions
        )
        objectness, device = objectness.squeeze(1), logits.device
        bags = fill_bags(objects, grid, point_offset=self.kinds.offset)
        tables, list_pairs = self._tables(bags, grid, logits), bags.pairs(grid, device)
        boxes, priors = self._boxes(deltas, grid), self._priors(bags, grid, logits)
        found = sum_bags(logits, objectness, boxes, priors, tables, list_pairs)
        ious = best_ious(boxes, *_by_image(objects, logits))
        planes = torch.unique(self._planes(bags))
        shares = shares_of_planes(ious, to_device(planes, device), tables, list_pairs)
        negative = product_background_loss_sum(
            logits, objectness, planes, shares, gamma=self.focal_loss["gamma"]
        )
        # Images with bags, counted from 0, and how many objects each has.
        which, image = torch.unique(bags.objects.image_index, return_inverse=True)
        num_objects = torch.bincount(objects.image_index, minlength=len(logits))[which]
        prior = prior_losses(found.priors, to_device(image, device), to_device(num_objects, device))
        prior_sum = found.priors.detach().sum()
        self.counted = {"num_pos_autoassign": prior_sum / len(logits)}
        totals = found.loss, negative, prior.sum()
        counts = _scalar(len(objects.boxes), logits), prior_sum, _scalar(len(logits), logits)
        return dict(zip(self.loss_names, map(LossTerm, totals, counts, self.loss_weights)))

    def _planes(self, bags: Bags) -> Tensor:
        """Image * K + class of each bag, (B,), on the CPU."""
        return bags.objects.image_index * self.num_classes + bags.objects.classes

    def _tables(self, bags: Bags, grid: Grid, logits: Tensor) -> BagTables:
        """What is known of the bags, where and as the logits are."""
        boxes = bags.objects.boxes.T.to(logits.dtype)
        indices = bags.objects.image_index, self._planes(bags)
        points = points_of(grid, logits.device, self.kinds.offset).to(logits.dtype)
        return BagTables(*(to_device(x, logits.device) for x in (boxes, *indices)), points)

    def _priors(self, bags: Bags, grid: Grid, logits: Tensor) -> Tensor:
        """What the centre prior has for the bags, (4, B * L), as the logits are."""
        centers = to_device(bags.centers(grid).to(logits.dtype), logits.device)
        return self.center_prior(centers, to_device(bags.objects.classes, logits.device))

    def _boxes(self, deltas: Tensor, grid: Grid) -> Tensor:
        """Decode all locations' distances: (N, 4, R) -> (4, N, R)."""
        device = deltas.device
        device_grid = Grid(*to_device(torch.stack(grid), device))
        index = torch.arange(grid.num_locations, device=device)
        points = self.kinds.to(device).boxes(index, device_grid)
        sides = deltas.transpose(0, 1).flatten(1).T
        boxes = point_box_transform.apply_deltas(sides, points.repeat(len(deltas), 1))
        return boxes.T.unflatten(1, (len(deltas), -1))

    def decode(self, predictions: AutoAssignPredictions, grid: Grid) -> list[Candidates]:
        """Decode the best locations of each level; the score is class score times objectness."""
        return decode_levels(
            predictions.autoassign_logits,
            predictions.autoassign_deltas,
            self.kinds,
            point_box_transform.apply_deltas,
            grid,
            **self.decoding,
            quality=predictions.autoassign_objectness,
        )


def _by_image(objects: Objects, like: Tensor) -> tuple[Tensor, list[int]]:
    """The boxes of objects, (4, M), image by image, and how many each image has."""
    there = torch.isfinite(objects.boxes).all(dim=1)
    image = objects.image_index[there]
    boxes = objects.boxes[there][torch.argsort(image, stable=True)]
    counts = torch.bincount(image, minlength=len(like)).tolist()
    return to_device(boxes.T.to(like.dtype), like.device), counts


def _scalar(value: int, like: Tensor) -> Tensor:
    return torch.full((), float(value), device=like.device)
