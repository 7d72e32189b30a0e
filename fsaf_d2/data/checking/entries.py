"""Types, ids and references of an annotation file in COCO's layout.

Letters: I images, M annotations that can be used, K categories.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...texts import MAX_NAME_LENGTH, is_class_name, shown
from ..reading.image_folder import ImageFolder
from .fields import box_fault, field_flaws, is_integer, is_side
from .findings import Flaw, find

_DUPLICATE_ID = {
    "images": "duplicate image id",
    "annotations": "duplicate annotation id",
    "categories": "duplicate category id",
}


class Entries:
    """What can be used of an annotation file, and what is wrong with the rest.

    An annotation can be used if its box is four finite numbers and its image is in the file.

    Attributes:
        flaws: what was found; later checks add to them.
        categories: (K) and
        images: (I) those with an id, the first of each.
        category_places, image_places: (K), (I) where in the file's lists they stand.
        in_folder: (I) whether their name leads to a place in the image folder.
        sizes: (I, 2) width and height, nan where they are not given.
        is_labelled: (I,) bool, whether an annotation that is no crowd names the image.
        annotations: (M) those that can be used.
        annotation_places: (M) where in the file's list they stand.
        boxes: (M, 4) as they are written.
        image_index, category_index: (M,) in 0..I-1 and 0..K-1, -1 where the category is unknown.
        is_crowd: (M,) bool.
        category_shift: what has to be added to every category_id; category_index has it.
    """

    def __init__(self, annotation_file: str, places: dict[int, str] | None = None) -> None:
        self.annotation_file = annotation_file
        self.places = places or {}
        self.flaws: list[Flaw] = []
        self.categories: list[dict] = []
        self.category_places: list[int] = []
        self.images: list[dict] = []
        self.image_places: list[int] = []
        self.in_folder: list[bool] = []
        self.sizes = np.empty((0, 2))
        self.is_labelled = np.empty(0, dtype=bool)
        self.annotations: list[dict] = []
        self.annotation_places: list[int] = []
        self.boxes = np.empty((0, 4))
        self.image_index = self.category_index = np.empty(0, dtype=np.int64)
        self.is_crowd = np.empty(0, dtype=bool)
        self.category_shift = 0
        self._names: dict[int, str] = {}  # of the images, by id

    def of_annotation(self, kind: str, annotation: dict, index: int, value: str) -> Flaw:
        """What is wrong with an annotation, which is ``index`` in the file's list."""
        key, image_id = annotation.get("id"), annotation.get("image_id")
        key = key if is_integer(key) else None
        name = self._names.get(image_id) if is_integer(image_id) else None
        subject = f"annotation {annotation.get('id')!r:.99}"
        # Whose image or category is in doubt is not told by them.
        if name is not None and not value.startswith(("image_id", "category_id")):
            subject += f" of image {image_id}"
        file = self.places.get(key) or name or self.annotation_file
        finding = find(kind, file, value, key)
        return Flaw(finding, f"{subject} has the {value}", "annotations", index)

    def of_box(self, kind: str, m: int, value: str = "") -> Flaw:
        """What is wrong with the box of an annotation in 0..M-1."""
        annotation = self.annotations[m]
        value = f"bbox [{', '.join(f'{x:.6g}' for x in annotation['bbox'])}]{value}"
        return self.of_annotation(kind, annotation, self.annotation_places[m], value)

    def of_image(self, kind: str, i: int, value: str) -> Flaw:
        """What is wrong with an image in 0..I-1."""
        name = self.images[i].get("file_name")
        file = name if isinstance(name, str) and name else self.annotation_file
        return Flaw(find(kind, file, value), value, "images", self.image_places[i])

    def of_image_file(self, kind: str, i: int, value: str) -> Flaw:
        """What is wrong with the image file of an image in 0..I-1."""
        image = self.images[i]
        sentence = f"image {image['id']}, {image['file_name']!r:.99}: {value}"
        return self.of_image(kind, i, value)._replace(sentence=sentence)

    def of_file(self, kind: str, value: str, section: str = "", index: int = -1) -> Flaw:
        """What is wrong with the file, a category or an entry that has no name."""
        return Flaw(find(kind, self.annotation_file, value), value, section, index)


