"""Doubled names, and images and categories without boxes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np

from .boxes import Boxes
from .entries import Entries
from .findings import Flaw


def check_names(entries: Entries) -> None:
    """Find categories and images of the same name; findings go to ``entries.flaws``."""
    for k, value in _repeated(entries.categories, "category", "name", str):
        flaw = _of_category(entries, "duplicate category name", k, value)
        entries.flaws.append(flaw)
    for i, value in _repeated(entries.images, "image", "file_name", os.path.normpath):
        entries.flaws.append(entries.of_image("duplicate file name", i, value))


def check_contents(entries: Entries, boxes: Boxes) -> None:
    """Find images and categories without boxes; findings go to ``entries.flaws``."""
    has_box, has_crowd = (np.zeros(len(entries.images), dtype=bool) for _ in range(2))
    has_box[entries.image_index[boxes.is_usable & ~entries.is_crowd]] = True
    has_crowd[entries.image_index[entries.is_crowd]] = True
    for i in np.flatnonzero(entries.is_labelled & ~has_box).tolist():
        value = f"image {entries.images[i]['id']} has objects, but no box that can be used"
        entries.flaws.append(entries.of_image("labelled image without a box", i, value))
    for i in np.flatnonzero(has_crowd & ~entries.is_labelled).tolist():
        value = f"image {entries.images[i]['id']} has crowds and no other objects"
        entries.flaws.append(entries.of_image("crowd-only image", i, value))
    if not entries.is_labelled.any():
        value = f"none of the {len(entries.images)} images has objects"
        entries.flaws.append(entries.of_file("no objects", value))
        return
    used = set(entries.category_index.tolist())
    for k, category in enumerate(entries.categories):
        if k not in used:
            value = f"category {category['id']} ({category.get('name')!r:.99}) has no objects"
            entries.flaws.append(_of_category(entries, "category without objects", k, value))


def _repeated(
    listed: list[dict], what: str, key: str, normal_form: Callable[[str], str]
) -> Iterator[tuple[int, str]]:
    """Entries whose name another one has before them: their places and what to say."""
    first_of_name: dict[str, int] = {}
    for index, entry in enumerate(listed):
        name = entry.get(key)
        if not isinstance(name, str) or not name:
            continue
        first = first_of_name.setdefault(normal_form(name), entry["id"])
        if first != entry["id"]:
            yield index, f"{what} {entry['id']} has the {key} {name!r:.99}, as {what} {first} has"


def _of_category(entries: Entries, kind: str, k: int, value: str) -> Flaw:
    return entries.of_file(kind, value, "categories", entries.category_places[k])
