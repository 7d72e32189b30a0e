"""Images: detections with their pyramid level and branch, and the course of a training."""

from .detections import detection_grid, draw_detections, level_color
from .training_curves import plot_training, read_metrics

__all__ = [
    "detection_grid",
    "draw_detections",
    "level_color",
    "plot_training",
    "read_metrics",
]
