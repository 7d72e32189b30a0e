"""The values of a single annotation, as detectron2 and evaluation read them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...plain_numbers import is_in_range
from .masks import is_whole_mask, mask_box

# Pixels; of what is larger, the corners would not be finite in float32.
LARGEST = 1e12
# Pixels; of corners of polygons, which pycocotools walks to step by step.
FARTHEST = 1e6


def field_flaws(annotation: dict) -> Iterator[tuple[str, str]]:
    """What is wrong with the values of an annotation: kind and value of each finding."""
    box = annotation.get("bbox")
    if is_integer(annotation.get("id")) and annotation["id"] == 0:
        yield "annotation id 0", "id 0"
    fault = box_fault(box)
    if fault:
        derived = segmentation_box(annotation) if fault == "annotation without box" else None
        offer = f" (its segmentation spans {derived}, which --fix writes)" if derived else ""
        yield fault, f"bbox {box!r:.99}{offer}"
    if "iscrowd" not in annotation:
        yield "missing iscrowd", "iscrowd None"
    elif annotation["iscrowd"] not in (0, 1):
        yield "iscrowd neither 0 nor 1", f"iscrowd {annotation['iscrowd']!r:.99}"
    area = annotation.get("area")
    if not (is_number(area) and 0 <= area < LARGEST**2):
        yield "missing area", f"area {area!r:.99}"
    if annotation.get("ignore", 0) != 0:
        yield "ignore flag", f"ignore {annotation['ignore']!r:.99}"
    if annotation.get("segmentation") and not _can_be_read(annotation["segmentation"]):
        yield "broken segmentation", f"segmentation {annotation['segmentation']!r:.99}"


def box_fault(box: object) -> str | None:
    """The kind of finding that a value given as bbox is, None for four finite numbers."""
    if box is None:
        return "annotation without box"
    if not isinstance(box, (list, tuple)):
        return "box of no numbers"
    if len(box) != 4:
        return "box of wrong length" if box else "annotation without box"
    if all(is_number(x) and -LARGEST < x < LARGEST for x in box):
        return None
    if any(isinstance(x, str) for x in box):
        return "box of strings"
    return "box not finite" if all(map(is_number, box)) else "box of no numbers"


def segmentation_box(annotation: dict) -> list[float] | None:
    """The box around the polygons or the mask of an annotation, None where none can be read."""
    polygons = annotation.get("segmentation")
    if isinstance(polygons, dict) and _can_be_read(polygons):
        return mask_box(polygons["counts"], polygons["size"])
    if not isinstance(polygons, list) or not polygons:
        return None
    if not all(isinstance(x, list) and len(x) >= 6 and len(x) % 2 == 0 for x in polygons):
        return None
    if not all(is_number(x) and -LARGEST < x < LARGEST for polygon in polygons for x in polygon):
        return None
    xs = [x for polygon in polygons for x in polygon[::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _can_be_read(segmentation: object) -> bool:
    """Whether detectron2 keeps an object with this segmentation."""
    if isinstance(segmentation, dict):
        return is_whole_mask(segmentation.get("counts"), segmentation.get("size"))
    if not isinstance(segmentation, list) or not all(isinstance(x, list) for x in segmentation):
        return False
    kept = [x for x in segmentation if len(x) % 2 == 0 and len(x) >= 6]
    return bool(kept) and all(map(_are_near, kept))


def _are_near(numbers: list) -> bool:
    """Whether all values of a list are numbers of at most FARTHEST."""
    try:
        # Sums, which C makes, tell of what is no number, and of NaN.
        total = sum(numbers)
        return math.isfinite(total) and -FARTHEST <= min(numbers) <= max(numbers) <= FARTHEST
    except (TypeError, OverflowError):
        return False


def is_integer(value: object) -> bool:
    """Whether a value of a JSON file is a whole number of at most 63 bits, as ids are."""
    # JSON's true and false are whole numbers to Python.
    return isinstance(value, int) and not isinstance(value, bool) and is_in_range(value)


def is_side(value: object) -> bool:
    """Whether a value is the width or height of an image: a whole number above 0, also 160.0."""
    return is_number(value) and 0 < value < LARGEST and value == int(value)


def is_number(value: object) -> bool:
    """Whether a value of a JSON file is a number, finite or not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def tidy(value: float) -> float | int:
    """To a thousandth of a pixel, and whole numbers without a fraction."""
    value = round(value, 3)
    return int(value) if value == int(value) else value
