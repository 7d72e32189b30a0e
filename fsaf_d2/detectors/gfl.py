"""GFL: scores that are qualities, and distances that are distributions (arXiv 2006.04388).

Letters: N images; M objects of the batch; L levels; P positive locations; K classes; n the largest
bin. Boxes are (x0, y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..assignment.adaptive_selection import assign_atss
from ..assignment.anchors import AnchorKinds, locate
from ..assignment.feature_selection import point_box_transform
from ..assignment.grid import Grid, to_device
from ..assignment.objects import Objects
from ..heads.scale import LevelScales
from ..inference.candidates import Candidates
from ..inference.decode import decode_levels
from ..losses import (
    distribution_focal_loss,
    expected_bin,
    gather_anchor_deltas,
    point_giou_loss,
    point_iou,
    quality_focal_loss_sums,
)
from .branch import register_branch, require, require_positive, require_weight
from .contract import LossTerm
from .focal_branch import FocalBranch

# The losses of boxes are divided by the sum of the positives' scores, which may be less than 1.
_LEAST_SCORE = 1e-6
# So far below the last bin the targets of distributions end, as in the authors' code.
_MARGIN = 0.1


class GFLPredictions(NamedTuple):
    """The output of :class:`GFLBranch`, a tensor per level."""

    gfl_logits: list[Tensor]  # (N, K, H, W)
    # Logits of the bins of the distances to the left, top, right and bottom side.
    gfl_distributions: list[Tensor]  # (N, 4 * (n + 1), H, W)


class Integral(nn.Module):
    """From distributions to distances.

    Attributes:
        project: (n + 1,) the distances that bins stand for, in strides; weights contain it.
    """

    def __init__(self, reg_max: int) -> None:
        """
        Args:
            reg_max: n.
        """
        super().__init__()
        self.register_buffer("project", torch.arange(reg_max + 1.0))

    def forward(self, bin_logits: Tensor) -> Tensor:
        """Take the mean of each distribution: (..., 4 * (n + 1)) -> (..., 4)."""
        return expected_bin(bin_logits.unflatten(-1, (4, len(self.project))), self.project)


@register_branch("gfl")
class GFLBranch(FocalBranch):
    """Generalized focal loss on ATSS's anchors, without a branch for centerness.

    The score of an object's class learns the IoU of the location's box with the object; a distance
    is the mean of a learnt distribution over 0, 1, ..., n strides.
    """

    loss_names = ("loss_gfl_cls", "loss_gfl_box_reg", "loss_gfl_dfl")

    @configurable
    def __init__(
        self,
        *,
        strides: Sequence[int],
        reg_max: int = 16,
        beta: float = 2.0,
        anchor_size: float = 8.0,
        top_k: int = 9,
        point_offset: float = 0.5,
        box_weight: float = 2.0,
        dfl_weight: float = 0.25,
        loss_weight: float = 1.0,
        **shared,
    ) -> None:
        """
        Args:
            strides: of the levels, in pixels.
            reg_max: n, the largest distance that can be said, in strides.
            beta: see :func:`fsaf_d2.losses.quality_focal_loss`.
            anchor_size: side of the anchors that objects are compared with, in strides.
            top_k: see :func:`assign_atss`.
            point_offset: where in its cell a location lies, in cells.
            box_weight, dfl_weight: of the GIoU loss and of the distribution focal loss.
            loss_weight: of all three losses, beside those of other branches.
            shared: the arguments of :class:`FocalBranch`; of the focal loss's, none is used.

        Raises:
            ValueError: an argument is out of its range; the message has the config key's name.
        """
        super().__init__(**shared)
        require(reg_max >= 1, "MODEL.GFL.REG_MAX", "at least 1", reg_max)
        require(beta == 0 or beta >= 1, "MODEL.GFL.BETA", "0 or at least 1", beta)
        require_positive("MODEL.GFL.ANCHOR_SIZE", anchor_size)
        require(top_k >= 1, "MODEL.GFL.TOP_K", "at least 1", top_k)
        allowed = "at least 0 and less than 1"
        require(0 <= point_offset < 1, "MODEL.GFL.POINT_OFFSET", allowed, point_offset)
        for key, value in (("BOX", box_weight), ("DFL", dfl_weight), ("LOSS", loss_weight)):
            require_weight(f"MODEL.GFL.{key}_WEIGHT", value)
        self.cls_score = self.class_layer()
        self.bbox_pred = self.output_layer(4 * (reg_max + 1))
        self.scales = LevelScales(len(strides))
        self.integral = Integral(reg_max)
        # What distances refer to, and what the assignment compares.
        self.points = AnchorKinds.of_points(strides, 1.0, point_offset)
        self.anchors = AnchorKinds.of_points(strides, anchor_size, point_offset)
        self.reg_max, self.beta, self.top_k = reg_max, beta, top_k
        self.weights = tuple(loss_weight * weight for weight in (1.0, box_weight, dfl_weight))

    @classmethod
    def add_config(cls, cfg: CfgNode) -> None:
        """Add ``MODEL.GFL``; where nothing else is said, as in Sec. 3 and 4 of the paper."""
        gfl = cfg.MODEL.GFL = CfgNode()
        # The largest distance to a side, in strides of the level.
        gfl.REG_MAX = 16
        # How much scores are left alone that are nearly right: what FOCAL_LOSS_GAMMA is to the
        # focal loss. There is no FOCAL_LOSS_ALPHA.
        gfl.BETA = 2.0
        # Side of the square anchors, in strides; cells of a level that are candidates for an object
        # (ATSS, arXiv 1912.02424, Sec. 3.1 and Alg. 1).
        gfl.ANCHOR_SIZE = 8.0
        gfl.TOP_K = 9
        # Where in its cell a location lies, in cells. mmdetection's weights need 0.
        gfl.POINT_OFFSET = 0.5
        # Weights of the GIoU loss and of the distribution focal loss.
        gfl.BOX_WEIGHT = 2.0
        gfl.DFL_WEIGHT = 0.25
        # Weight of its losses beside those of other branches. Not in the paper.
        gfl.LOSS_WEIGHT = 1.0

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Read GFL's keys, and RetinaNet's for what both have."""
        return {
            **super().from_config(cfg, input_shape),
            **{name.lower(): value for name, value in cfg.MODEL.GFL.items()},
            "strides": [shape.stride for shape in input_shape],
        }

    def forward(self, class_features: list[Tensor], box_features: list[Tensor]) -> GFLPredictions:
        """Predict at every location."""
        return GFLPredictions(
            [self.cls_score(x) for x in class_features],
            self.scales([self.bbox_pred(x) for x in box_features]),
        )

    def losses(
        self, predictions: GFLPredictions, objects: Objects, grid: Grid
    ) -> dict[str, LossTerm]:
        """Sum the three losses.

        The quality focal loss of all locations is divided by the number of positives; the GIoU loss
        and the distribution focal loss of each positive, weighted by its best score, by the sum of
        these weights.
        """
        logits, distributions = predictions
        device, num_images = logits[0].device, len(logits[0])
        positives = assign_atss(
            self.anchors, objects, grid, num_images=num_images, top_k=self.top_k
        )
        places = locate(positives.image_index, positives.anchor_index, 1, grid, device)
        owner = positives.object_index
        targets = point_box_transform.get_deltas(
            self.points.boxes(positives.anchor_index, grid), objects.boxes[owner]
        )
        targets = to_device(targets, device)
        bin_logits = gather_anchor_deltas(distributions, places, 4 * (self.reg_max + 1))
        distances = self.integral(bin_logits)
        with torch.no_grad():
            quality = point_iou(distances, targets)
            weights = gather_anchor_deltas(logits, places, self.num_classes).amax(dim=1).sigmoid()
        cls_losses = quality_focal_loss_sums(
            logits,
            places,
            to_device(objects.classes[owner], device),
            quality,
            num_classes=self.num_classes,
            beta=self.beta,
        )
        giou = point_giou_loss(distances, targets)
        bins = bin_logits.unflatten(1, (4, self.reg_max + 1))
        dfl = distribution_focal_loss(bins, targets.clamp(0, self.reg_max - _MARGIN)).mean(dim=1)
        count = torch.full((), float(len(owner)), device=device)
        self.counted = {"num_pos_gfl": count / num_images}
        totals = (sum(cls_losses), (giou * weights).sum(), (dfl * weights).sum())
        counts = (count, weights.sum(), weights.sum())
        least = (1.0, _LEAST_SCORE, _LEAST_SCORE)
        terms = map(LossTerm, totals, counts, self.weights, least)
        return dict(zip(self.loss_names, terms))

    def decode(self, predictions: GFLPredictions, grid: Grid) -> list[Candidates]:
        """Decode the best locations of each level."""
        return decode_levels(*predictions, self.points, self.apply_bins, grid, **self.decoding)

    def apply_bins(self, bin_logits: Tensor, boxes: Tensor) -> Tensor:
        """Boxes of the mean distances: (T, 4 * (n + 1)) on boxes of one stride (T, 4)."""
        return point_box_transform.apply_deltas(self.integral(bin_logits), boxes)
