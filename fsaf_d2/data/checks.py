"""Checks of the data before anything is built on them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from .builtin import SOURCES, data_root


def require_datasets(names: Sequence[str]) -> None:
    """Make sure that data sets are registered and that their files exist.

    Raises:
        ValueError: a name is not registered.
        FileNotFoundError: an annotation file or image folder does not exist. The message says where
            it was looked for and how to provide it.
    """
    for name in names:
        if name not in DatasetCatalog:
            near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(
                f"Data set '{name}' (DATASETS.TRAIN or DATASETS.TEST) is not registered.{hint} "
                "Your own is registered with detectron2.data.datasets.register_coco_instances."
            )
        metadata = MetadataCatalog.get(name)
        for kind, key in (("annotation file", "json_file"), ("image folder", "image_root")):
            path = metadata.get(key)
            if path and not os.path.exists(path):
                raise FileNotFoundError(_missing_message(name, kind, path))


def _missing_message(name: str, kind: str, path: str) -> str:
    source = next((text for start, text in SOURCES.items() if name.startswith(start)), "")
    message = f"Data set '{name}' is missing: its {kind} '{path}' does not exist. {source}".rstrip()
    root = data_root()
    if Path(path).is_relative_to(root):
        message += (
            "\nData sets are looked for in the folder that the environment variable "
            f"DETECTRON2_DATASETS names, now '{root}': set it, or choose other data sets with "
            "DATASETS.TRAIN and DATASETS.TEST."
        )
    return message
