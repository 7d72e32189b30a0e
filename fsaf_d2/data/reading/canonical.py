"""One form for the data of all formats: COCO json with nothing missing and nothing more."""

from __future__ import annotations

import difflib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from .formats.source import Source


def match_categories(train: Sequence[Mapping], other: Sequence[Mapping], place: str) -> dict:
    """Match the categories of another data set with those of the training data, by name.

    Args:
        train: entries with ``id`` and ``name``.
        other: the same of the other data set.
        place: where that is, for the message.

    Returns:
        for each id of the other data set that of the training data.

    Raises:
        ValueError: a name stands for two categories, or is none of the training data's; the message
            names it, and the one that differs from it in capitals and spaces alone.
    """
    ids = {}
    for category in train:
        if ids.setdefault(category["name"], category["id"]) != category["id"]:
            raise ValueError(
                f"Two categories of the training data have the name {category['name']!r:.99}: "
                "give them one id, or different names."
            )
    names = [category["name"] for category in other]
    unknown = [name for name in dict.fromkeys(names) if name not in ids]
    if unknown:
        plain = {_plain(name): name for name in ids}
        near = {name: difflib.get_close_matches(_plain(name), plain, n=1) for name in unknown[:10]}
        said = [
            f"{name!r:.99}" + (f" (did you mean {plain[found[0]]!r:.99}?)" if found else "")
            for name, found in near.items()
        ]
        shown = ", ".join(f"{name!r:.99}" for name in list(ids)[:20])
        raise ValueError(
            f"'{place}' has {'a class' if len(unknown) == 1 else 'classes'} that the training data "
            f"lack: {', '.join(said)}{' and more' if len(unknown) > 10 else ''}. These have {shown}"
            f"{' and more' if len(ids) > 20 else ''}. Names must be the same, capitals and spaces "
            "too: rename or remove them, or add them to the training data."
        )
    twice, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise ValueError(f"Two categories of '{place}' have the name {twice!r:.99}.")
    return {category["id"]: ids[category["name"]] for category in other}


def _plain(name: str) -> str:
    return "".join(name.casefold().replace("_", " ").replace("-", " ").split())


def canonical_coco(source: Source, categories: Iterable[Mapping], ids: Mapping) -> dict:
    """The data of a source as COCO json that every reader takes alike.

    What a box detector does not read is left out. A missing ``area`` is that of the box, a missing
    ``iscrowd`` 0. An annotation with the id 0 gets another one: pycocotools takes 0 for no match.

    Args:
        source: whose structure has been checked.
        categories: entries with ``id`` and ``name``, of the result.
        ids: the category in the result of each of the source's.

    Raises:
        ValueError: an annotation has ``ignore``, which detectron2 does not take, or an ``iscrowd``
            other than 0 and 1.
    """
    entries = source.data["annotations"]
    new_id = max((entry["id"] for entry in entries), default=0) + 1
    return {
        "info": {
            "description": "written by fsaf_d2",
            "source": source.path,
            "format": source.format,
            "image_root": os.path.abspath(source.image_root),
        },
        "images": [
            {key: image[key] for key in ("id", "file_name", "width", "height")}
            for image in source.data["images"]
        ],
        "annotations": [
            {
                "id": entry["id"] or max(new_id, 1),
                "image_id": entry["image_id"],
                "category_id": ids.get(entry["category_id"], entry["category_id"]),
                "bbox": entry["bbox"],
                "area": _area(entry),
                "iscrowd": _crowd(entry, source),
            }
            for entry in entries
        ],
        "categories": [{"id": x["id"], "name": x["name"]} for x in categories],
    }


def _area(entry: Mapping) -> float:
    area = entry.get("area")
    if isinstance(area, (int, float)) and area >= 0:
        return area
    return entry["bbox"][2] * entry["bbox"][3]


def _crowd(entry: Mapping, source: Source) -> int:
    place = source.places.get(entry["id"], f"{source.annotation_file}, annotation {entry['id']}")
    if entry.get("ignore"):
        raise ValueError(
            f"{place} has 'ignore', which is not known here. What shall be neither learnt nor "
            "missed is 'iscrowd': 1."
        )
    crowd = entry.get("iscrowd") or 0
    if crowd not in (0, 1):
        raise ValueError(f"{place} has 'iscrowd' {crowd!r:.99}, not 0 or 1.")
    return int(crowd)


def write_json(path: str, data: object) -> None:
    """Write a file as a whole or not at all; its folder is made."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    unfinished = f"{path}.{os.getpid()}.tmp"
    try:
        with open(unfinished, "w", encoding="utf-8") as file:
            json.dump(data, file)
        os.replace(unfinished, path)
    except BaseException:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
        raise
