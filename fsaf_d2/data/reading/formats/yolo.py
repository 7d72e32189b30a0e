"""YOLO: a text file for each image, with a line for each object.

What a line may hold is in :mod:`.yolo_lines`. An image without a text file is one without objects.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

from ..image_folder import ImageFolder
from ..image_names import READ
from .foreign_files import find_entry, list_files
from .source import Candidate, Source, SourceError, is_split_folder, split_of
from .yolo_labels import LabelReader, label_files
from .yolo_lines import stated_format
from .yolo_yaml import (
    Classes,
    Part,
    find_classes,
    labels_of,
    load_names,
    read_settings,
    split_parts,
)

# Of one YAML file, which may call them as it likes.
MAX_SPLITS = 20


def find(folder: str) -> list[Candidate]:
    """What YAML files of a folder name, else ``images/`` with ``labels/``, or texts by images."""
    found = []
    for name in list_files(folder, ".yaml", ".yml"):
        found += find_in_yaml(os.path.join(folder, name))
    if found:
        return found
    images, labels = find_entry(folder, "images"), find_entry(folder, "labels")
    if images and labels and os.path.isdir(images) and os.path.isdir(labels):
        parts = [x for x in sorted(os.listdir(images)) if is_split_folder(x)]
        parts = [x for x in parts if os.path.isdir(os.path.join(images, x))]
        found = [
            _candidate(
                os.path.join(images, x),
                find_entry(labels, x.lower()) or os.path.join(labels, x),
                f"images/{x}",
                split_of(x),
            )
            for x in parts
        ]
        return found or [_candidate(images, labels, "images/ with labels/", None)]
    if list_files(folder, *READ):
        labels = labels_of(folder)
        if labels != folder or _has_labels_beside(folder):
            return [_candidate(folder, labels, "images with text files", None)]
    return []


def find_in_yaml(path: str, *, is_meant: bool = False) -> list[Candidate]:
    """The splits of a YAML file; none if it is about something else.

    Raises:
        SourceError: it cannot be read, but is meant, or is by its name.
    """
    try:
        settings = read_settings(path)
    except SourceError:
        # There are YAML files of many programs; these are meant.
        if is_meant or os.path.basename(path).lower().startswith(("data.", "dataset.")):
            raise
        return []
    keys = [x for x in settings if split_of(x) and "names" in settings and settings[x]]
    if len(keys) > MAX_SPLITS:
        raise SourceError(f"'{path}' names {len(keys)} splits, more than {MAX_SPLITS}.")
    return [
        Candidate(
            "yolo",
            split_of(key),
            f"{os.path.basename(path)}: {key}",
            functools.partial(read_yaml, path, key),
            _places_of_split(path, settings, key),
        )
        for key in keys
    ]


def _places_of_split(path: str, settings: dict[str, object], key: str) -> tuple[str, ...]:
    """What belongs to a split of a YAML file; nothing where it cannot be read."""
    try:
        parts = split_parts(path, settings, key).parts
    except (SourceError, OSError):
        return ()
    places = []
    for part in parts:
        if part.listed is None:
            places += [part.images, part.labels]
        else:
            stems = [os.path.splitext(x)[0] for x in part.listed]
            places += [os.path.join(part.images, x) for x in part.listed]
            places += [os.path.join(part.labels, f"{x}.txt") for x in stems]
    return tuple(places)


def _candidate(images: str, labels: str, name: str, split: object) -> Candidate:
    reader = functools.partial(read, images, labels)
    return Candidate("yolo", split, name, reader, (images, labels))


def _has_labels_beside(folder: str) -> bool:
    texts = {os.path.splitext(x)[0] for x in list_files(folder, ".txt")}
    return any(os.path.splitext(x)[0] in texts for x in list_files(folder, *READ))


def read(images: str, labels: str) -> Source:
    """Read a folder of images and the folder of their labels.

    Names of the classes are looked for in both, and around them:
    :func:`.yolo_yaml.find_classes`.

    Raises:
        SourceError: there are no names of classes, no image has labels, or two readings fit these.
    """
    return _read([Part(images, labels)], images, labels, find_classes(images, labels))


def read_yaml(path: str, key: str) -> Source:
    """Read a split of a YAML file.

    Args:
        path: of the file.
        key: of the split, such as ``train``.

    Raises:
        SourceError: it leads to no folder within the YAML file's own, there are no names of
            classes, no image has labels, or two readings fit these.
    """
    settings = read_settings(path)
    found = split_parts(path, settings, key)
    own = os.path.dirname(path) or os.curdir
    is_one = len(found.parts) == 1 and found.parts[0].listed is None
    root = found.parts[0].images if is_one else own
    classes = Classes(load_names(path, settings), stated_format(path, settings), (path,))
    source = _read(found.parts, root, path, classes)
    source.findings[:0] = found.findings
    source.notes[:0] = found.notes
    source.used |= found.used
    return source


def _read(parts: Sequence[Part], root: str, annotation_file: str, classes: Classes) -> Source:
    reader = LabelReader(root, classes.names, classes.stated)
    for part in parts:
        reader.read(ImageFolder(part.images), ImageFolder(part.labels), part.listed)
    if reader.num_labelled == 0:
        places = " and ".join(dict.fromkeys(part.labels for part in parts))
        raise SourceError(
            f"None of the {reader.num_images} images in "
            f"{' and '.join(dict.fromkeys(part.images for part in parts))} has a text file of "
            f"labels in {places}: an image images/a.jpg needs labels/a.txt, or a.txt beside it."
            f"{_there(parts)}"
        )
    reader.finish(annotation_file)
    return Source(
        path=annotation_file,
        format="yolo",
        annotation_file=annotation_file,
        image_root=root,
        data=reader.data,
        places=reader.places,
        findings=reader.findings,
        notes=reader.notes,
        used=reader.used | {os.path.abspath(x) for x in classes.files},
    )


def _there(parts: Sequence[Part]) -> str:
    """What lies in the folder of labels instead of those that are missing."""
    for part in parts:
        place = part.labels if os.path.isdir(part.labels) else os.path.dirname(part.labels)
        if os.path.isdir(place):
            there = label_files(place) or sorted(os.listdir(place))
            if there:
                more = ", ..." if len(there) > 5 else ""
                return f" In '{place}' there is: {', '.join(there[:5])}{more}."
    return ""
