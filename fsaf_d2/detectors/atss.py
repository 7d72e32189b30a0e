"""ATSS: one anchor a location, chosen by each object's own threshold (arXiv 1912.02424).

Letters: N images; M objects of the batch; L levels; P positive anchors; K classes. Boxes are (x0,
y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor
from torch.nn import functional as F

from ..assignment.adaptive_selection import assign_atss
from ..assignment.anchors import AnchorKinds, locate
from ..assignment.centerness import centerness
from ..assignment.feature_selection import point_box_transform
from ..assignment.grid import Grid, to_device
from ..assignment.objects import Objects
from ..heads.scale import LevelScales
from ..inference.candidates import Candidates
from ..inference.decode import decode_levels, geometric_mean
from ..losses import anchor_focal_loss_sums, box_giou_loss, gather_anchor_deltas
from .branch import register_branch, require, require_positive, require_weight
from .contract import LossTerm
from .focal_branch import FocalBranch

# The box loss is divided by the sum of centerness, which may be less than 1.
_LEAST_CENTERNESS = 1e-6


class ATSSPredictions(NamedTuple):
    """The output of :class:`ATSSBranch`, a tensor per level."""

    atss_logits: list[Tensor]  # (N, K, H, W)
    atss_deltas: list[Tensor]  # (N, 4, H, W), of detectron2's Box2BoxTransform
    atss_centerness: list[Tensor]  # (N, 1, H, W), logits


@register_branch("atss")
class ATSSBranch(FocalBranch):
    """RetinaNet with one square anchor a location, and FCOS's centerness.

    What is new is who answers for an object, see :func:`assign_atss`.
    """

    loss_names = ("loss_atss_cls", "loss_atss_box_reg", "loss_atss_centerness")

    @configurable
    def __init__(
        self,
        *,
        strides: Sequence[int],
        anchor_size: float = 8.0,
        top_k: int = 9,
        point_offset: float = 0.5,
        bbox_reg_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
        box_weight: float = 2.0,
        loss_weight: float = 1.0,
        **shared,
    ) -> None:
        """
        Args:
            strides: of the levels, in pixels.
            anchor_size: side of the anchors, in strides.
            top_k: see :func:`assign_atss`.
            point_offset: where in its cell an anchor's centre lies, in cells.
            bbox_reg_weights: of detectron2's Box2BoxTransform.
            box_weight: of the GIoU loss.
            loss_weight: of all three losses, beside those of other branches.
            shared: the arguments of :class:`FocalBranch`.

        Raises:
            ValueError: an argument is out of its range; the message has the config key's name.
        """
        super().__init__(**shared)
        require_positive("MODEL.ATSS.ANCHOR_SIZE", anchor_size)
        require(top_k >= 1, "MODEL.ATSS.TOP_K", "at least 1", top_k)
        allowed = "at least 0 and less than 1"
        require(0 <= point_offset < 1, "MODEL.ATSS.POINT_OFFSET", allowed, point_offset)
        key, allowed = "MODEL.ATSS.BBOX_REG_WEIGHTS", "four numbers more than 0"
        fits = len(bbox_reg_weights) == 4 and all(weight > 0 for weight in bbox_reg_weights)
        require(fits, key, allowed, bbox_reg_weights)
        for key, value in (("BOX", box_weight), ("LOSS", loss_weight)):
            require_weight(f"MODEL.ATSS.{key}_WEIGHT", value)
        self.cls_score = self.class_layer()
        self.bbox_pred = self.output_layer(4)
        self.centerness = self.output_layer(1)
        self.scales = LevelScales(len(strides))
        self.anchors = AnchorKinds.of_points(strides, anchor_size, point_offset)
        self.box2box_transform = Box2BoxTransform(weights=tuple(bbox_reg_weights))
        self.top_k = top_k
        self.weights = (loss_weight, loss_weight * box_weight, loss_weight)

    @classmethod
    def add_config(cls, cfg: CfgNode) -> None:
        """Add ``MODEL.ATSS``."""
        atss = cfg.MODEL.ATSS = CfgNode()
        # Sec. 3.1: side of the square anchors, in strides of the level.
        atss.ANCHOR_SIZE = 8.0
        # Alg. 1: so many cells of each level are candidates for an object.
        atss.TOP_K = 9
        # Where in its cell an anchor's centre lies, in cells. mmdetection's weights need 0.
        atss.POINT_OFFSET = 0.5
        # Of the authors' code: weights of the deltas and of the GIoU loss.
        atss.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
        atss.BOX_WEIGHT = 2.0
        # Weight of its losses beside those of other branches. Not in the paper.
        atss.LOSS_WEIGHT = 1.0

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Read ATSS's keys, and RetinaNet's for what both have."""
        return {
            **super().from_config(cfg, input_shape),
            **{name.lower(): value for name, value in cfg.MODEL.ATSS.items()},
            "strides": [shape.stride for shape in input_shape],
        }

    def forward(self, class_features: list[Tensor], box_features: list[Tensor]) -> ATSSPredictions:
        """Predict at every location."""
        return ATSSPredictions(
            [self.cls_score(x) for x in class_features],
            self.scales([self.bbox_pred(x) for x in box_features]),
            [self.centerness(x) for x in box_features],
        )

    def losses(
        self, predictions: ATSSPredictions, objects: Objects, grid: Grid
    ) -> dict[str, LossTerm]:
        """Sum the three losses.

        The focal loss and the cross entropy of centerness are divided by the number of positives,
        the GIoU loss, weighted by centerness, by the sum of these weights.
        """
        logits, deltas, center_logits = predictions
        device, num_images = logits[0].device, len(logits[0])
        positives = assign_atss(
            self.anchors, objects, grid, num_images=num_images, top_k=self.top_k
        )
        index = positives.anchor_index
        places = locate(positives.image_index, index, 1, grid, device)
        nowhere = locate(positives.image_index[:0], index[:0], 1, grid, device)
        cls_losses = anchor_focal_loss_sums(
            logits,
            places,
            to_device(objects.classes[positives.object_index], device),
            nowhere,
            num_classes=self.num_classes,
            **self.focal_loss,
        )
        anchors, boxes = self.anchors.boxes(index, grid), objects.boxes[positives.object_index]
        weights = to_device(centerness(point_box_transform.get_deltas(anchors, boxes)), device)
        pred_boxes = self.box2box_transform.apply_deltas(
            gather_anchor_deltas(deltas, places), to_device(anchors, device)
        )
        giou = box_giou_loss(pred_boxes, to_device(boxes, device))
        centers = gather_anchor_deltas(center_logits, places, 1).squeeze(1)
        center_loss = F.binary_cross_entropy_with_logits(centers, weights, reduction="sum")
        count = torch.full((), float(len(index)), device=device)
        self.counted = {"num_pos_atss": count / num_images}
        totals = (sum(cls_losses), (giou * weights).sum(), center_loss)
        counts, least = (count, weights.sum(), count), (1.0, _LEAST_CENTERNESS, 1.0)
        return dict(zip(self.loss_names, map(LossTerm, totals, counts, self.weights, least)))

    def decode(self, predictions: ATSSPredictions, grid: Grid) -> list[Candidates]:
        """Decode the best anchors of each level; score^2 = class score times centerness."""
        return decode_levels(
            predictions.atss_logits,
            predictions.atss_deltas,
            self.anchors,
            self.box2box_transform.apply_deltas,
            grid,
            **self.decoding,
            quality=predictions.atss_centerness,
            combine=geometric_mean,
        )