def check_entries(
    data: object,
    annotation_file: str,
    image_root: str,
    *,
    places: dict[int, str] | None = None,
    unique_annotations: bool = True,
) -> Entries:
    """Look at every entry that a box detector reads; the images themselves are not looked for.

    An image lies in its folder if that is so after every symbolic link has been followed; the
    folder itself may be a link.

    Args:
        data: of a JSON file, nothing about it is trusted.
        annotation_file: its name.
        image_root: the folder that its file names are relative to.
        places: see :class:`..reading.sources.Source`.
        unique_annotations: whether two annotations may not have the same id.
    """
    entries = Entries(annotation_file, places)
    if not isinstance(data, dict):
        entries.flaws.append(entries.of_file("list missing", "it is no mapping"))
        data = {"images": [], "categories": []}
    _check_categories(entries, data)
    _check_images(entries, data, ImageFolder(image_root))
    # Files of test images have none.
    if "annotations" not in data:
        data = {"annotations": []}
    _check_annotations(entries, data, unique_annotations)
    return entries


def _check_categories(entries: Entries, data: dict) -> None:
    for index, category in _identified(entries, data, "categories"):
        entries.categories.append(category)
        entries.category_places.append(index)
        if not is_class_name(name := category.get("name")):
            value = f"category {category['id']} has no 'name' that is a text"
            if isinstance(name, str):
                value += f" of at most {MAX_NAME_LENGTH} whole letters, but {shown(name)}"
            entries.flaws.append(
                entries.of_file("category without name", value, "categories", index)
            )


def _check_images(entries: Entries, data: dict, folder: ImageFolder) -> None:
    sizes = []
    for index, image in _identified(entries, data, "images"):
        key, name = image["id"], image.get("file_name")
        place = len(entries.images)
        entries.images.append(image)
        entries.image_places.append(index)
        size = [image.get("width"), image.get("height")]
        sizes.append([x if is_side(x) else np.nan for x in size])
        if not isinstance(name, str) or not name:
            entries.in_folder.append(False)
            value = f"image {key} has no 'file_name' that is a text"
            entries.flaws.append(entries.of_image("image without file name", place, value))
            continue
        entries._names[key] = name
        for side, x in zip(("width", "height"), sizes[-1]):
            if np.isnan(x):
                value = f"image {key} ({name!r:.99}) has no '{side}' above 0 in whole pixels"
                value += f": {image[side]!r:.40}" if image.get(side) is not None else ""
                entries.flaws.append(entries.of_image("image size missing", place, value))
                break
        entries.in_folder.append(folder.holds(name))
        if not entries.in_folder[-1]:
            value = f"image {key} has the file name {name!r:.99}, out of folder '{folder.root}'"
            entries.flaws.append(entries.of_image("path leaves the image folder", place, value))
    entries.sizes = np.array(sizes, dtype=np.float64).reshape(-1, 2)


