"""What every reader gives."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from typing import Literal, NamedTuple

Split = Literal["train", "val", "test"]

_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class SourceError(ValueError):
    """A path does not lead to a data set in a known format, or leads to more than one."""


class Finding(NamedTuple):
    """One thing that is wrong with a data set, for a person to read."""

    kind: str  # the same for all findings of a kind, such as "zero-sized box"
    severity: Literal["error", "warning"]
    file: str  # annotation file or image, with the line in text files: "labels/a.txt:3"
    annotation_id: int | None  # None where it is about a file, an image or a category
    value: str  # what stands there
    remedy: str


@dataclasses.dataclass
class Source:
    """Annotations of one split in COCO's layout, with values as they stand in the files.

    Nothing in it is checked: see :mod:`...checking`. Boxes are COCO's, (x, y, width, height) in
    pixels, where the format's own numbers could be read.
    """

    path: str  # as it was given
    format: str  # "coco", "roboflow", "voc" or "yolo"
    annotation_file: str  # the JSON file; for other formats the folder or YAML file
    image_root: str  # the folder that file names are relative to
    data: dict  # "images", "annotations", "categories"
    places: dict[int, str] = dataclasses.field(default_factory=dict)
    """Where an annotation, by its id, stands: "labels/a.txt:3". Not for COCO files."""
    findings: list[Finding] = dataclasses.field(default_factory=list)
    """What could not be brought into COCO's layout."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What was done with the data that a person should know, a sentence each."""
    used: set[str] = dataclasses.field(default_factory=set)
    """Files that were read or are named above, beside the images in the data."""
    left_out: list[str] = dataclasses.field(default_factory=list)
    """Files that lie in the data set's folder and were not used; the notes count them."""


class Candidate(NamedTuple):
    """A data set that was found in a folder, and is not read yet."""

    format: str  # as in Source
    split: Split | None  # None: the folder has no splits
    name: str  # what it was found by, for a person
    read: Callable[[], Source]
    places: tuple[str, ...] = ()  # the folders and files that it is made of


def split_of(name: str) -> Split | None:
    """The split that a file or folder name says: "instances_train2017.json" is of "train"."""
    words = {_WORDS[word] for word in re.findall("[a-z]+", name.lower()) if word in _WORDS}
    return words.pop() if len(words) == 1 else None


def is_split_folder(path: str) -> bool:
    """Whether a folder is named after a split and nothing else: "train", "valid2017"."""
    name = os.path.basename(path).lower()
    # As CVAT names it.
    return bool(split_of(name)) and re.sub(r"\d+$|^obj_|_data$", "", name) in _WORDS
