"""What has to be right before a run begins."""

from .devices import require_gpus
from .own_data import saved_classes, use_own_data
from .prepare import prepare
from .ranges import require_ranges

__all__ = ["prepare", "require_gpus", "require_ranges", "saved_classes", "use_own_data"]
