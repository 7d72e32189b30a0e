"""What is penalised: pure functions of tensors."""

from .iou_loss import point_iou_loss

__all__ = ["point_iou_loss"]
