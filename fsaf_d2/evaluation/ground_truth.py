"""The objects of a data set, and what a detector says of its images, as arrays.

Letters: I images, M objects, D detections, K classes. Boxes are COCO's (x, y, width, height) in
pixels of the image.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np

from ..data.object_sizes import LEAST_SIDE, count_by_size
from ..plain_json import load_json


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """What is there to be found."""

    image_ids: list[int]  # I, ascending
    file_names: list[str]  # I, relative to the image folder
    image_sizes: np.ndarray  # (I, 2) width and height
    category_ids: list[int]  # K, in the order of the classes
    class_names: list[str]  # K
    image_index: np.ndarray  # (M,) in 0..I-1
    class_index: np.ndarray  # (M,) in 0..K-1
    boxes: np.ndarray  # (M, 4)
    areas: np.ndarray  # (M,), of masks where the file has those
    crowd: np.ndarray  # (M,) bool: a region of many, which is neither missed nor falsely found
    labelled: bool  # False for test images whose annotations are kept secret

    def classes_of(self, category_ids: np.ndarray) -> np.ndarray:
        """Classes in 0..K-1 of category ids of any shape, -1 where there is no such category."""
        order = np.argsort(self.category_ids)
        known = np.asarray(self.category_ids, dtype=np.int64)[order]
        place = np.searchsorted(known, category_ids).clip(max=len(known) - 1)
        return np.where(known[place] == category_ids, order[place], -1)

    def count(self, class_index: int | None = None) -> int:
        """How many objects there are, of a class or of all."""
        return int(self._chosen(class_index).sum())

    def count_by_size(self, class_index: int | None = None) -> dict[str, int]:
        """How many objects of each of COCO's sizes there are; on a limit, one counts twice."""
        return count_by_size(self.areas[self._chosen(class_index)])

    def _chosen(self, class_index: int | None) -> np.ndarray:
        return ~self.crowd & ((class_index is None) | (self.class_index == class_index))

    def with_classes(self, class_index: np.ndarray, names: list[str]) -> GroundTruth:
        """The same objects in other classes, whose category ids are 0, 1 and so on."""
        return dataclasses.replace(
            self,
            class_index=class_index,
            class_names=names,
            category_ids=list(range(len(names))),
        )

    def of_images(self, images: np.ndarray) -> GroundTruth:
        """Only the objects of some images, given by a mask (I,); all images stay."""
        chosen = images[self.image_index]
        return dataclasses.replace(
            self,
            **{
                name: getattr(self, name)[chosen]
                for name in ("image_index", "class_index", "boxes", "areas", "crowd")
            },
        )


@dataclasses.dataclass(frozen=True)
class Detections:
    """What was found, in no particular order."""

    image_index: np.ndarray  # (D,) in 0..I-1
    category_ids: np.ndarray  # (D,) those of the annotations, or unknown ones
    boxes: np.ndarray  # (D, 4)
    scores: np.ndarray  # (D,)
    levels: np.ndarray | None = None  # (D,) index of the pyramid level that answered
    branches: np.ndarray | None = None  # (D,) index of the branch that answered

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, chosen: np.ndarray) -> Detections:
        """Choose by a mask (D,) or by indices."""
        fields = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Detections(*(None if field is None else field[chosen] for field in fields))


def read_ground_truth(
    annotation_file: str | os.PathLike[str],
    classes: Mapping[int, int] | None = None,
    *,
    with_empty: bool = True,
) -> GroundTruth:
    """Read an annotation file in COCO format.

    Missing areas are those of the boxes; objects without ``iscrowd`` are single ones.

    Args:
        annotation_file: a JSON file that
            :func:`fsaf_d2.data.checking.checks.check_annotations` accepts.
        classes: category id to class in 0..K-1; by default in the order of the ids.
        with_empty: whether boxes without area are objects, which nothing can find.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has no categories, other ones than ``classes``, or ids of more than 64 bits.
    """
    data = load_json(annotation_file)
    names = {category["id"]: category["name"] for category in data["categories"]}
    if not names:
        raise ValueError(f"'{os.fspath(annotation_file)}' has no categories.")
    classes = classes or {category_id: k for k, category_id in enumerate(sorted(names))}
    if set(classes) != set(names):
        raise ValueError(
            f"'{os.fspath(annotation_file)}' has the category ids {_some(sorted(names))}, but the "
            f"data set is registered with {_some(sorted(classes))}."
        )
    category_ids = sorted(classes, key=classes.__getitem__)
    images = sorted(data["images"], key=lambda image: image["id"])
    places = {image["id"]: i for i, image in enumerate(images)}
    annotations = [x for x in data.get("annotations", []) if x["image_id"] in places]
    if not with_empty:
        annotations = [x for x in annotations if min(x["bbox"][2:]) > LEAST_SIDE]
    boxes = np.array([x["bbox"] for x in annotations], dtype=float).reshape(-1, 4)
    areas = [x.get("area") for x in annotations]
    try:
        np.array([*places, *names], dtype=np.int64)
    except OverflowError as error:
        raise ValueError(f"'{os.fspath(annotation_file)}' has ids above 64 bits.") from error
    return GroundTruth(
        image_ids=list(places),
        file_names=[image.get("file_name", "") for image in images],
        image_sizes=np.array(
            [(image.get("width", np.nan), image.get("height", np.nan)) for image in images]
        ).reshape(-1, 2),
        category_ids=category_ids,
        class_names=[names[category_id] for category_id in category_ids],
        image_index=np.array([places[x["image_id"]] for x in annotations], dtype=np.int64),
        class_index=np.array([classes[x["category_id"]] for x in annotations], dtype=np.int64),
        boxes=boxes,
        areas=np.array(
            [w * h if area is None else area for area, (_, _, w, h) in zip(areas, boxes)],
            dtype=float,
        ),
        crowd=np.array([bool(x.get("iscrowd", 0)) for x in annotations], dtype=bool),
        labelled="annotations" in data,
    )


def _some(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
