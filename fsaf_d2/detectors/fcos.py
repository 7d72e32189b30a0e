"""FCOS: a class, four distances and a centerness at every location (arXiv 1904.01355, 2006.09214).

Letters: N images; M objects of the batch; L levels; P positive locations; K classes. Boxes are
(x0, y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor
from torch.nn import functional as F

from ..assignment.anchors import AnchorKinds, locate
from ..assignment.center_sampling import sample_centers
from ..assignment.centerness import centerness
from ..assignment.feature_selection import point_box_transform
from ..assignment.grid import Grid, to_device
from ..assignment.objects import Objects
from ..heads.scale import LevelScales
from ..inference.candidates import Candidates
from ..inference.decode import decode_levels, geometric_mean
from ..losses import anchor_focal_loss_sums, gather_anchor_deltas, point_giou_loss
from .branch import register_branch, require, require_positive, require_weight
from .contract import LossTerm
from .focal_branch import FocalBranch
from .one_stage import OneStageDetector

# The location losses are divided by the sum of centerness, which may be less than 1.
_LEAST_CENTERNESS = 1e-6


class FCOSPredictions(NamedTuple):
    """The output of :class:`FCOSBranch`, a tensor per level."""

    fcos_logits: list[Tensor]  # (N, K, H, W)
    fcos_deltas: list[Tensor]  # (N, 4, H, W), distances >= 0 in strides of the level
    fcos_centerness: list[Tensor]  # (N, 1, H, W), logits


@register_branch("fcos")
class FCOSBranch(FocalBranch):
    """FCOS with its later improvements.

    They are centre sampling, GIoU loss weighted by centerness, centerness on the box tower,
    distances in strides with a learnable scale for each level, and the square root of class score
    times centerness as the score.
    """

    loss_names = ("loss_fcos_cls", "loss_fcos_box_reg", "loss_fcos_centerness")

    @configurable
    def __init__(
        self,
        *,
        strides: Sequence[int],
        size_limits: Sequence[float] = (64, 128, 256, 512),
        center_radius: float = 1.5,
        point_offset: float = 0.5,
        loss_weight: float = 1.0,
        **shared,
    ) -> None:
        """
        Args:
            strides: of the levels, in pixels.
            size_limits: (L - 1,) pixels; see :func:`sample_centers`.
            center_radius: in strides.
            point_offset: where in its cell a location lies, in cells.
            loss_weight: of all three losses, beside those of other branches.
            shared: the arguments of :class:`FocalBranch`.

        Raises:
            ValueError: an argument is out of its range; the message has the config key's name.
        """
        super().__init__(**shared)
        limits = list(size_limits)
        require(
            len(limits) == len(strides) - 1 and limits == sorted(set(limits)),
            "MODEL.FCOS.SIZE_LIMITS",
            f"{len(strides) - 1} rising numbers, one less than levels",
            size_limits,
        )
        require_positive("MODEL.FCOS.CENTER_RADIUS", center_radius)
        require(0 <= point_offset < 1, "point_offset", "at least 0 and less than 1", point_offset)
        require_weight("MODEL.FCOS.LOSS_WEIGHT", loss_weight)
        self.cls_score = self.class_layer()
        self.bbox_pred = self.output_layer(4)
        self.centerness = self.output_layer(1)
        self.scales = LevelScales(len(strides))
        self.kinds = AnchorKinds.of_points(strides, 1.0, point_offset)
        self.size_limits, self.center_radius = limits, center_radius
        self.loss_weight = loss_weight

    @classmethod
    def add_config(cls, cfg: CfgNode) -> None:
        """Add ``MODEL.FCOS``."""
        fcos = cfg.MODEL.FCOS = CfgNode()
        # Table 1 of arXiv 2006.09214. Level l answers where the largest distance to a side, in
        # pixels, lies between two of them.
        fcos.SIZE_LIMITS = [64, 128, 256, 512]
        # Sec. 2.3 there. In strides: only locations so near an object's centre answer for it.
        fcos.CENTER_RADIUS = 1.5
        # Weight of its losses beside those of other branches. Not in the paper.
        fcos.LOSS_WEIGHT = 1.0

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Read FCOS's keys, and RetinaNet's for what both have."""
        fcos = cfg.MODEL.FCOS
        return {
            **super().from_config(cfg, input_shape),
            "strides": [shape.stride for shape in input_shape],
            "size_limits": fcos.SIZE_LIMITS,
            "center_radius": fcos.CENTER_RADIUS,
            "loss_weight": fcos.LOSS_WEIGHT,
        }

    def forward(self, class_features: list[Tensor], box_features: list[Tensor]) -> FCOSPredictions:
        """Predict at every location."""
        return FCOSPredictions(
            [self.cls_score(x) for x in class_features],
            [F.relu(x) for x in self.scales([self.bbox_pred(x) for x in box_features])],
            [self.centerness(x) for x in box_features],
        )

    def losses(
        self, predictions: FCOSPredictions, objects: Objects, grid: Grid
    ) -> dict[str, LossTerm]:
        """Sum the three losses.

        The focal loss and the cross entropy of centerness are divided by the number of positives,
        the GIoU loss, weighted by centerness, by the sum of these weights.
        """
        logits, deltas, center_logits = predictions
        device, num_images = logits[0].device, len(logits[0])
        positives = sample_centers(
            objects,
            grid,
            num_images=num_images,
            size_limits=self.size_limits,
            radius=self.center_radius,
            point_offset=self.kinds.offset,
        )
        places = locate(positives.image_index, positives.location, 1, grid, device)
        nowhere = locate(positives.image_index[:0], positives.location[:0], 1, grid, device)
        classes = to_device(objects.classes[positives.object_index], device)
        cls_losses = anchor_focal_loss_sums(
            logits, places, classes, nowhere, num_classes=self.num_classes, **self.focal_loss
        )
        levels = torch.bucketize(positives.location, grid.starts, right=True) - 1
        targets = positives.distances / grid.strides[levels, None]
        weights = to_device(centerness(targets), device)
        giou = point_giou_loss(gather_anchor_deltas(deltas, places), to_device(targets, device))
        centers = torch.cat(
            [x[image, 0, y, x_] for x, (image, _, y, x_) in zip(center_logits, places)]
        )
        center_loss = F.binary_cross_entropy_with_logits(centers, weights, reduction="sum")
        count = torch.full((), float(len(classes)), device=device)
        self.counted = {"num_pos_fcos": count / num_images}
        terms = (
            LossTerm(sum(cls_losses), count, self.loss_weight),
            LossTerm((giou * weights).sum(), weights.sum(), self.loss_weight, _LEAST_CENTERNESS),
            LossTerm(center_loss, count, self.loss_weight),
        )
        return dict(zip(self.loss_names, terms))

    def decode(self, predictions: FCOSPredictions, grid: Grid) -> list[Candidates]:
        """Decode the best locations of each level; score^2 = class score times centerness."""
        return decode_levels(
            predictions.fcos_logits,
            predictions.fcos_deltas,
            self.kinds,
            point_box_transform.apply_deltas,
            grid,
            **self.decoding,
            quality=predictions.fcos_centerness,
            combine=geometric_mean,
        )


@META_ARCH_REGISTRY.register()
class PointFCOS(OneStageDetector):
    """FCOS: one branch, :class:`FCOSBranch`; with ``MODEL.RETINANET.NORM`` "GN" as published."""

    @classmethod
    def branch_names(cls, cfg: CfgNode) -> list[str]:
        """FCOS's, unless ``MODEL.BRANCHES`` says otherwise."""
        return list(cfg.MODEL.BRANCHES) or ["fcos"]
