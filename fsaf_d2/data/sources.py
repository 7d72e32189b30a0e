"""Data sets as people have them: COCO, Roboflow's export of it, Pascal VOC, YOLO."""

from __future__ import annotations

import dataclasses

from .findings import Finding


@dataclasses.dataclass
class Source:
    """Annotations of one split in COCO's layout, with values as they stand in the files.

    Nothing in it is checked: see :mod:`.checks`. Boxes are COCO's, (x, y, width, height) in pixels,
    where the format's own numbers could be read.
    """

    path: str  # as it was given
    format: str  # "coco", "roboflow", "voc" or "yolo"
    annotation_file: str  # the JSON file; for other formats the folder or YAML file
    image_root: str  # the folder that file names are relative to
    data: dict  # "images", "annotations", "categories"
    places: dict[int, str] = dataclasses.field(default_factory=dict)
    """Where an annotation, by its id, stands: "labels/a.txt:3". Not for COCO files."""
    findings: list[Finding] = dataclasses.field(default_factory=list)
    """What could not be brought into COCO's layout."""
