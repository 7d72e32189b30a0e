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
from ..assignment.feature_selection import point_box_transform
from ..assignment.grid import Grid, to_device
from ..assignment.objects import Objects
from ..inference.candidates import Candidates
from ..losses import gather_anchor_deltas, point_giou_loss
from .branch import register_branch, require, require_positive, require_weight
from .centerness_branch import CenternessBranch
from .contract import LossTerm
from .one_stage import OneStageDetector


class FCOSPredictions(NamedTuple):
    """The output of :class:`FCOSBranch`, a tensor per level."""

    fcos_logits: list[Tensor]  # (N, K, H, W)
    fcos_deltas: list[Tensor]  # (N, 4, H, W), distances >= 0 in strides of the level
    fcos_centerness: list[Tensor]  # (N, 1, H, W), logits


@register_branch("fcos")
class FCOSBranch(CenternessBranch):
    """FCOS with its later improvements.

    They are centre sampling, distances in strides, and those of :class:`CenternessBranch`.
    """

    loss_names = ("loss_fcos_cls", "loss_fcos_box_reg", "loss_fcos_centerness")
    count_name = "num_pos_fcos"

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
            shared: further arguments of :class:`CenternessBranch`.

        Raises:
            ValueError: an argument is out of its range; the message has the config key's name.
        """
        super().__init__(strides=strides, loss_weight=loss_weight, **shared)
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
        self.kinds = AnchorKinds.of_points(strides, 1.0, point_offset)
        self.size_limits, self.center_radius = limits, center_radius

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
        """Sum the three losses, see :meth:`terms`."""
        logits, deltas, center_logits = predictions
        device = logits[0].device
        positives = sample_centers(
            objects,
            grid,
            num_images=len(logits[0]),
            size_limits=self.size_limits,
            radius=self.center_radius,
            point_offset=self.kinds.offset,
        )
        places = locate(positives.image_index, positives.location, 1, grid, device)
        levels = torch.bucketize(positives.location, grid.starts, right=True) - 1
        targets = positives.distances / grid.strides[levels, None]
        giou = point_giou_loss(gather_anchor_deltas(deltas, places), to_device(targets, device))
        classes = objects.classes[positives.object_index]
        return self.terms(logits, center_logits, places, classes, targets, giou)

    def decode(self, predictions: FCOSPredictions, grid: Grid) -> list[Candidates]:
        """Decode the best locations of each level."""
        return self.decode_on(self.kinds, point_box_transform.apply_deltas, predictions, grid)


@META_ARCH_REGISTRY.register()
class PointFCOS(OneStageDetector):
    """FCOS: one branch, :class:`FCOSBranch`; with ``MODEL.RETINANET.NORM`` "GN" as published."""

    @classmethod
    def branch_names(cls, cfg: CfgNode) -> list[str]:
        """FCOS's, unless ``MODEL.BRANCHES`` says otherwise."""
        return list(cfg.MODEL.BRANCHES) or ["fcos"]
