"""How a detector is trained."""

from .setup import load_weights, prepare
from .trainer import Trainer

__all__ = ["Trainer", "load_weights", "prepare"]
