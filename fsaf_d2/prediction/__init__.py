"""How a trained detector is used on images and videos."""

from .detector import Detector
from .inputs import find_inputs
from .loading import load_detector
from .run import predict

__all__ = ["Detector", "find_inputs", "load_detector", "predict"]
