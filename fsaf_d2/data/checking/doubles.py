"""Which of the entries that are there twice are not needed.

Each function gives places in a list of the annotation file.
"""

from __future__ import annotations

import os
from collections import defaultdict

from .check_source import Check
from .fields import is_integer


def repeated_entries(check: Check, section: str) -> set[int]:
    """Images or categories with an id that another has before, which is the same in all else."""
    listed, first = check.source.data[section], {}
    repeated = set()
    for index, entry in enumerate(listed):
        if has_id(entry) and first.setdefault(entry["id"], entry) is not entry:
            repeated |= {index} if first[entry["id"]] == entry else set()
    return repeated


def needless_images(check: Check) -> set[int]:
    """Of images with the same file name those without annotations, or with those of another."""
    contents: dict[int, set[str]] = defaultdict(set)
    for annotation in _annotations(check):
        if is_integer(annotation.get("image_id")):
            content = annotation.get("category_id"), annotation.get("bbox")
            contents[annotation["image_id"]].add(repr(content))
    first: dict[str, tuple[int, int]] = {}
    needless = set()
    for image, place in zip(check.entries.images, check.entries.image_places):
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            continue
        own = image["id"], place
        other = first.setdefault(os.path.normpath(name), own)
        if other == own:
            continue
        if not contents[own[0]] or contents[own[0]] == contents[other[0]]:
            needless.add(place)
        elif not contents[other[0]]:
            needless.add(other[1])
            first[os.path.normpath(name)] = own
    return needless


def unused_categories(check: Check) -> set[int]:
    """Of categories with the same name those that no annotation has, one being left."""
    used = [annotation.get("category_id") for annotation in _annotations(check)]
    used = set(filter(is_integer, used))
    groups = defaultdict(list)
    for category, place in zip(check.entries.categories, check.entries.category_places):
        if isinstance(category.get("name"), str):
            groups[category["name"]].append((category["id"] in used, place))
    unused: set[int] = set()
    for group in groups.values():
        empty = [place for is_used, place in group if not is_used]
        unused |= set(empty[1:] if len(empty) == len(group) else empty) if len(group) > 1 else set()
    return unused


def has_id(entry: object) -> bool:
    """Whether an entry can be told from others."""
    return isinstance(entry, dict) and is_integer(entry.get("id"))


def _annotations(check: Check) -> list[dict]:
    listed = check.source.data.get("annotations", [])
    return [annotation for annotation in listed if isinstance(annotation, dict)]
