"""What branches have in common whose classes are learnt by focal loss and decoded by score.

Letters: K classes.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import nn

from ..heads.towers import init_conv
from .branch import Branch


class FocalBranch(Branch):
    """A branch with RetinaNet's scores (arXiv 1708.02002).

    Attributes:
        num_classes: K.
        focal_loss: ``alpha`` and ``gamma``.
        score_thresh, topk_candidates: as below.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        focal_loss_alpha: float = 0.25,
        focal_loss_gamma: float = 2.0,
        prior_prob: float = 0.01,
        score_thresh: float = 0.05,
        topk_candidates: int = 1000,
    ) -> None:
        """
        Args:
            in_channels: of the towers' maps.
            num_classes: K.
            focal_loss_alpha, focal_loss_gamma: see :func:`fsaf_d2.losses.sparse_focal_loss_sum`.
            prior_prob: initial score of every class.
            score_thresh: only scores above it count.
            topk_candidates: how many of a level are decoded at the most.
        """
        super().__init__()
        self.in_channels, self.num_classes = in_channels, num_classes
        self.focal_loss = {"alpha": focal_loss_alpha, "gamma": focal_loss_gamma}
        self.prior_prob = prior_prob
        self.score_thresh, self.topk_candidates = score_thresh, topk_candidates

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Read what this class takes from RetinaNet's keys; a subclass adds its own."""
        retinanet = cfg.MODEL.RETINANET
        return {
            "in_channels": input_shape[0].channels,
            "num_classes": retinanet.NUM_CLASSES,
            "focal_loss_alpha": retinanet.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": retinanet.FOCAL_LOSS_GAMMA,
            "prior_prob": retinanet.PRIOR_PROB,
            "score_thresh": retinanet.SCORE_THRESH_TEST,
            "topk_candidates": retinanet.TOPK_CANDIDATES_TEST,
        }

    def class_layer(self, num_boxes: int = 1) -> nn.Conv2d:
        """Build the layer that gives the logits of the boxes at each location."""
        prior = torch.logit(torch.tensor(self.prior_prob)).item()
        return self.output_layer(num_boxes * self.num_classes, prior)

    def output_layer(self, num_channels: int, bias: float = 0.0) -> nn.Conv2d:
        """Build a layer on a tower, with that initial bias."""
        return init_conv(nn.Conv2d(self.in_channels, num_channels, 3, padding=1), bias)

    @property
    def decoding(self) -> dict[str, float]:
        """The settings of :func:`fsaf_d2.inference.decode.decode_level`."""
        return {
            "num_classes": self.num_classes,
            "score_thresh": self.score_thresh,
            "topk_candidates": self.topk_candidates,
        }