def _check_annotations(entries: Entries, data: dict, unique: bool) -> None:
    image_of_id = {image["id"]: place for place, image in enumerate(entries.images)}
    category_of_id = {category["id"]: k for k, category in enumerate(entries.categories)}
    entries.is_labelled = np.zeros(len(entries.images), dtype=bool)
    columns: list[tuple[int, int, bool]] = []
    boxes, used, strangers = [], set(), []
    for index, annotation in _identified(entries, data, "annotations", unique=unique):
        category_id, image_id = annotation.get("category_id"), annotation.get("image_id")
        category = category_of_id.get(category_id) if is_integer(category_id) else None
        if is_integer(category_id):
            used.add(category_id)
        if category is None:
            strangers.append((index, annotation))
        image = image_of_id.get(image_id) if is_integer(image_id) else None
        if image is None:
            value = f"image_id {image_id!r:.99}"
            kind = "annotation of a missing image"
            entries.flaws.append(entries.of_annotation(kind, annotation, index, value))
        box = annotation.get("bbox")
        for kind, value in field_flaws(annotation):
            entries.flaws.append(entries.of_annotation(kind, annotation, index, value))
        is_crowd = annotation.get("iscrowd", 0) == 1
        if image is not None:
            entries.is_labelled[image] |= not is_crowd
            if box_fault(box) is None:
                entries.annotations.append(annotation)
                entries.annotation_places.append(index)
                columns.append((image, -1 if category is None else category, is_crowd))
                boxes.append(box)
    table = np.array(columns, dtype=np.int64).reshape(-1, 3)
    entries.image_index, entries.category_index = table[:, 0], table[:, 1]
    entries.is_crowd = table[:, 2].astype(bool)
    entries.boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    _check_references(entries, strangers, used, set(category_of_id))
    if entries.category_shift:
        ids = [annotation.get("category_id") for annotation in entries.annotations]
        shifted = [x + entries.category_shift if is_integer(x) else None for x in ids]
        indices = [category_of_id.get(x, -1) for x in shifted]
        entries.category_index = np.array(indices, dtype=np.int64)


def _check_references(
    entries: Entries, strangers: list[tuple[int, dict]], used: set[int], known: set[int]
) -> None:
    """Judge annotations whose category is not listed, all of them together."""
    if not strangers:
        return
    entries.category_shift = category_shift(used, known)
    for index, annotation in strangers:
        category_id, kind = annotation.get("category_id"), "unknown category id"
        value = f"category_id {category_id!r:.99}"
        if entries.category_shift and is_integer(category_id):
            kind = "shifted category ids"
            value += (
                f" (annotations use {min(used)} to {max(used)}, the categories are {min(known)} to "
                f"{max(known)})"
            )
        entries.flaws.append(entries.of_annotation(kind, annotation, index, value))


def category_shift(used: set[int], known: set[int]) -> int:
    """By how much all category ids of the annotations are too low, 0 where that is not certain.

    It is where nearly all categories occur, and each id is that of a category once shifted.
    """
    enough = len(used) == len(known) or len(used) >= max(5, 0.8 * len(known))
    for shift in (1, -1):
        if used and enough and {x + shift for x in used} <= known and not used <= known:
            return shift
    return 0


def _identified(
    entries: Entries, data: dict, section: str, *, unique: bool = True
) -> Iterator[tuple[int, dict]]:
    """The entries of a list with their places; of images and categories the first of an id."""
    listed = data.get(section)
    if not isinstance(listed, list):
        entries.flaws.append(entries.of_file("list missing", f"it has no list '{section}'"))
        return
    ids: set[int] = set()
    for index, entry in enumerate(listed):
        key = entry.get("id") if isinstance(entry, dict) else None
        is_first = is_integer(key) and key not in ids
        if not is_integer(key):
            value = f"entry {index} of '{section}' has no 'id' that is a whole number"
            if isinstance(key, (int, float)):
                value += f" of at most 63 bits, but {key!r:.40}"
            entries.flaws.append(entries.of_file("entry without id", value, section, index))
        elif is_first:
            ids.add(key)
        elif unique:
            value = f"two entries of '{section}' have the id {key}"
            flaw = entries.of_file(_DUPLICATE_ID[section], value, section, index)
            if section == "annotations":
                flaw = flaw._replace(finding=flaw.finding._replace(annotation_id=key))
            entries.flaws.append(flaw)
        # What an annotation labels does not depend on its own id.
        if is_first or (section == "annotations" and isinstance(entry, dict) and entry):
            yield index, entry
