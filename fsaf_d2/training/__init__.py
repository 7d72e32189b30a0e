"""How a detector is trained."""

from ..data.loading.lost_workers import naming_lost_workers
from ..weights.checkpointer import SafeCheckpointer, load_weights
from .augmented_evaluation import compare_augmented
from .launch import first_to_fail, launch, owned_output
from .setup import prepare, require_ranges, saved_classes, use_own_data
from .terminal import EXPECTED, set_up
from .trainer import Trainer

__all__ = [
    "EXPECTED",
    "SafeCheckpointer",
    "Trainer",
    "compare_augmented",
    "first_to_fail",
    "launch",
    "load_weights",
    "naming_lost_workers",
    "owned_output",
    "prepare",
    "require_ranges",
    "saved_classes",
    "set_up",
    "use_own_data",
]
