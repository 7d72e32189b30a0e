"""How a detector is trained."""

from .setup import prepare
from .trainer import Trainer

__all__ = ["Trainer", "prepare"]
