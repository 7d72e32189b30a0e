"""YOLO: a text file for each image, with a line for each object.

A line is a class number and the centre, width and height of the box as shares of the image, or a
class number and the corners of a polygon, whose bounding box is taken. An image without a text
file is one without objects.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator

from ..image_folder import ImageFolder
from ..image_headers import image_size
from .foreign_files import IMAGES, find_entry, list_files, list_images, read_text
from .source import Candidate, Finding, Source, SourceError, is_split_folder, split_of
from .yolo_yaml import NAMES_FILES, find_names, load_names, read_settings, split_folders

_REMEDY = "A line is: class x y width height, or class x1 y1 x2 y2 x3 y3 ..., shares of the image."


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
        found = [
            _candidate(os.path.join(images, x), os.path.join(labels, x), f"images/{x}", split_of(x))
            for x in parts
            if os.path.isdir(os.path.join(images, x))
        ]
        return found or [_candidate(images, labels, "images/ with labels/", None)]
    if list_files(folder, *IMAGES):
        labels = _labels_of(folder)
        if labels != folder or _has_labels_beside(folder):
            return [_candidate(folder, labels, "images with text files", None)]
    return []


def find_in_yaml(path: str) -> list[Candidate]:
    """The splits of a YAML file; none if it is about something else."""
    try:
        settings = read_settings(path)
    except SourceError:
        # There are YAML files of many programs; these are meant.
        if os.path.basename(path).lower().startswith(("data.", "dataset.")):
            raise
        return []
    return [
        Candidate("yolo", split_of(key), f"{os.path.basename(path)}: {key}", _reader(path, key))
        for key in settings
        if split_of(key) and "names" in settings and settings[key]
    ]


def _reader(path: str, key: str) -> functools.partial[Source]:
    return functools.partial(read_yaml, path, key)


def _candidate(images: str, labels: str, name: str, split: object) -> Candidate:
    return Candidate("yolo", split, name, functools.partial(read, images, labels))


def _labels_of(images: str) -> str:
    """The folder of the labels of a folder of images.

    In its path, ``labels`` stands for the last ``images``; else they lie beside the images.
    """
    before, images_part, behind = f"{os.path.abspath(images)}/".rpartition("/images/")
    labels = f"{before}/labels/{behind}".rstrip("/")
    return labels if images_part and os.path.isdir(labels) else images


def _has_labels_beside(folder: str) -> bool:
    texts = {os.path.splitext(x)[0] for x in list_files(folder, ".txt")}
    return any(os.path.splitext(x)[0] in texts for x in list_files(folder, *IMAGES))


def read(images: str, labels: str) -> Source:
    """Read a folder of images and the folder of their labels.

    Names of the classes are looked for in both, and around them: :func:`.yolo_yaml.find_names`.

    Raises:
        SourceError: there are no names of classes, or no image has labels.
    """
    return _read([(images, labels)], images, labels, find_names(images, labels))


def read_yaml(path: str, key: str) -> Source:
    """Read a split of a YAML file.

    Args:
        path: of the file.
        key: of the split, such as ``train``.

    Raises:
        SourceError: it leads to no folder within the YAML file's own, there are no names of
            classes, or no image has labels.
    """
    settings = read_settings(path)
    own = os.path.dirname(path) or os.curdir
    folders = []
    for images in split_folders(path, settings, key):
        labels = _labels_of(images)
        is_own = ImageFolder(own).holds(os.path.relpath(labels, own))
        folders.append((images, labels if is_own else images))
    root = folders[0][0] if len(folders) == 1 else own
    return _read(folders, root, path, load_names(path, settings))


def _read(
    folders: list[tuple[str, str]], root: str, annotation_file: str, names: list[str]
) -> Source:
    reader = _Reader(root, names)
    for images, labels in folders:
        reader.read(ImageFolder(images), ImageFolder(labels))
    if reader.num_labelled == 0:
        raise SourceError(
            f"None of the {reader.num_images} images in "
            f"{' and '.join(images for images, _ in folders)} has a text file of labels in "
            f"{' and '.join(labels for _, labels in folders)}: an image images/a.jpg needs "
            "labels/a.txt, or a.txt beside it."
        )
    return Source(
        path=annotation_file,
        format="yolo",
        annotation_file=annotation_file,
        image_root=root,
        data=reader.data,
        places=reader.places,
        findings=reader.findings,
        notes=reader.notes(),
    )


class _Reader:
    def __init__(self, root: str, names: list[str]) -> None:
        categories = [{"id": index, "name": name} for index, name in enumerate(names)]
        self.data: dict[str, list] = {"images": [], "annotations": [], "categories": categories}
        self.places: dict[int, str] = {}
        self.findings: list[Finding] = []
        self.num_images = self.num_labelled = self._polygons = 0
        self._root = root

    def notes(self) -> list[str]:
        """What a person should know."""
        text = f"{self._polygons} polygons are taken as their bounding boxes."
        return [text] if self._polygons else []

    def read(self, images: ImageFolder, labels: ImageFolder) -> None:
        """Read all images of a folder, and their labels."""
        left = set(_label_files(labels.root))
        for name in list_images(images.root):
            self.num_images += 1
            label = f"{os.path.splitext(name)[0]}.txt"
            is_labelled = os.path.lexists(os.path.join(labels.root, label))
            self.num_labelled += is_labelled
            left.discard(label)
            try:
                size = image_size(images, name)
            except (ValueError, OSError) as error:
                remedy = "Mend the image, or remove it together with its text file."
                path = os.path.join(images.root, name)
                self._find("unreadable image", path, str(error), remedy)
                continue
            file_name = os.path.relpath(os.path.join(images.root, name), self._root)
            image = {"id": len(self.data["images"]) + 1, "file_name": file_name}
            image["width"], image["height"] = size
            self.data["images"].append(image)
            if is_labelled:
                self._labels(labels, label, image)
        for label in sorted(left):
            remedy = f"There is no image of that name in '{images.root}': add it, or remove this."
            self._find("labels of a missing image", os.path.join(labels.root, label), "", remedy)

    def _labels(self, labels: ImageFolder, label: str, image: dict) -> None:
        path = os.path.join(labels.root, label)
        try:
            lines = read_text(labels, label).decode("utf-8-sig").splitlines()
        except (ValueError, OSError) as error:
            self._find("unreadable annotation file", path, str(error), "Mend or remove the file.")
            return
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                category, box = self._object(line.split(), image)
            except ValueError as error:
                self._find("unreadable object", place, f"{line.strip():.80} ({error})", _REMEDY)
                continue
            key = len(self.data["annotations"]) + 1
            self.data["annotations"].append(
                {"id": key, "image_id": image["id"], "category_id": category, "bbox": box}
            )
            self.places[key] = place

    def _object(self, words: list[str], image: dict) -> tuple[int, list[float]]:
        numbers = [float(word) for word in words]
        if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
            raise ValueError(f"{len(words)} numbers")
        if not numbers[0].is_integer():
            raise ValueError("the class is no whole number")
        box = numbers[1:]
        if len(words) > 5:
            self._polygons += 1
            xs, ys = numbers[1::2], numbers[2::2]
            left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
            box = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
        x, y, width, height = box
        # What has its centre outside of the image was not written as shares of it.
        if all(map(math.isfinite, box)) and max(x, y) > 1:
            raise ValueError("not shares of the image, from 0 to 1")
        horizontal, vertical = image["width"], image["height"]
        return int(numbers[0]), [
            (x - width / 2) * horizontal,
            (y - height / 2) * vertical,
            width * horizontal,
            height * vertical,
        ]

    def _find(self, kind: str, file: str, value: str, remedy: str) -> None:
        self.findings.append(Finding(kind, "error", file, None, f"{value:.200}", remedy))


def _label_files(folder: str) -> Iterator[str]:
    """Text files of labels in a folder and the folders in it, relative to it."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(".txt") and name.lower() not in NAMES_FILES:
                yield os.path.relpath(os.path.join(parent, name), folder)
