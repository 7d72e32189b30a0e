"""AP loss: RetinaNet whose classes are learnt as one ranking (arXiv 1904.06373).

Letters: P positives of the batch. Boxes are (x0, y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from ..losses import AnchorPlaces, average_precision_loss, flat_anchor_logits
from .branch import Branch, register_branch, require_positive, require_weight
from .contract import LossTerm
from .one_stage import OneStageDetector
from .retinanet import AnchorBranch

# What the paper's code divides the gradients of boxes by, beside the number of positives.
BOX_DIVISOR = 4


@register_branch("ap_loss")
class APLossBranch(AnchorBranch):
    """RetinaNet's layers, matching and decoding; the ranking of all scores is penalised.

    The scores of the objects' classes at their anchors are to rank above all others: those of the
    other classes there, and of all classes at the background's anchors. The ranking is that of the
    batch of one process, as the paper's is that of one GPU's, over all images, anchors and classes;
    the losses of several processes are averaged, those without an object with 0. So N processes
    with a batch of B do not train as one with N times B; their boxes do.

    A ranking says nothing of how high its scores are, and its gradients sum to 0. The initial
    score, 0.01 as in the paper's code, thus is what those of the background stay at or fall from,
    and what they are cut at in detection.
    """

    loss_names = ("loss_ap_cls", "loss_ap_box_reg")
    count_name = "num_pos_ap"

    @configurable
    def __init__(self, *, delta: float = 1.0, loss_weight: float = 1.0, **shared) -> None:
        """
        Args:
            delta: see :func:`fsaf_d2.losses.average_precision_loss`.
            loss_weight: of both losses, beside those of other branches.
            shared: the arguments of :class:`AnchorBranch`.

        Raises:
            ValueError: an argument is out of its range; the message has the config key's name.
        """
        super().__init__(**shared)
        require_positive("MODEL.AP_LOSS.DELTA", delta)
        require_weight("MODEL.AP_LOSS.LOSS_WEIGHT", loss_weight)
        self.delta, self.loss_weight = delta, loss_weight
        # Its losses are divided by what they count themselves.
        del self.loss_normalizer

    @classmethod
    def add_config(cls, cfg: CfgNode) -> None:
        """Add ``MODEL.AP_LOSS``."""
        ap_loss = cfg.MODEL.AP_LOSS = CfgNode()
        # Sec. 3.4: delta of the piecewise step function, in logits. Scores that are further apart
        # are in order or not, nothing in between.
        ap_loss.DELTA = 1.0
        # Weight of its losses beside those of other branches. Not in the paper.
        ap_loss.LOSS_WEIGHT = 1.0

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Read AP loss's keys, and RetinaNet's for all else."""
        return {
            **super().from_config(cfg, input_shape),
            "delta": cfg.MODEL.AP_LOSS.DELTA,
            "loss_weight": cfg.MODEL.AP_LOSS.LOSS_WEIGHT,
        }

    def class_loss(
        self,
        logits: Sequence[Tensor],
        places: Sequence[AnchorPlaces],
        classes: Tensor,
        ignored: Sequence[AnchorPlaces],
    ) -> Tensor:
        """Compute the AP loss of all levels, images and classes together."""
        scores, positives, without = flat_anchor_logits(
            logits, places, classes, ignored, num_classes=self.num_classes
        )
        return average_precision_loss(scores, positives, without, delta=self.delta)

    def terms(self, cls_loss: Tensor, box_loss: Tensor, count: Tensor) -> dict[str, LossTerm]:
        """The ranking's loss, a mean over processes, and the boxes', one over 4 P."""
        # Deviates from the paper: in its code the 4 divides the gradients of boxes alone; here also
        # the loss that is logged. And P is that of all processes, not of each.
        terms = (
            LossTerm(cls_loss, torch.ones_like(count), self.loss_weight),
            LossTerm(box_loss, count, self.loss_weight / BOX_DIVISOR),
        )
        return dict(zip(self.loss_names, terms))

    def divisors(
        self, terms: Mapping[str, LossTerm], counts: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """What has been counted, without RetinaNet's running mean."""
        return Branch.divisors(self, terms, counts)


@META_ARCH_REGISTRY.register()
class APLossRetinaNet(OneStageDetector):
    """RetinaNet with AP loss: one branch, :class:`APLossBranch`."""

    @classmethod
    def branch_names(cls, cfg: CfgNode) -> list[str]:
        """That of AP loss, unless ``MODEL.BRANCHES`` says otherwise."""
        return list(cfg.MODEL.BRANCHES) or ["ap_loss"]
