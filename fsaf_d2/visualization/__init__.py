"""Images: detections, and the course of a training."""

from .detections import class_color, detection_grid, draw_detections, level_color
from .training_curves import plot_training, read_metrics

__all__ = [
    "class_color",
    "detection_grid",
    "draw_detections",
    "level_color",
    "plot_training",
    "read_metrics",
]
