"""Images that are in the training and in the validation data."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from ...regular_files import open_regular
from .check_source import Check
from .findings import Flaw

# By how much of an image's side boxes of the same object differ, after the image was resized.
SAME = 0.005


def check_leaks(training: Check, validation: Check) -> list[Flaw]:
    """Find images of the training data whose file, or name, is in the validation data as well.

    Files are equal if all their bytes are; only those of equal length are read. Images of equal
    names are found if they have the same boxes too: many sets number theirs from 1. If all images
    are in both, that is one finding. Splits of one folder or YAML file are told apart by the images
    that they have.

    Args:
        training, validation: of which the images have been looked at.

    Returns:
        what is wrong with entries of the training data.
    """
    pairs = _equal_files(training, validation)
    is_all = len(pairs) == len(training.entries.images) == len(validation.entries.images) > 0
    if is_all or (_paths(training) and _paths(training) == _paths(validation)):
        # Whoever tries something out may mean it.
        value = f"all images of '{training.source.annotation_file}' are the validation data"
        return [training.entries.of_file("same data for validation", value)]
    flaws, leaking = [], {i for i, _ in pairs}
    for i, j in pairs:
        value = f"the file is '{_path(validation, j)}' of the validation data"
        flaws.append(training.entries.of_image_file("leak", i, value))
    of_name = {_base_name(validation, j): j for j in _readable(validation)}
    candidates = [
        (i, of_name[_base_name(training, i)])
        for i in _readable(training)
        if i not in leaking and _base_name(training, i) in of_name
    ]
    boxes, other_boxes = (_boxes_of(x) if candidates else {} for x in (training, validation))
    for i, j in candidates:
        if _are_same(boxes.get(i), other_boxes.get(j)):
            value = f"there is '{_path(validation, j)}' in the validation data"
            flaws.append(training.entries.of_image_file("same name in validation", i, value))
    return flaws


def _boxes_of(check: Check) -> dict[int, np.ndarray]:
    """For each image with boxes these, (m, 4), as shares of its sides and in a fixed order."""
    boxes = check.boxes.pixels / np.tile(check.boxes.sizes, 2)
    index = check.entries.image_index
    order = np.lexsort((*boxes.T, index))
    images, starts = np.unique(index[order], return_index=True)
    return dict(zip(images.tolist(), np.split(boxes[order], starts[1:])))


def _are_same(boxes: np.ndarray | None, others: np.ndarray | None) -> bool:
    if boxes is None or others is None or len(boxes) != len(others):
        return False
    return bool((np.abs(boxes - others) < SAME).all())


def _equal_files(training: Check, validation: Check) -> list[tuple[int, int]]:
    """Pairs of images, in the order of the training data, at most one pair of each of these."""
    of_length = defaultdict(list)
    for j in _readable(validation):
        of_length[validation.image_files[j].num_bytes].append(j)
    candidates = [i for i in _readable(training) if training.image_files[i].num_bytes in of_length]
    lengths = {training.image_files[i].num_bytes for i in candidates}
    of_content = {}
    for j in (j for length in lengths for j in of_length[length]):
        of_content.setdefault(_hash(_path(validation, j)), j)
    pairs = [(i, of_content.get(_hash(_path(training, i)))) for i in candidates]
    return [(i, j) for i, j in pairs if j is not None]


def _paths(check: Check) -> set[str]:
    """Where all of the images are, whether they can be read or not."""
    root, names = check.source.image_root, (x.get("file_name") for x in check.entries.images)
    return {os.path.realpath(os.path.join(root, x)) for x in names if isinstance(x, str)}


def _readable(check: Check) -> Iterable[int]:
    return (i for i, file in enumerate(check.image_files) if file and file.num_bytes)


def _path(check: Check, i: int) -> str:
    return os.path.join(check.source.image_root, check.entries.images[i]["file_name"])


def _base_name(check: Check, i: int) -> str:
    return os.path.basename(check.entries.images[i]["file_name"])


def _hash(path: str) -> object:
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        # Equal to nothing.
        return object()
    return digest.digest()
