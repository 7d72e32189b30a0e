"""Reading YOLO's label files: a text for each image, a line for each object."""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ....plain_numbers import decimal, is_in_range
from .. import box_layout
from ..image_folder import ImageFolder
from ..image_headers import image_size
from ..image_names import IMAGES
from ..near_names import NearNames, near_text
from .foreign_files import list_images, list_tree, read_lines
from .source import Finding
from .yolo_lines import LABEL_FORMATS, Format, Votes, group_of, raw_box, readings
from .yolo_yaml import NAMES_FILES

# Objects of an image, and numbers of an object.
MAX_LINES = 100_000
MAX_NUMBERS = 20_000
# Those between numbers; Python's split knows many more.
_SPACES = re.compile("[ \t]+")
_REMEDY = (
    "A line is: class x y width height, or class x1 y1 x2 y2 x3 y3 ..., shares of the image from "
    "0 to 1, with spaces between."
)


class _Line(NamedTuple):
    """A line that is read once all are known."""

    annotation: dict
    group: str
    boxes: dict[str, list[float]]  # centre, width and height as shares, by kind
    size: tuple[int, int]
    place: str


class LabelReader:
    """Collects the images and labels of one or more folders."""

    def __init__(self, root: str, names: list[str], stated: Format) -> None:
        categories = [{"id": index, "name": name} for index, name in enumerate(names)]
        self.data: dict[str, list] = {"images": [], "annotations": [], "categories": categories}
        self.places: dict[int, str] = {}
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.used: set[str] = set()
        self.num_images = self.num_labelled = 0
        self._root = root
        self._stated = stated
        self._votes = Votes()
        self._lines: list[_Line] = []

    def read(
        self, images: ImageFolder, labels: ImageFolder, listed: Sequence[str] | None = None
    ) -> None:
        """Read all images of a folder, or those of a list, and their labels."""
        of_stem: dict[str, list[str]] = defaultdict(list)
        for label in label_files(labels.root):
            of_stem[os.path.splitext(label)[0]].append(label)
        by_stem: dict[str, list[str]] = defaultdict(list)
        for name in list_images(images.root) if listed is None else listed:
            by_stem[os.path.splitext(name)[0]].append(name)
        for stem, names in by_stem.items():
            found = of_stem.pop(stem, [])
            self._check_pairs(images, labels, names, found)
            for name in names:
                self._image(images, labels, name, found)
        if listed is None:
            self._check_left(images, labels, [x for found in of_stem.values() for x in found])

    def _check_pairs(
        self, images: ImageFolder, labels: ImageFolder, names: list[str], found: list[str]
    ) -> None:
        """Two images of one label file, or two label files of one image."""
        self.used.update(os.path.join(labels.root, x) for x in found)
        if found and len(names) > 1:
            label = os.path.join(labels.root, found[0])
            remedy = "Nothing says whose the labels are: rename or remove one of the images."
            said = " and ".join(os.path.join(images.root, x) for x in names)
            self._find("two images share labels", label, f"{said} have the same name", remedy)
        if len(found) > 1:
            remedy = "Nothing says which is meant: remove one of them."
            said = " and ".join(found)
            self._find("two label files of an image", os.path.join(labels.root, found[1]), said)
            self.findings[-1] = self.findings[-1]._replace(remedy=remedy)

    def _check_left(self, images: ImageFolder, labels: ImageFolder, left: Iterable[str]) -> None:
        near = NearNames(images.root, IMAGES)
        for label in sorted(left):
            path = os.path.join(labels.root, label)
            text = near_text(near.find(os.path.splitext(label)[0]))
            remedy = f"There is no image of that name in '{images.root}': add it, or remove this."
            self._find("labels of a missing image", path, text.removeprefix("; "), remedy)
            self.used.add(path)

    def _image(self, images: ImageFolder, labels: ImageFolder, name: str, found: list[str]) -> None:
        self.num_images += 1
        self.num_labelled += bool(found)
        path = os.path.join(images.root, name)
        self.used.add(path)
        try:
            size = image_size(images, name)
        except (ValueError, OSError) as error:
            remedy = "Mend the image, or remove it together with its text file."
            self._find("unreadable image", path, str(error), remedy)
            return
        image = {
            "id": len(self.data["images"]) + 1,
            "file_name": os.path.relpath(path, self._root),
            "width": size[0],
            "height": size[1],
        }
        self.data["images"].append(image)
        for label in found[:1]:
            self._labels(labels, label, image)

    def _labels(self, labels: ImageFolder, label: str, image: dict) -> None:
        path = os.path.join(labels.root, label)
        try:
            lines = read_lines(labels, label)
            if len(lines) > MAX_LINES:
                raise ValueError(f"it has {len(lines)} lines, more than {MAX_LINES}")
        except (ValueError, OSError) as error:
            self._find("unreadable annotation file", path, str(error), "Mend or remove the file.")
            return
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                self._line(_SPACES.split(line.strip(" \t")), image, f"{path}:{number}")
            except ValueError as error:
                value = f"{line.strip():.80} ({error})"
                self._find("unreadable object", f"{path}:{number}", value, _REMEDY)

    def _line(self, words: list[str], image: dict, place: str) -> None:
        if len(words) > MAX_NUMBERS:
            raise ValueError(f"{len(words)} numbers, more than {MAX_NUMBERS}")
        category, *numbers = map(decimal, words)
        found = readings(numbers, self._stated)
        if not (category.is_integer() and is_in_range(int(category))):
            raise ValueError("the class is no whole number")
        annotation = {
            "id": len(self.data["annotations"]) + 1,
            "image_id": image["id"],
            "category_id": int(category),
        }
        group = group_of(numbers)
        self._votes.add(group, found, place)
        self.data["annotations"].append(annotation)
        self.places[annotation["id"]] = place
        ways = {kind: raw_box(numbers, kind) for kind in {reading.kind for reading in found}}
        size = image["width"], image["height"]
        self._lines.append(_Line(annotation, group, ways, size, place))

    def finish(self, labels: str) -> None:
        """Decide how the lines are read, and write their boxes.

        Args:
            labels: where they come from, for messages.

        Raises:
            SourceError: two readings fit.
        """
        decided = self._votes.decide()
        dropped, boxes, sizes = set(), [], []
        for line in self._lines:
            kind = decided[line.group].kind
            try:
                box = _shares(line, kind)
            except ValueError as error:
                self._find("unreadable object", line.place, str(error), _REMEDY)
                dropped.add(line.annotation["id"])
                continue
            x, y, width, height = box
            across, down = line.size
            corner = [(x - width / 2) * across, (y - height / 2) * down]
            line.annotation["bbox"] = [*corner, width * across, height * down]
            if kind in ("box", "track box"):
                boxes.append(box)
                sizes.append(line.size)
        if dropped:
            kept = [x for x in self.data["annotations"] if x["id"] not in dropped]
            self.data["annotations"] = kept
            self.places = {key: x for key, x in self.places.items() if key not in dropped}
        self._note(decided)
        if self._stated.label_format is None:
            self._check_layout(np.array(boxes).reshape(-1, 4), np.array(sizes), labels)

    def _note(self, decided: dict) -> None:
        for group, (kind, text, count) in decided.items():
            if group == "plain":
                continue
            if kind == "polygon":
                which = "turned boxes (OBB)" if "turned" in text else "polygons"
                self.notes.append(f"{count} {which} are taken as their bounding boxes.")
            else:
                self.notes.append(
                    f"{count} lines are read as {text}: the box is taken, the rest is left out."
                )

    def _check_layout(self, boxes: np.ndarray, sizes: np.ndarray, labels: str) -> None:
        """Whether the boxes leave their images as centres, and as something else do not."""
        boxes_ok = np.isfinite(boxes).all(axis=1)
        better = box_layout.better_than_centers(boxes[boxes_ok], sizes.reshape(-1, 2)[boxes_ok])
        if better is None:
            return
        names, leaving = better
        ways = " or ".join(f"{LABEL_FORMATS[x]} (label_format: {x})" for x in names)
        value = (
            f"{leaving} of {len(boxes)} boxes leave their images as x y width height of the "
            f"centre, (nearly) none does as {ways}"
        )
        remedy = (
            "Write centres, or say in the YAML file with 'names' how they are meant: "
            "'label_format: ...' as named here, or 'label_format: box' for centres."
        )
        self._find("boxes are no centres", labels, value, remedy)

    def _find(self, kind: str, file: str, value: str, remedy: str = "") -> None:
        self.findings.append(Finding(kind, "error", file, None, f"{value:.400}", remedy))


def _shares(line: _Line, kind: str) -> list[float]:
    """The centre and size of a line's box, as shares.

    Raises:
        ValueError: it is not of that kind, or these are no shares.
    """
    box = line.boxes.get(kind)
    if box is None:
        raise ValueError(f"it is no {kind}, as the other lines are")
    # What has its centre outside of the image was not written as shares of it.
    if all(map(math.isfinite, box)) and (
        max(box[:2]) > 1 or max(box[2:]) > box_layout.LARGEST_SHARE
    ):
        raise ValueError("not shares of the image, from 0 to 1")
    return box


def label_files(folder: str) -> list[str]:
    """Text files of labels in a folder and the folders in it, relative to it."""
    return [x for x in list_tree(folder, ".txt") if os.path.basename(x).lower() not in NAMES_FILES]
