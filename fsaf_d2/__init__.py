"""Dense detectors for Detectron2 whose branches, anchor-based and anchor-free, work together.

Importing the package registers its components: the meta architectures of :mod:`fsaf_d2.detectors`
and the data sets named in :mod:`fsaf_d2.data.reading.builtin`.
"""

try:
    import detectron2 as _  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ImportError(
        "fsaf_d2 needs detectron2, which is not installed. Either install version 0.6 with the\n"
        "project's own step (no compiler needed), in a checkout of it:\n"
        "    python tools/install_detectron2.py\n"
        "or the newest one from its repository (needs a C++ compiler and torch):\n"
        "    pip install --no-build-isolation "
        "'git+https://github.com/facebookresearch/detectron2.git'"
    ) from None

import importlib
import os

from . import detectors
from .config import load_config
from .config_defaults import add_fsaf_config
from .data.reading.builtin import register_builtin_datasets
from .detectors import *  # noqa: F403

register_builtin_datasets()

# Branches of one's own, for the commands, and for the processes that they start.
for _name in filter(None, os.environ.get("DETECTOR_BRANCHES", "").split(",")):
    try:
        importlib.import_module(_name.strip())
    except ModuleNotFoundError as error:
        if error.name != _name.strip():
            raise
        raise ImportError(
            f"DETECTOR_BRANCHES names {_name.strip()!r}, which Python does not find: add its "
            "folder to PYTHONPATH."
        ) from None

__version__ = "0.2.0"

__all__ = [*detectors.__all__, "add_fsaf_config", "load_config", "load_detector"]  # noqa: F405


def __getattr__(name: str) -> object:
    # It draws, and so brings matplotlib, which training need not wait for.
    if name == "load_detector":
        from .prediction import load_detector

        return load_detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
