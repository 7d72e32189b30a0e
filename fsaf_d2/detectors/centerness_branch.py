"""What FCOS and ATSS have in common: a class, a box and a centerness at every location.

Letters: N images; L levels; P positive locations; K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..assignment.anchors import AnchorKinds
from ..assignment.centerness import centerness
from ..assignment.grid import Grid, to_device
from ..heads.scale import LevelScales
from ..inference.candidates import Candidates
from ..inference.decode import decode_levels, geometric_mean
from ..losses import AnchorPlaces, anchor_focal_loss_sums, gather_anchor_deltas
from .contract import LossTerm
from .focal_branch import FocalBranch

# The box loss is divided by the sum of centerness, which may be less than 1.
_LEAST_CENTERNESS = 1e-6


class CenternessBranch(FocalBranch):
    """Layers, losses and scores of FCOS (arXiv 2006.09214); whose a location is, a subclass says.

    The GIoU loss is weighted by centerness, which is predicted from the box tower; boxes have a
    learnable scale for each level; the score is the square root of class score times centerness.
    """

    # Under this name the log has the number of positives an image.
    count_name: str

    def __init__(
        self, *, strides: Sequence[int], loss_weight: float, box_weight: float = 1.0, **shared
    ) -> None:
        """
        Args:
            strides: of the levels, in pixels.
            loss_weight: of all three losses, beside those of other branches.
            box_weight: of the GIoU loss beside the other two.
            shared: the arguments of :class:`FocalBranch`.
        """
        super().__init__(**shared)
        self.cls_score = self.class_layer()
        self.bbox_pred = self.output_layer(4)
        self.centerness = self.output_layer(1)
        self.scales = LevelScales(len(strides))
        self.weights = (loss_weight, loss_weight * box_weight, loss_weight)

    def terms(
        self,
        logits: Sequence[Tensor],
        center_logits: Sequence[Tensor],
        places: Sequence[AnchorPlaces],
        classes: Tensor,
        distances: Tensor,
        giou: Tensor,
    ) -> dict[str, LossTerm]:
        """Sum the three losses.

        The focal loss and the cross entropy of centerness are divided by the number of positives,
        the GIoU loss, weighted by centerness, by the sum of these weights.

        Args:
            logits, center_logits: (N, K, H, W) and (N, 1, H, W) of each level.
            places: of each level, the positives.
            classes: (P,) of their objects, on the CPU.
            distances: (P, 4) to the sides of their objects, in one unit, on the CPU.
            giou: (P,) the GIoU losses.
        """
        device = giou.device
        nowhere = [AnchorPlaces(*(field[:0] for field in x)) for x in places]
        cls_losses = anchor_focal_loss_sums(
            logits,
            places,
            to_device(classes, device),
            nowhere,
            num_classes=self.num_classes,
            **self.focal_loss,
        )
        weights = to_device(centerness(distances), device)
        centers = gather_anchor_deltas(center_logits, places, 1).squeeze(1)
        center_loss = F.binary_cross_entropy_with_logits(centers, weights, reduction="sum")
        count = torch.full((), float(len(classes)), device=device)
        self.counted = {self.count_name: count / len(logits[0])}
        totals = (sum(cls_losses), (giou * weights).sum(), center_loss)
        counts, least = (count, weights.sum(), count), (1.0, _LEAST_CENTERNESS, 1.0)
        return dict(zip(self.loss_names, map(LossTerm, totals, counts, self.weights, least)))

    def decode_on(
        self,
        kinds: AnchorKinds,
        apply_deltas: Callable[[Tensor, Tensor], Tensor],
        predictions: tuple[Sequence[Tensor], ...],
        grid: Grid,
    ) -> list[Candidates]:
        """Decode the best of each level; score^2 = class score times centerness.

        Args:
            kinds, apply_deltas: see :func:`decode_levels`.
            predictions: logits, boxes and logits of centerness, a tensor a level each.
        """
        logits, deltas, center_logits = predictions
        return decode_levels(
            logits,
            deltas,
            kinds,
            apply_deltas,
            grid,
            **self.decoding,
            quality=center_logits,
            combine=geometric_mean,
        )
