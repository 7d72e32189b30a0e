"""What is penalised: pure functions of tensors."""

from .iou_loss import point_iou_loss
from .point_losses import point_loss_sums

__all__ = ["point_iou_loss", "point_loss_sums"]
