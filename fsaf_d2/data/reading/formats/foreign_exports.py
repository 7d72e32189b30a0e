"""Files of programs for labels whose own formats are not read, and what to export instead."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..annotation_files import read_json
from .foreign_files import list_files

_COCO = "export as COCO there"
# What a program's JSON files are recognised by, its name, and what to do.
_KEYS: tuple[tuple[frozenset[str], str, str], ...] = (
    (
        frozenset(("shapes", "imagePath")),
        "labelme or X-AnyLabeling",
        "convert to COCO (labelme's examples/instance_segmentation/labelme2coco.py; "
        "X-AnyLabeling exports it)",
    ),
    (frozenset(("_via_img_metadata",)), "the VGG Image Annotator (VIA)", _COCO),
    (frozenset(("items", "infos")), "Datumaro", "convert: datum convert -f coco"),
    (frozenset(("objects", "size")), "Supervisely", _COCO),
    (frozenset(("assets", "tags")), "VoTT", "export as Pascal VOC there"),
    (frozenset(("asset", "regions")), "VoTT", "export as Pascal VOC there"),
)
# Of lists, what their first entry is recognised by.
_ENTRY_KEYS = (
    (frozenset(("data", "annotations")), "Label Studio", "export as COCO or YOLO there"),
    (frozenset(("data", "completions")), "Label Studio", "export as COCO or YOLO there"),
    (frozenset(("image", "annotations")), "CreateML", _COCO),
    (frozenset(("image_id", "score")), "a detector's results", "give the annotation file instead"),
)
# Files that are looked into.
_MOST = 3


def explain(folder: str) -> str:
    """What the files of a folder are that is not read, and what to do; empty if not known."""
    inside = [folder, *(os.path.join(folder, x) for x in sorted(os.listdir(folder)))]
    for place in [x for x in inside if os.path.isdir(x)][:_MOST]:
        for name in list_files(place, ".json")[:_MOST]:
            text = explain_json(os.path.join(place, name))
            if text:
                return text
        csv = list_files(place, ".csv", ".record", ".tfrecord")
        if csv:
            return (
                f" Tables and records ('{csv[0]}') are not read: export COCO, Pascal VOC or YOLO."
            )
    return ""


def explain_json(path: str) -> str:
    """What a JSON file is that is not COCO's, and what to do; empty if not known."""
    try:
        return explain_data(path, read_json(path, encoding="utf-8-sig"))
    except (OSError, ValueError):
        return ""


def explain_data(path: str, data: object) -> str:
    """The same of what was parsed."""
    known = _KEYS
    if isinstance(data, list) and data:
        data, known = data[0], _ENTRY_KEYS
    keys = data.keys() if isinstance(data, Mapping) else ()
    for needed, program, remedy in known:
        if needed <= set(keys):
            return f" '{path}' is of {program}, whose own format is not read: {remedy}."
    return ""


def explain_xml(tag: str) -> str:
    """What an XML file with this outermost element is, and what to do; empty if not known."""
    if tag == "annotations":
        return "; it is CVAT's own format: export as COCO, Pascal VOC or YOLO there"
    return ""
