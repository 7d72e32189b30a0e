"""What is penalised: pure functions of tensors."""

from .anchor_losses import (
    AnchorPlaces,
    anchor_class_places,
    anchor_focal_loss_sums,
    gather_anchor_deltas,
)
from .average_precision_loss import average_precision_loss
from .distribution_focal_loss import distribution_focal_loss, expected_bin
from .distributional_ranking import (
    DEFAULT_RANKING,
    RankingSettings,
    distributional_ranking_loss,
)
from .iou_loss import box_giou_loss, point_giou_loss, point_iou, point_iou_loss
from .noisy_anchors_loss import (
    noisy_anchors_focal_loss,
    reweighted_sum,
    soft_labels_and_weights,
)
from .point_losses import point_loss_sums
from .quality_focal_loss import quality_focal_loss, quality_focal_loss_sums
from .sparse_focal_loss import (
    background_loss_sums,
    focal_loss,
    plane_focal_loss_sum,
    sparse_focal_loss_sum,
)

__all__ = [
    "DEFAULT_RANKING",
    "AnchorPlaces",
    "RankingSettings",
    "anchor_class_places",
    "anchor_focal_loss_sums",
    "average_precision_loss",
    "background_loss_sums",
    "box_giou_loss",
    "distribution_focal_loss",
    "distributional_ranking_loss",
    "expected_bin",
    "focal_loss",
    "gather_anchor_deltas",
    "noisy_anchors_focal_loss",
    "plane_focal_loss_sum",
    "point_giou_loss",
    "point_iou",
    "point_iou_loss",
    "point_loss_sums",
    "quality_focal_loss",
    "quality_focal_loss_sums",
    "reweighted_sum",
    "soft_labels_and_weights",
    "sparse_focal_loss_sum",
]
