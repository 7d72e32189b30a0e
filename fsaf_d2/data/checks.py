"""Checks of the data before anything is built on them."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from .builtin import SOURCES, data_root
from .image_folder import ImageFolder


class AnnotationFileError(ValueError):
    """An annotation file is broken, or names a picture outside its image folder."""


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
    annotation_file: str | os.PathLike[str], image_root: str | os.PathLike[str]
) -> None:
    """Check that an annotation file is in COCO format, and that its pictures lie in their folder.

    Checked are the parts of it that a box detector reads. A picture lies in its folder if that is
    so after every symbolic link has been followed; the folder itself may be a link. Whether the
    pictures exist is not checked.

    Args:
        annotation_file: path of the JSON file.
        image_root: the folder that its file names are relative to.

    Raises:
        AnnotationFileError: the first entry that is not as it should be; the message names the
            file, the entry and, for a picture, its name.
        OSError: the file cannot be read.
    """
    here = f"Annotation file '{os.fspath(annotation_file)}'"
    try:
        with open(annotation_file, encoding="utf-8") as file:
            data = json.load(file)
    except (ValueError, RecursionError) as error:
        raise AnnotationFileError(
            f"{here} is not JSON ({type(error).__name__}: {error})."
        ) from error
    try:
        # As detectron2, which lets the old files of that name repeat ids.
        unique = "minival" not in os.fspath(annotation_file)
        _check_coco(data, ImageFolder(os.fspath(image_root)), unique)
    except _Offence as offence:
        raise AnnotationFileError(f"{here}: {offence}") from offence


def require_num_classes(names: Sequence[str], num_classes: int) -> None:
    """Make sure that the model has as many classes as the data sets.

    Args:
        names: data sets whose files exist.
        num_classes: of the model.

    Raises:
        ValueError: a data set has another number of classes, or its annotations cannot be read.
    """
    for name in names:
        found = class_names(name)
        if found is not None and len(found) != num_classes:
            shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
            raise ValueError(
                f"MODEL.RETINANET.NUM_CLASSES is {num_classes}, but data set '{name}' has "
                f"{len(found)} classes ({shown}): set it to {len(found)}."
            )


def class_names(name: str) -> list[str] | None:
    """The classes of a data set; None where nothing but loading all of it could tell.

    Raises:
        ValueError: its annotation file cannot be read.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is not None:
        return metadata.thing_classes
    path = metadata.get("json_file")
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            categories = json.load(file)["categories"]
        return [category["name"] for category in sorted(categories, key=lambda x: x["id"])]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"The annotation file '{path}' of data set '{name}' is not in COCO format: it must be "
            f"JSON with a list 'categories' of entries with 'id' and 'name' "
            f"({type(error).__name__}: {error})."
        ) from error


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


class _Offence(Exception):
    """What is wrong with an annotation file, without its name."""


def _check_coco(data: object, folder: ImageFolder, unique_annotations: bool) -> None:
    if not isinstance(data, dict):
        raise _Offence("it must be a mapping with 'images', 'annotations' and 'categories'.")
    categories = {entry["id"]: entry for entry in _entries(data, "categories")}
    for key, category in categories.items():
        if not isinstance(category.get("name"), str):
            raise _Offence(f"category {key} has no 'name' that is a text.")
    images = {entry["id"]: entry for entry in _entries(data, "images")}
    for key, image in images.items():
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            raise _Offence(f"image {key} has no 'file_name' that is a text.")
        for side in ("width", "height"):
            if not (_is_integer(image.get(side)) and image[side] > 0):
                raise _Offence(f"image {key} ({name!r:.99}) has no '{side}' above 0 in pixels.")
        if not folder.holds(name):
            raise _Offence(
                f"image {key} has the file name {name!r:.99}, which is not that of a file in the "
                f"image folder '{folder.root}'. Links that lead out of it are refused too."
            )
    # Files of test pictures have none.
    if "annotations" not in data:
        return
    for annotation in _entries(data, "annotations", unique=unique_annotations):
        key = annotation["id"]
        for reference, known in (("image_id", images), ("category_id", categories)):
            value = annotation.get(reference)
            if not _is_integer(value) or value not in known:
                raise _Offence(
                    f"annotation {key} has the {reference} {value!r:.99}, which is not that of any "
                    f"of the {'images' if known is images else 'categories'}."
                )
        box = annotation.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))):
            raise _Offence(
                f"annotation {key} of image {annotation['image_id']} has the bbox {box!r:.99}, not "
                "four finite numbers (x, y, width, height in pixels)."
            )


def _entries(data: dict, name: str, *, unique: bool = True) -> list[dict]:
    """A list of the file, each of whose entries has an id."""
    entries = data.get(name)
    if not isinstance(entries, list):
        raise _Offence(f"it has no list '{name}'.")
    ids = set()
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not _is_integer(entry.get("id")):
            raise _Offence(f"entry {index} of '{name}' has no 'id' that is a whole number.")
        if unique and entry["id"] in ids:
            raise _Offence(f"two entries of '{name}' have the id {entry['id']}.")
        ids.add(entry["id"])
    return entries


def _is_integer(value: object) -> bool:
    # JSON's true and false are whole numbers to Python.
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    try:
        return (_is_integer(value) or isinstance(value, float)) and math.isfinite(value)
    except OverflowError:
        return False
