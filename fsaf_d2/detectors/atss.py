"""ATSS: one anchor a location, chosen by each object's own threshold (arXiv 1912.02424).

Letters: N images; M objects of the batch; L levels; P positive anchors; K classes. Boxes are (x0,
y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor

from ..assignment.adaptive_selection import assign_atss
from ..assignment.anchors import AnchorKinds, locate
from ..assignment.feature_selection import point_box_transform
from ..assignment.grid import Grid, to_device
from ..assignment.objects import Objects
from ..inference.candidates import Candidates
from ..losses import box_giou_loss, gather_anchor_deltas
from .branch import register_branch, require, require_positive, require_weight
from .centerness_branch import CenternessBranch
from .contract import LossTerm


class ATSSPredictions(NamedTuple):
    """The output of :class:`ATSSBranch`, a tensor per level."""

    atss_logits: list[Tensor]  # (N, K, H, W)
    atss_deltas: list[Tensor]  # (N, 4, H, W), of detectron2's Box2BoxTransform
    atss_centerness: list[Tensor]  # (N, 1, H, W), logits


@register_branch("atss")
class ATSSBranch(CenternessBranch):
    """RetinaNet with one square anchor a location, and FCOS's centerness.

    What is new is who answers for an object, see :func:`assign_atss`.
    """

    loss_names = ("loss_atss_cls", "loss_atss_box_reg", "loss_atss_centerness")
    count_name = "num_pos_atss"

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
        super().__init__(strides=strides, loss_weight=loss_weight, box_weight=box_weight, **shared)
        require_positive("MODEL.ATSS.ANCHOR_SIZE", anchor_size)
        require(top_k >= 1, "MODEL.ATSS.TOP_K", "at least 1", top_k)
        allowed = "at least 0 and less than 1"
        require(0 <= point_offset < 1, "MODEL.ATSS.POINT_OFFSET", allowed, point_offset)
        key, allowed = "MODEL.ATSS.BBOX_REG_WEIGHTS", "four numbers more than 0"
        fits = len(bbox_reg_weights) == 4 and all(weight > 0 for weight in bbox_reg_weights)
        require(fits, key, allowed, bbox_reg_weights)
        for key, value in (("BOX", box_weight), ("LOSS", loss_weight)):
            require_weight(f"MODEL.ATSS.{key}_WEIGHT", value)
        self.anchors = AnchorKinds.of_points(strides, anchor_size, point_offset)
        self.box2box_transform = Box2BoxTransform(weights=tuple(bbox_reg_weights))
        self.top_k = top_k

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
        """Sum the three losses, see :meth:`terms`."""
        logits, deltas, center_logits = predictions
        device = logits[0].device
        positives = assign_atss(
            self.anchors, objects, grid, num_images=len(logits[0]), top_k=self.top_k
        )
        index = positives.anchor_index
        places = locate(positives.image_index, index, 1, grid, device)
        anchors, boxes = self.anchors.boxes(index, grid), objects.boxes[positives.object_index]
        pred_boxes = self.box2box_transform.apply_deltas(
            gather_anchor_deltas(deltas, places), to_device(anchors, device)
        )
        giou = box_giou_loss(pred_boxes, to_device(boxes, device))
        distances = point_box_transform.get_deltas(anchors, boxes)
        classes = objects.classes[positives.object_index]
        return self.terms(logits, center_logits, places, classes, distances, giou)

    def decode(self, predictions: ATSSPredictions, grid: Grid) -> list[Candidates]:
        """Decode the best anchors of each level."""
        return self.decode_on(self.anchors, self.box2box_transform.apply_deltas, predictions, grid)
