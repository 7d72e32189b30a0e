"""AP loss: RetinaNet whose classes are learnt as one ranking (arXiv 1904.06373).

Letters: P positives of the batch. Boxes are (x0, y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor

from ..losses import AnchorPlaces, anchor_class_places, average_precision_loss
from .branch import register_branch, require_positive, require_weight
from .ranking_branch import RankingBranch


@register_branch("ap_loss")
class APLossBranch(RankingBranch):
    """The scores of the objects' classes at their anchors are to rank above all others.

    The others are those of the other classes there, and of all classes at the background's anchors.
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
            loss_weight, shared: the arguments of :class:`RankingBranch`.

        Raises:
            ValueError: an argument is out of its range; the message has the config key's name.
        """
        super().__init__(loss_weight=loss_weight, **shared)
        require_positive("MODEL.AP_LOSS.DELTA", delta)
        require_weight("MODEL.AP_LOSS.LOSS_WEIGHT", loss_weight)
        self.delta = delta

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
        found = anchor_class_places(logits, places, classes, ignored, num_classes=self.num_classes)
        return average_precision_loss(*zip(*found), delta=self.delta)
