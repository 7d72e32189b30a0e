"""DR loss: RetinaNet whose classes are learnt by ranking two distributions (arXiv 1907.10156).

Letters: P positives of the batch. Boxes are (x0, y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor

from ..losses import (
    DEFAULT_RANKING,
    AnchorPlaces,
    RankingSettings,
    anchor_class_places,
    distributional_ranking_loss,
)
from .branch import register_branch, require_positive, require_weight
from .ranking_branch import RankingBranch


@register_branch("dr_loss")
class DRLossBranch(RankingBranch):
    """Two expectations of scores are ranked, that of the background below that of the objects.

    Boxes are learnt as in the code that the paper builds on (maskrcnn-benchmark's RetinaNet): the
    smooth L1 losses of positives, summed and divided by 4 P. What else is the method's are keys of
    RetinaNet, which configs/family/dr_loss_R_50_FPN_1x.yaml sets: beta 0.11 and weights of deltas
    10, 10, 5, 5; an initial score of 0.5; one threshold of IoU, 0.5, so that no anchor is ignored;
    and a threshold of scores in detection of 0.2.
    """

    loss_names = ("loss_dr_cls", "loss_dr_box_reg")
    count_name = "num_pos_dr"

    @configurable
    def __init__(
        self,
        *,
        ranking: RankingSettings = DEFAULT_RANKING,
        loss_weight: float = 1.0,
        **shared,
    ) -> None:
        """
        Args:
            ranking: see :func:`fsaf_d2.losses.distributional_ranking_loss`.
            loss_weight, shared: the arguments of :class:`RankingBranch`.

        Raises:
            ValueError: an argument is out of its range; the message has the config key's name.
        """
        super().__init__(loss_weight=loss_weight, **shared)
        for name in ("lambda_positive", "lambda_negative", "smoothness"):
            require_positive(f"MODEL.DR_LOSS.{name.upper()}", getattr(ranking, name))
        for name in ("tau", "margin"):
            require_weight(f"MODEL.DR_LOSS.{name.upper()}", getattr(ranking, name))
        require_weight("MODEL.DR_LOSS.LOSS_WEIGHT", loss_weight)
        self.ranking = ranking

    @classmethod
    def add_config(cls, cfg: CfgNode) -> None:
        """Add ``MODEL.DR_LOSS``."""
        dr_loss = cfg.MODEL.DR_LOSS = CfgNode()
        # Sec. 3: how even the distributions of positives' and of negatives' scores are; the nearer
        # to 0, the more the worst score counts alone. In units of scores, 0 to 1.
        dr_loss.LAMBDA_POSITIVE = DEFAULT_RANKING.lambda_positive
        dr_loss.LAMBDA_NEGATIVE = DEFAULT_RANKING.lambda_negative
        # Sec. 3: L, how sharply the loss bends at the margin, in 1 / score.
        dr_loss.SMOOTHNESS = DEFAULT_RANKING.smoothness
        # Sec. 3: by how much objects' expected score is to be above the background's.
        dr_loss.MARGIN = DEFAULT_RANKING.margin
        # Weight of the classes' loss beside that of boxes.
        dr_loss.TAU = DEFAULT_RANKING.tau
        # Weight of its losses beside those of other branches. Not in the paper.
        dr_loss.LOSS_WEIGHT = 1.0

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Read DR loss's keys, and RetinaNet's for all else."""
        dr_loss = cfg.MODEL.DR_LOSS
        ranking = {name: dr_loss[name.upper()] for name in RankingSettings._fields}
        return {
            **super().from_config(cfg, input_shape),
            "ranking": RankingSettings(**ranking),
            "loss_weight": dr_loss.LOSS_WEIGHT,
        }

    def class_loss(
        self,
        logits: Sequence[Tensor],
        places: Sequence[AnchorPlaces],
        classes: Tensor,
        ignored: Sequence[AnchorPlaces],
    ) -> Tensor:
        """Rank all levels, images and classes together."""
        found = anchor_class_places(logits, places, classes, ignored, num_classes=self.num_classes)
        return distributional_ranking_loss(*zip(*found), self.ranking)
