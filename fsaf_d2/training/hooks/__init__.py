"""What a run does beside its steps, as detectron2's hooks."""

from .detector_step import DetectorStep
from .progress import DataShare, ProgressLine, data_share

__all__ = ["DataShare", "DetectorStep", "ProgressLine", "data_share"]
