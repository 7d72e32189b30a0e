"""What AP loss and DR loss have in common: anchors whose classes are learnt as one ranking."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..assignment.anchor_matching import AnchorMatches
from ..assignment.grid import Grid
from ..assignment.objects import Objects, smallest_first
from .branch import Branch
from .contract import LossTerm
from .retinanet import AnchorBranch

# What both papers' codes divide the box loss by, beside the number of positives.
BOX_DIVISOR = 4


class RankingBranch(AnchorBranch):
    """RetinaNet's layers, matching and decoding; a ranking takes the place of the focal loss.

    It is one of all images, anchors and classes of a batch. The papers' batch is that of one GPU,
    and here it is that of one process: the losses of several processes are averaged, also those of
    processes without an object. So N processes with a batch of B do not train as one with N times
    B; their boxes do.
    """

    def __init__(self, *, loss_weight: float = 1.0, **shared) -> None:
        """
        Args:
            loss_weight: of both losses, beside those of other branches.
            shared: the arguments of :class:`AnchorBranch`; of the focal loss's, none is used.
        """
        super().__init__(**shared)
        self.loss_weight = loss_weight
        # Its losses are divided by what they count themselves.
        del self.loss_normalizer

    def assign(
        self, objects: Objects, grid: Grid, num_images: int
    ) -> tuple[AnchorMatches, AnchorMatches]:
        """Match as RetinaNet does; of objects with one IoU the smallest has the anchor."""
        order = smallest_first(objects)
        objects = Objects(*(field[order] for field in objects))
        positives, ignored = super().assign(objects, grid, num_images)
        return positives._replace(object_index=order[positives.object_index]), ignored

    def terms(self, cls_loss: Tensor, box_loss: Tensor, count: Tensor) -> dict[str, LossTerm]:
        """The ranking's loss, a mean over processes, and the boxes', one over 4 P."""
        # Deviates from the paper: P is that of all processes, not of each. In AP loss's code the 4
        # divides the gradients alone; here also the loss that is logged.
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
