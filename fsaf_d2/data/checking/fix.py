"""Mending what is certain in an annotation file, and nothing else."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np

from ...plain_numbers import decimal
from ..reading import box_layout
from ..reading.near_names import NearNames
from .check_source import COCO_FORMATS, Check, check_source
from .doubles import has_id, needless_images, repeated_entries, unused_categories
from .fields import LARGEST, is_integer, is_number, segmentation_box, tidy
from .findings import Flaw
from .leaks import check_leaks
from .lost_data import Loss, lost_data

# What is done about findings of a kind; what is not here is not certain.
MENDS = {
    "duplicate annotation id": "given a new id",
    "entry without id": "given an id",
    "annotation id 0": "given a new id",
    "duplicate image id": "removed, being the same entry twice",
    "duplicate category id": "removed, being the same entry twice",
    "duplicate category name": "the category that nothing uses removed",
    "duplicate file name": "the entry without objects of its own removed",
    "annotation of a missing image": "annotation removed",
    "shifted category ids": "all annotations shifted",
    "image size missing": "the file's size written",
    "wrong image size": "the file's size written, as all boxes fit it",
    "missing image": "the name of the file written that lies there, else image left out",
    "not an image": "image left out",
    "truncated image": "image left out",
    "damaged image": "image left out",
    "leak": "image left out of the training data",
    "labelled image without a box": "image left out, as it would be background",
    "box of strings": "numbers written",
    "annotation without box": "that of its segmentation written",
    "box not finite": "annotation removed",
    "zero-sized box": "annotation removed",
    "duplicate box": "annotation removed",
    "box partly outside": "cut at the border",
    "normalised box": "pixels written",
    "xyxy given as xywh": "x, y, width, height written, for all boxes",
    "broken segmentation": "segmentation removed",
    "iscrowd neither 0 nor 1": "written as a number",
    "missing iscrowd": "0 written",
    "missing area": "width times height written",
}
UNREADABLE = ("missing image", "not an image", "truncated image", "damaged image")
REMOVED = ("box not finite", "zero-sized box", "duplicate box", "annotation of a missing image")
# Findings are looked for anew after each round, which may mend one thing behind another.
ROUNDS = 6
# By how much width and height may be scaled differently where an image was only resized.
SAME_ASPECT = 0.02


@dataclasses.dataclass
class Fixed:
    """A mended annotation file."""

    check: Check  # what is left; check.source.data is what to write
    changes: Counter  # of each kind of finding, how many were mended
    losses: tuple[Loss, ...] = ()  # of images and of boxes

    @property
    def loses_much(self) -> bool:
        """Whether more than a tenth of the images or of the boxes is lost."""
        return any(loss.is_much for loss in self.losses)


def fix(check: Check, validation: Check | None = None, **options: object) -> Fixed:
    """Mend what is certain. Nothing is written, and the checked data stay as they are.

    Args:
        check: of a data set.
        validation: of its validation data, if leaks are to be left out.
        options: of :func:`.check_source.check_source`.
    """
    changes: Counter = Counter()
    if any(finding.kind == "list missing" for finding in check.findings):
        return Fixed(check, changes)
    before = check
    if check.source.format not in COCO_FORMATS:
        # What other formats have no place for is written as well.
        check = _check_again(check, check.source.data, validation, options)
    for _ in range(ROUNDS):
        mender = _Mender(check)
        for step in (mender.mend_values, mender.mend_layout, mender.mend_entries):
            step()
            if mender.changes:
                break
        else:
            break
        changes += mender.changes
        check = _check_again(check, mender.data, validation, options)
    return Fixed(check, changes, lost_data(before, check, changes))


def _check_again(check: Check, data: dict, validation: Check | None, options: dict) -> Check:
    source = dataclasses.replace(check.source, data=data, format="coco")
    check = check_source(source, known=check.known_image_files, **options)
    if validation is not None:
        check.leaks = check_leaks(check, validation)
    return check


class _Mender:
    """A copy of the data, and the entries of it that findings are about."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self.changes: Counter = Counter()
        # Entries are changed, what they hold is replaced.
        self.data = dict(check.source.data)
        for section in ("images", "annotations", "categories"):
            listed = self.data.get(section, [])
            self.data[section] = [dict(x) if isinstance(x, dict) else x for x in listed]
        self.flaws: dict[str, list[Flaw]] = defaultdict(list)
        for flaw in check.flaws:
            self.flaws[flaw.finding.kind].append(flaw)
        ids = [x["id"] for x in self.data["annotations"] if has_id(x)]
        self.new_ids = itertools.count(max([0, *ids]) + 1)
        self.near = NearNames(check.source.image_root)
        names = (x.get("file_name") for x in self.data["images"] if isinstance(x, dict))
        self.names = {os.path.normpath(x) for x in names if isinstance(x, str)}
        # Which image and box stand at a place of the file's lists.
        self.image_of = {place: i for i, place in enumerate(check.entries.image_places)}
        self.box_of = {place: m for m, place in enumerate(check.entries.annotation_places)}

    def mend_values(self) -> None:
        """Write numbers, ids and sizes that say the same better."""
        self._each("box of strings", self._read_strings)
        self._each("annotation without box", self._derive_box)
        self._each("missing image", self._rename)
        self._each("iscrowd neither 0 nor 1", self._read_crowd)
        self._each("broken segmentation", lambda entry, _: entry.pop("segmentation"))
        self._each("missing iscrowd", lambda entry, _: entry.update(iscrowd=0))
        self._each("duplicate annotation id", self._renumber)
        self._each("entry without id", self._renumber)
        self._each("annotation id 0", self._renumber)
        self._each("image size missing", self._write_size)
        self._each("wrong image size", self._write_size)
        shift = self.check.entries.category_shift
        if shift:
            for annotation in self.data["annotations"]:
                if isinstance(annotation, dict) and is_integer(annotation.get("category_id")):
                    annotation["category_id"] += shift
            self.changes["shifted category ids"] += len(self.flaws["shifted category ids"])

    def mend_layout(self) -> None:
        """Write all boxes as x, y, width, height in pixels, if the way they are in is certain."""
        boxes = self.check.boxes
        kind = "normalised box" if boxes.layout.normalised else "xyxy given as xywh"
        if boxes.layout == box_layout.Layout() or not boxes.layout.certain:
            return
        is_known = np.isfinite(boxes.sizes).all(axis=1) | (not boxes.layout.normalised)
        for m in np.flatnonzero(is_known).tolist():
            self._write_box(self.check.entries.annotation_places[m], boxes.pixels[m])
        self.changes[kind] += len(self.flaws[kind])

    def mend_entries(self) -> None:
        """Cut boxes, write areas, and remove what cannot be used."""
        if self.check.boxes.layout != box_layout.Layout():
            # Of boxes that may mean this or that, nothing is certain.
            return
        clipped = self.check.boxes.clipped()
        for flaw in self.flaws["box partly outside"]:
            self._write_box(flaw.index, clipped[self.box_of[flaw.index]])
            self.changes["box partly outside"] += 1
        self._each("missing area", self._write_area)
        dropped = {kind: {x.index for x in self.flaws[kind]} for kind in REMOVED}
        left_out = {kind: {x.index for x in self.flaws[kind]} for kind in (*UNREADABLE, "leak")}
        left_out["duplicate file name"] = needless_images(self.check)
        left_out["duplicate image id"] = repeated_entries(self.check, "images")
        categories = {"duplicate category id": repeated_entries(self.check, "categories")}
        categories["duplicate category name"] = unused_categories(self.check)
        for found in (dropped, left_out, categories):
            self.changes.update({kind: len(indices) for kind, indices in found.items() if indices})
        self._remove("categories", set().union(*categories.values()))
        self._remove_annotations(set().union(*dropped.values()), set().union(*left_out.values()))

    def _remove_annotations(self, dropped: set[int], left_out: set[int]) -> None:
        """Remove entries; images whose objects all go would be background, and go too."""
        annotations, images = self.data["annotations"], self.data["images"]
        rest = {
            annotation.get("image_id")
            for index, annotation in enumerate(annotations)
            if index not in dropped and _is_object(annotation)
        }
        entries = self.check.entries
        for i, place in enumerate(entries.image_places):
            is_empty = entries.is_labelled[i] and entries.images[i]["id"] not in rest
            if is_empty and place not in left_out:
                left_out.add(place)
                self.changes["labelled image without a box"] += 1
        kept = {x["id"] for i, x in enumerate(images) if i not in left_out and has_id(x)}
        gone = {images[i]["id"] for i in left_out} - kept
        for index, annotation in enumerate(annotations):
            if isinstance(annotation, dict) and is_integer(annotation.get("image_id")):
                dropped |= {index} if annotation["image_id"] in gone else set()
        self._remove("annotations", dropped)
        self._remove("images", left_out)

    def _remove(self, section: str, indices: set[int]) -> None:
        if indices:
            listed = self.data[section]
            self.data[section] = [x for index, x in enumerate(listed) if index not in indices]

    def _each(self, kind: str, mend: Callable[[dict, Flaw], object]) -> None:
        """Mend the entries that findings of a kind are about; False says that it could not."""
        for flaw in self.flaws[kind]:
            entry = self.data[flaw.section][flaw.index]
            if isinstance(entry, dict) and mend(entry, flaw) is not False:
                self.changes[kind] += 1

    def _read_strings(self, entry: dict, _: Flaw) -> bool:
        try:
            box = [tidy(decimal(x.strip())) if isinstance(x, str) else x for x in entry["bbox"]]
        except ValueError:
            return False
        is_box = all(is_number(x) and abs(x) < LARGEST for x in box)
        entry["bbox"] = box if is_box else entry["bbox"]
        return is_box

    def _derive_box(self, entry: dict, _: Flaw) -> bool:
        box = segmentation_box(entry)
        if box is not None:
            entry["bbox"] = [tidy(x) for x in box]
        return box is not None

    def _rename(self, entry: dict, _: Flaw) -> bool:
        """Write the name of the file that is meant, if no other entry has it."""
        near = self.near.find(entry["file_name"])
        if near is None or not near.is_certain or near.name in self.names:
            return False
        self.names.add(near.name)
        entry["file_name"] = near.name
        return True

    def _read_crowd(self, entry: dict, _: Flaw) -> bool:
        meant = {"0": 0, "1": 1, "None": 0}.get(str(entry["iscrowd"]))
        if meant is not None:
            entry["iscrowd"] = meant
        return meant is not None

    def _renumber(self, entry: dict, flaw: Flaw) -> bool:
        if flaw.section != "annotations":
            return False
        entry["id"] = next(self.new_ids)
        return True

    def _write_size(self, entry: dict, flaw: Flaw) -> bool:
        """Write the file's size, if boxes were not meant for an image of another size."""
        i = self.image_of[flaw.index]
        image_file = self.check.image_files[i] if self.check.image_files else None
        if image_file is None or image_file.size is None or image_file.kind in UNREADABLE:
            return False
        declared = self.check.entries.sizes[i]
        if np.isfinite(declared).all() and not self._fits(i, declared, np.array(image_file.size)):
            return False
        entry["width"], entry["height"] = image_file.size
        return True

    def _fits(self, i: int, declared: np.ndarray, size: np.ndarray) -> bool:
        boxes = self.check.boxes
        if boxes.layout.normalised:
            return True
        scale = size / declared
        if abs(scale[0] / scale[1] - 1) < SAME_ASPECT:
            return False
        own = boxes.pixels[self.check.entries.image_index == i]
        sizes = np.tile(size, (len(own), 1))
        return not (box_layout.overhang(own, sizes) > box_layout.TOLERANCE).any()

    def _write_area(self, entry: dict, flaw: Flaw) -> bool:
        if flaw.index not in self.box_of:
            return False
        width, height = entry["bbox"][2:]
        entry["area"] = tidy(max(width, 0) * max(height, 0))
        return True

    def _write_box(self, index: int, box: np.ndarray) -> None:
        """Write a box, and its area if that was made from the box as it was."""
        entry = self.data["annotations"][index]
        before, area = entry["bbox"], entry.get("area")
        entry["bbox"] = [tidy(x) for x in box.tolist()]
        old_area = before[2] * before[3]
        if is_number(area) and abs(area - old_area) <= max(1e-6, 1e-3 * abs(old_area)):
            entry["area"] = tidy(float(box[2] * box[3]))


def _is_object(annotation: object) -> bool:
    is_one = isinstance(annotation, dict) and is_integer(annotation.get("image_id"))
    return is_one and annotation.get("iscrowd", 0) != 1
