"""RetinaNet (arXiv 1708.02002): anchors, matched by IoU, with focal loss.

Letters: N images; M objects of the batch; L levels; A anchors per location; K classes. Boxes are
(x0, y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_anchor_generator
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.structures import Boxes
from fvcore.nn import smooth_l1_loss
from torch import Tensor

from ..assignment.anchor_matching import AnchorMatches, match_anchors
from ..assignment.anchors import AnchorKinds, locate
from ..assignment.grid import Grid, to_device
from ..assignment.objects import Objects
from ..inference.candidates import Candidates
from ..inference.decode import decode_levels
from ..losses import AnchorPlaces, anchor_focal_loss_sums, gather_anchor_deltas
from .branch import register_branch
from .contract import LossTerm
from .focal_branch import FocalBranch
from .one_stage import OneStageDetector

# RetinaNet's running mean of the positive anchors: its first value and the weight of a new one.
INITIAL_NORMALIZER = 100.0
MOMENTUM = 0.1


class AnchorPredictions(NamedTuple):
    """The output of :class:`AnchorBranch`, a tensor per level."""

    logits: list[Tensor]  # (N, A * K, H, W)
    anchor_deltas: list[Tensor]  # (N, A * 4, H, W)


@register_branch("anchor")
class AnchorBranch(FocalBranch):
    """RetinaNet's two output layers, with the labels and losses of detectron2's.

    That is so also where detectron2 deviates from the paper (L1 box loss, running mean of the
    positives as normalizer); only the way they are computed is another. The running mean is that of
    the positives of all processes' batches, so that N processes with a batch of B train as one does
    with a batch of N * B.
    """

    loss_names = ("loss_cls", "loss_box_reg")
    # Under this name the log has the number of positives an image.
    count_name = "num_pos_anchors"
    clips_candidates = False

    @configurable
    def __init__(
        self,
        *,
        anchor_generator: DefaultAnchorGenerator,
        iou_thresholds: Sequence[float] = (0.4, 0.5),
        iou_labels: Sequence[int] = (0, -1, 1),
        box_reg_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        box_reg_loss_type: str = "smooth_l1",
        smooth_l1_beta: float = 0.0,
        **shared,
    ) -> None:
        """
        Args:
            anchor_generator: of as many anchors on every level.
            iou_thresholds, iou_labels: as of detectron2's Matcher; an object keeps its best anchors
                whatever their IoU.
            box_reg_weights, box_reg_loss_type, smooth_l1_beta: as of detectron2's RetinaNet.
            shared: the arguments of :class:`FocalBranch`.

        Raises:
            ValueError: levels have different numbers of anchors.
        """
        super().__init__(**shared)
        if len(set(anchor_generator.num_anchors)) != 1:
            raise ValueError(
                "MODEL.ANCHOR_GENERATOR gives different numbers of anchors on the levels "
                f"({anchor_generator.num_anchors}): all must have as many."
            )
        num_anchors = anchor_generator.num_anchors[0]
        self.cls_score = self.class_layer(num_anchors)
        self.bbox_pred = self.output_layer(num_anchors * 4)
        self.register_buffer("loss_normalizer", torch.tensor(INITIAL_NORMALIZER))
        # Objects are matched on the CPU, where they come from, while a GPU computes the network.
        self.kinds = AnchorKinds.of_generator(anchor_generator)
        self.iou_thresholds, self.iou_labels = list(iou_thresholds), list(iou_labels)
        self.box2box_transform = Box2BoxTransform(weights=tuple(box_reg_weights))
        self.box_reg_loss_type, self.smooth_l1_beta = box_reg_loss_type, smooth_l1_beta

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Read RetinaNet's keys."""
        retinanet = cfg.MODEL.RETINANET
        return {
            **super().from_config(cfg, input_shape),
            "anchor_generator": build_anchor_generator(cfg, input_shape),
            "iou_thresholds": retinanet.IOU_THRESHOLDS,
            "iou_labels": retinanet.IOU_LABELS,
            "box_reg_weights": retinanet.BBOX_REG_WEIGHTS,
            "box_reg_loss_type": retinanet.BBOX_REG_LOSS_TYPE,
            "smooth_l1_beta": retinanet.SMOOTH_L1_LOSS_BETA,
        }

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
        if "loss_normalizer" in self._buffers:
            # Weights that were trained elsewhere lack the running mean: it starts anew.
            state_dict.setdefault(f"{prefix}loss_normalizer", torch.tensor(INITIAL_NORMALIZER))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(
        self, class_features: list[Tensor], box_features: list[Tensor]
    ) -> AnchorPredictions:
        """Predict classes and box deltas of all anchors."""
        return AnchorPredictions(
            [self.cls_score(x) for x in class_features], [self.bbox_pred(x) for x in box_features]
        )

    def losses(
        self, predictions: AnchorPredictions, objects: Objects, grid: Grid
    ) -> dict[str, LossTerm]:
        """Sum RetinaNet's losses; they are detectron2's up to rounding.

        What is background is never listed or compared.
        """
        logits, deltas = predictions
        device, num_images = logits[0].device, len(logits[0])
        positives, ignored = self.assign(objects, grid, num_images)
        places, ignored_places = (
            locate(x.image_index, x.anchor_index, self.kinds.num_per_location, grid, device)
            for x in (positives, ignored)
        )
        classes = to_device(objects.classes[positives.object_index], device)
        cls_loss = self.class_loss(logits, places, classes, ignored_places)
        box_loss = self.box_loss(
            gather_anchor_deltas(deltas, places),
            self.kinds.boxes(positives.anchor_index, grid),
            objects.boxes[positives.object_index],
        )
        count = torch.full((), float(len(positives.labels)), device=device)
        self.counted = {self.count_name: count / num_images}
        return self.terms(cls_loss, box_loss, count)

    def assign(
        self, objects: Objects, grid: Grid, num_images: int
    ) -> tuple[AnchorMatches, AnchorMatches]:
        """Say which anchors are objects', and which have no class loss; see :meth:`losses`."""
        matches = match_anchors(
            self.kinds,
            objects,
            grid,
            num_images=num_images,
            thresholds=self.iou_thresholds,
            labels=self.iou_labels,
        )
        positives, ignored = (
            AnchorMatches(*(field[matches.labels == label] for field in matches))
            for label in (1, -1)
        )
        return positives, ignored

    def class_loss(
        self,
        logits: Sequence[Tensor],
        places: Sequence[AnchorPlaces],
        classes: Tensor,
        ignored: Sequence[AnchorPlaces],
    ) -> Tensor:
        """Sum the loss of all classes, see :func:`fsaf_d2.losses.anchor_focal_loss_sums`."""
        sums = anchor_focal_loss_sums(
            logits, places, classes, ignored, num_classes=self.num_classes, **self.focal_loss
        )
        return sum(sums)

    def terms(self, cls_loss: Tensor, box_loss: Tensor, count: Tensor) -> dict[str, LossTerm]:
        """The two losses, of that many positives."""
        return dict(zip(self.loss_names, (LossTerm(cls_loss, count), LossTerm(box_loss, count))))

    def divisors(
        self, terms: Mapping[str, LossTerm], counts: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The running mean of the positives, which takes note of this step."""
        count = counts[self.loss_names[0]].clamp(min=1)
        self.loss_normalizer.mul_(1 - MOMENTUM).add_(count, alpha=MOMENTUM)
        return dict.fromkeys(terms, self.loss_normalizer)

    def box_loss(self, deltas: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Sum detectron2's box loss over P pairs of anchor and object.

        Args:
            deltas: (P, 4), predicted.
            anchors, boxes: (P, 4), on the CPU.
        """
        device = deltas.device
        if self.box_reg_loss_type == "smooth_l1":
            target_deltas = to_device(self.box2box_transform.get_deltas(anchors, boxes), device)
            return smooth_l1_loss(deltas, target_deltas, self.smooth_l1_beta, reduction="sum")
        # fvcore's IoU losses wait for a GPU.
        return _dense_box_regression_loss(
            [Boxes(to_device(anchors, device))],
            self.box2box_transform,
            [deltas[None]],
            [to_device(boxes, device)],
            ...,
            box_reg_loss_type=self.box_reg_loss_type,
        )

    def decode(self, predictions: AnchorPredictions, grid: Grid) -> list[Candidates]:
        """Decode the best anchors of each level."""
        return decode_levels(
            *predictions,
            self.kinds,
            self.box2box_transform.apply_deltas,
            grid,
            **self.decoding,
        )


@META_ARCH_REGISTRY.register()
class AnchorRetinaNet(OneStageDetector):
    """RetinaNet: one branch, of anchors. detectron2's own is registered as ``RetinaNet``."""

    @classmethod
    def branch_names(cls, cfg: CfgNode) -> list[str]:
        """The anchors, unless ``MODEL.BRANCHES`` says otherwise."""
        return list(cfg.MODEL.BRANCHES) or ["anchor"]
