"""Checks of the data before anything is built on them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..reading.annotation_files import class_names, read_json
from ..reading.builtin import SOURCES, data_root
from .entries import check_entries


class AnnotationFileError(ValueError):
    """An annotation file is broken, or names an image outside its image folder."""


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


def require_annotations(names: Sequence[str]) -> None:
    """Check the annotation files of data sets in COCO format by :func:`check_annotations`.

    Args:
        names: data sets whose files exist. Those of other formats are not looked at.

    Raises:
        AnnotationFileError: as :func:`check_annotations`.
    """
    for name in dict.fromkeys(names):
        metadata = MetadataCatalog.get(name)
        path, root = metadata.get("json_file"), metadata.get("image_root")
        # Of addresses (s3://, https://) nothing is known before detectron2 has fetched them.
        if metadata.get("evaluator_type") == "coco" and path and os.path.isfile(path):
            check_annotations(path, root or "")


def check_annotations(
    annotation_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    *,
    encoding: str = "utf-8",
) -> None:
    """Check that an annotation file is in COCO format, and that its images lie in their folder.

    Checked are the parts of it that a box detector reads. An image lies in its folder if that is
    so after every symbolic link has been followed; the folder itself may be a link. Whether the
    images exist is not checked.

    Args:
        annotation_file: path of the JSON file.
        image_root: the folder that its file names are relative to.
        encoding: "utf-8-sig" where detectron2, which knows no byte order mark, does not read it.

    Raises:
        AnnotationFileError: the first entry that is not as it should be; the message names the
            file, the entry and, for an image, its name.
        OSError: the file cannot be read.
    """
    path = os.fspath(annotation_file)
    # As detectron2, which lets the old files of that name repeat ids.
    unique = "minival" not in path
    data = read_annotations(path, encoding)
    entries = check_entries(data, path, os.fspath(image_root), unique_annotations=unique)
    for flaw in entries.flaws:
        if flaw.finding.severity == "error":
            raise AnnotationFileError(
                f"Annotation file '{path}': {flaw.sentence}. {flaw.finding.remedy}"
            )


def read_annotations(annotation_file: str | os.PathLike[str], encoding: str = "utf-8") -> object:
    """Read a JSON file.

    Raises:
        AnnotationFileError: it is no JSON.
        OSError: it cannot be read.
    """
    try:
        return read_json(annotation_file, encoding=encoding)
    except ValueError as error:
        raise AnnotationFileError(
            f"Annotation file '{os.fspath(annotation_file)}' is not JSON "
            f"({type(error).__name__}: {error})."
        ) from error


def require_num_classes(
    names: Sequence[str], num_classes: int, key: str = "MODEL.RETINANET.NUM_CLASSES"
) -> None:
    """Make sure that the model has as many classes as the data sets.

    Args:
        names: data sets whose files exist.
        num_classes: of the model.
        key: that holds it.

    Raises:
        ValueError: a data set has another number of classes, or its annotations cannot be read.
    """
    for name in names:
        found = class_names(name)
        if found is not None and len(found) != num_classes:
            shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
            raise ValueError(
                f"{key} is {num_classes}, but data set '{name}' has "
                f"{len(found)} classes ({shown}): set it to {len(found)}."
            )


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
