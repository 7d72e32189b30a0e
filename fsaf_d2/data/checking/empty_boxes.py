"""Boxes without area that a run leaves out: a few, where the rest of the data set is sound."""

from __future__ import annotations

from .check_source import Check
from .findings import Flaw
from .lost_data import MUCH

BOX, IMAGE = "zero-sized box", "labelled image without a box"
# Named in the line that counts them.
NAMED = 3


def empty_boxes(check: Check, *, and_images: bool) -> list[Flaw]:
    """Find what a run leaves out instead of being refused.

    Args:
        check: of the data set.
        and_images: whether images can be left out of which all boxes are without area. They would
            be background.

    Returns:
        all errors of the data set, if each is a box without area (or such an image), they are a
        tenth of the boxes at the most and a box is left; or else nothing.
    """
    found = [x for x in check.flaws if x.finding.kind in (BOX, IMAGE)[: 1 + and_images]]
    num_boxes = sum(x.finding.kind == BOX for x in found)
    is_sound = len(found) == check.num_errors and check.boxes.is_usable.any()
    return found if is_sound and num_boxes <= MUCH * len(check.entries.annotations) else []


def without(data: dict, found: list[Flaw]) -> dict:
    """The data without those annotations and images; the data themselves stay as they are."""
    places = {section: set() for section in ("annotations", "images")}
    for flaw in found:
        places[flaw.section].add(flaw.index)
    left = {
        section: [x for place, x in enumerate(data[section]) if place not in out]
        for section, out in places.items()
    }
    ids = {image["id"] for image in left["images"]}
    left["annotations"] = [x for x in left["annotations"] if x["image_id"] in ids]
    return {**data, **left}


def left_out_text(check: Check, found: list[Flaw]) -> str:
    """Count and name what is left out, in a line."""
    boxes = [f"annotation {x.annotation_id} ({x.file})" for x in _of(found, BOX)]
    images = [f"'{x.file}'" for x in _of(found, IMAGE)]
    also = f", and {len(images)} images without any other: {_first(images)}" if images else ""
    return (
        f"Left out: {len(boxes)} of {len(check.entries.annotations)} boxes, which have no area: "
        f"{_first(boxes)}{also}. DATALOADER.STRICT_BOXES True makes that an error."
    )


def _of(found: list[Flaw], kind: str) -> list:
    return [x.finding for x in found if x.finding.kind == kind]


def _first(names: list[str]) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest
