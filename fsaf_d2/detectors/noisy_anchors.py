"""Learning from Noisy Anchors: RetinaNet with soft labels and weights (arXiv 1912.05086).

Letters: N images; P positives of the batch. Boxes are (x0, y0, x1, y1) in pixels of the network's
input.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from fvcore.nn import smooth_l1_loss
from torch import Tensor

from ..assignment.anchor_matching import AnchorMatches, paired_iou
from ..assignment.anchors import locate
from ..assignment.grid import Grid, to_device
from ..assignment.objects import Objects
from ..assignment.top_anchors import assign_top_anchors
from ..losses import (
    gather_anchor_deltas,
    noisy_anchors_focal_loss,
    reweighted_sum,
    soft_labels_and_weights,
)
from .branch import register_branch, require, require_weight
from .contract import LossTerm
from .retinanet import AnchorBranch, AnchorPredictions


@register_branch("noisy_anchor")
class NoisyAnchorBranch(AnchorBranch):
    """RetinaNet's layers and decoding; what an anchor is worth, it shows itself.

    Every object has its best anchors, whatever their IoU, and no anchor is ignored. The better box
    and score are that an anchor gives its object, the harder is its label, and the more both of its
    losses count beside those of others in its image. The sum of an image's losses stays as it is.

    Attributes:
        top_n, mix: as below.
    """

    loss_names = ("loss_noisy_cls", "loss_noisy_box_reg")
    count_name = "num_pos_noisy_anchors"

    @configurable
    def __init__(
        self,
        *,
        top_n: int = 30,
        mix: float = 0.75,
        focal_loss_alpha: float = 0.5,
        smooth_l1_beta: float = 0.1,
        loss_weight: float = 1.0,
        **shared,
    ) -> None:
        """
        Args:
            top_n: anchors of each object, see :func:`assign_top_anchors`.
            mix: share of IoUs, beside scores; see :func:`soft_labels_and_weights`.
            focal_loss_alpha: weight of objects, 1 - alpha of background.
            smooth_l1_beta: as of detectron2's RetinaNet.
            loss_weight: of both losses, beside those of other branches.
            shared: the arguments of :class:`AnchorBranch`; thresholds of IoU are not used.

        Raises:
            ValueError: an argument is out of its range; the message has the config key's name.
        """
        super().__init__(focal_loss_alpha=focal_loss_alpha, smooth_l1_beta=smooth_l1_beta, **shared)
        require(top_n >= 1, "MODEL.NOISY_ANCHORS.TOP_N", "at least 1", top_n)
        require(0 <= mix <= 1, "MODEL.NOISY_ANCHORS.ALPHA", "0 to 1", mix)
        require_weight("MODEL.NOISY_ANCHORS.LOSS_WEIGHT", loss_weight)
        kind = self.box_reg_loss_type
        key = "MODEL.RETINANET.BBOX_REG_LOSS_TYPE"
        require(kind == "smooth_l1", key, "'smooth_l1' for noisy anchors", repr(kind))
        self.top_n, self.mix, self.loss_weight = top_n, mix, loss_weight

    @classmethod
    def add_config(cls, cfg: CfgNode) -> None:
        """Add ``MODEL.NOISY_ANCHORS``."""
        noisy = cfg.MODEL.NOISY_ANCHORS = CfgNode()
        # Sec. 3: so many anchors of the highest IoU are an object's. Of the authors' code.
        noisy.TOP_N = 30
        # Sec. 3: share of the predicted box's IoU in soft labels and weights; the class's score has
        # the rest.
        noisy.ALPHA = 0.75
        # Of the focal loss, in place of MODEL.RETINANET.FOCAL_LOSS_ALPHA. Of the authors' code.
        noisy.FOCAL_LOSS_ALPHA = 0.5
        # Weight of its losses beside those of other branches. Not in the paper.
        noisy.LOSS_WEIGHT = 1.0

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Read the keys of noisy anchors, and RetinaNet's for all else."""
        noisy = cfg.MODEL.NOISY_ANCHORS
        return {
            **super().from_config(cfg, input_shape),
            "top_n": noisy.TOP_N,
            "mix": noisy.ALPHA,
            "focal_loss_alpha": noisy.FOCAL_LOSS_ALPHA,
            "loss_weight": noisy.LOSS_WEIGHT,
        }

    def losses(
        self, predictions: AnchorPredictions, objects: Objects, grid: Grid
    ) -> dict[str, LossTerm]:
        """Sum the two losses, weighted by what the anchors predict."""
        logits, deltas = predictions
        device, num_images = logits[0].device, len(logits[0])
        positives, _ = self.assign(objects, grid, num_images)
        index, owner = positives.anchor_index, positives.object_index
        places = locate(positives.image_index, index, self.kinds.num_per_location, grid, device)
        image, classes = (
            to_device(x, device) for x in (positives.image_index, objects.classes[owner])
        )
        anchors, boxes = self.kinds.boxes(index, grid), objects.boxes[owner]
        chosen_deltas = gather_anchor_deltas(deltas, places)
        with torch.no_grad():
            pred_boxes = self.box2box_transform.apply_deltas(
                chosen_deltas, to_device(anchors, device)
            )
            ious = paired_iou(pred_boxes, to_device(boxes, device))
            scores = gather_anchor_deltas(logits, places, self.num_classes)
            scores = scores.gather(1, classes[:, None]).squeeze(1).sigmoid()
        # Deviates from the paper: it has the anchors' own IoUs in place of the predicted boxes' for
        # the first steps; its code does not, and nor does this.
        soft_labels, weights = soft_labels_and_weights(
            ious, scores, image, num_images=num_images, mix=self.mix
        )
        cls_loss = noisy_anchors_focal_loss(
            logits,
            places,
            classes,
            soft_labels,
            weights,
            num_classes=self.num_classes,
            **self.focal_loss,
        )
        targets = to_device(self.box2box_transform.get_deltas(anchors, boxes), device)
        box_losses = smooth_l1_loss(chosen_deltas, targets, self.smooth_l1_beta, reduction="none")
        box_loss = reweighted_sum(
            box_losses.sum(dim=1), weights, image, box_losses.new_zeros(num_images)
        )
        count = torch.full((), float(len(index)), device=device)
        self.counted = {self.count_name: count / num_images}
        return self.terms(cls_loss, box_loss, count)

    def assign(
        self, objects: Objects, grid: Grid, num_images: int
    ) -> tuple[AnchorMatches, AnchorMatches]:
        """Give every object its best anchors; none is ignored."""
        matches = assign_top_anchors(
            self.kinds, objects, grid, num_images=num_images, count=self.top_n
        )
        return matches, AnchorMatches(*(field[:0] for field in matches))

    def terms(self, cls_loss: Tensor, box_loss: Tensor, count: Tensor) -> dict[str, LossTerm]:
        """The two losses, of that many positives."""
        terms = (LossTerm(loss, count, self.loss_weight) for loss in (cls_loss, box_loss))
        return dict(zip(self.loss_names, terms))
