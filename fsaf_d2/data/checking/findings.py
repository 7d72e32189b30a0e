"""What is found in a data set that is not as it should be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from ..reading.formats.source import Finding


class Flaw(NamedTuple):
    """A finding and the entry of the annotation file that it is about, for a program to mend."""

    finding: Finding
    sentence: str  # what is wrong with what, without the name of the annotation file
    section: str = ""  # "images", "annotations" or "categories"; "" for the whole file
    index: int = -1  # place in that list


# kind: how severe, and what to do. Errors stop a training: detectron2 could not read the data, or
# would in silence train something else than what is meant.
KINDS: dict[str, tuple[Literal["error", "warning"], str]] = {
    # the file
    "list missing": (
        "error",
        "A COCO file is a mapping with the lists 'images', 'annotations' and 'categories'.",
    ),
    "entry without id": ("error", "Give it an 'id' that is a whole number."),
    "duplicate image id": ("error", "Give each image an id of its own."),
    "duplicate annotation id": ("error", "Give each annotation an id of its own."),
    "annotation id 0": (
        "warning",
        "Evaluation by pycocotools takes it for no match, and the object for missed: give another.",
    ),
    "duplicate category id": ("error", "Give each category an id of its own."),
    "category without name": (
        "error",
        "Give it a 'name' of at most 200 letters.",
    ),
    "duplicate category name": ("error", "Make them one category, or give them two names."),
    "no objects": ("warning", "There is nothing to learn or to evaluate: give boxes."),
    "category without objects": (
        "warning",
        "The model gets a class that it cannot learn: leave it out, or label some.",
    ),
    # references
    "annotation of a missing image": (
        "error",
        "Its image_id is not that of any of the images: correct or remove it.",
    ),
    "unknown category id": (
        "error",
        "There is no category, or class, of this number: correct it, or add the category.",
    ),
    "shifted category ids": (
        "error",
        "All annotations count the categories from another number than the list of "
        "categories: shift them.",
    ),
    # images as the file has them
    "image without file name": ("error", "Give it a 'file_name' that is a text."),
    "path leaves the image folder": (
        "error",
        "It is not that of a file in the image folder, after links have been followed: move "
        "the image there, or name the folder that holds all.",
    ),
    "image size missing": ("error", "Write the image's width and height in pixels, above 0."),
    "duplicate file name": (
        "error",
        "Make them one image: the objects of each are background in the other.",
    ),
    "labelled image without a box": (
        "error",
        "All of its boxes are broken, and it would be trained as background: mend them or "
        "leave the image out.",
    ),
    "crowd-only image": ("warning", "It is left out of training; evaluation ignores its crowds."),
    # images as they are
    "missing image": (
        "error",
        "There is no such file: bring it, correct its name, or leave the image out. --fix writes "
        "the name of a file that is named here as nearly the same.",
    ),
    "not an image": ("error", "It is of no known image format: replace it, or leave it out."),
    "truncated image": ("error", "Its end is missing: copy it again, or leave it out."),
    "damaged image": ("error", "It cannot be decoded: copy it again, or leave it out."),
    "huge image": (
        "error",
        "It is not read: make it smaller, cut it up or raise INPUT.MAX_PIXELS.",
    ),
    "image too thin": (
        "error",
        "Resized to a long side of INPUT.MAX_SIZE_TRAIN or MAX_SIZE_TEST nothing of it is left: "
        "cut it up, or leave it out.",
    ),
    "thin image": (
        "warning",
        "Resized to a long side of INPUT.MAX_SIZE_TRAIN or MAX_SIZE_TEST it has few pixels across: "
        "cut it up.",
    ),
    "further frames": (
        "warning",
        "Its first frame, or page, alone is read: save the others as files of their own.",
    ),
    "16-bit grey image": (
        "error",
        "It would be read as white, since values above 255 are cut: save it with 8 bits.",
    ),
    "16-bit colour image": ("warning", "Its upper 8 bits are used: save it with 8 bits."),
    "wrong image size": (
        "error",
        "Write the file's own width and height, and see whether the boxes are of that size.",
    ),
    "size before EXIF rotation": (
        "error",
        "The image is turned as its EXIF data say when it is read: turn the file itself, "
        "and the boxes if they were drawn on the unturned image.",
    ),
    "EXIF-rotated image": (
        "warning",
        "The image is turned as its EXIF data say when it is read: see that the boxes were "
        "drawn on the turned one.",
    ),
    # boxes as they are written
    "annotation without box": (
        "error",
        "Give it a 'bbox', or remove it. --fix writes that of its segmentation.",
    ),
    "box of wrong length": ("error", "Write four numbers: x, y, width, height in pixels."),
    "box of strings": ("error", "Write numbers without quotation marks."),
    "box of no numbers": ("error", "Write four numbers: x, y, width, height in pixels."),
    "box not finite": ("error", "Write four finite numbers, or remove the annotation."),
    "broken segmentation": (
        "error",
        "It is no polygon of three points or more, for which detectron2 leaves the object out, "
        "and no mask whose counts fill its size: mend it, or remove the segmentation.",
    ),
    "ignore flag": ("error", "Detectron2 refuses it: use iscrowd, or remove the object."),
    "iscrowd neither 0 nor 1": (
        "error",
        "Detectron2 takes it for a crowd and leaves the object out: write 0 or 1.",
    ),
    "missing iscrowd": ("warning", "It is taken as 0."),
    "missing area": ("warning", "It is taken as width times height of the box."),
    # boxes in their images
    "zero-sized box": (
        "error",
        "Correct or remove it. A run leaves out a few by name (DATALOADER.STRICT_BOXES).",
    ),
    "negative box size": ("error", "It would be left out in silence: correct or remove it."),
    "box outside the image": ("error", "It would be left out in silence: correct or remove it."),
    "box partly outside": ("warning", "It is cut at the border in training."),
    "normalised box": ("error", "Write pixels: multiply by the image's width and height."),
    "xyxy given as xywh": ("error", "The boxes are two corners: write x, y, width and height."),
    "box of a pixel": ("warning", "A side of it is a pixel or less: see that it is meant."),
    "duplicate box": ("warning", "The object counts twice: remove one."),
    # training and validation
    "leak": ("error", "The figures would be too good: remove it from training or validation."),
    "same data for validation": ("warning", "The figures say nothing about other images."),
    "same name in validation": (
        "warning",
        "The boxes are the same, the files differ: see that it is not one image, saved twice.",
    ),
}


def find(kind: str, file: str, value: str, annotation_id: int | None = None) -> Finding:
    """A finding of one of the :data:`KINDS`."""
    severity, remedy = KINDS[kind]
    return Finding(kind, severity, file, annotation_id, value, remedy)


def summarise(findings: Iterable[Finding], limit: int | None = 20) -> dict[str, dict]:
    """Put findings together by kind, errors first.

    Args:
        findings: of any kinds.
        limit: how many of a kind are kept; None keeps all.

    Returns:
        for each kind ``severity``, ``count`` and ``first``, a list of dicts with ``file``,
        ``annotation_id``, ``value`` and ``remedy``.
    """
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(finding.kind, []).append(finding)
    ordered = sorted(kinds.items(), key=lambda item: item[1][0].severity)
    return {
        kind: {
            "severity": found[0].severity,
            "count": len(found),
            "first": [
                {
                    "file": finding.file,
                    "annotation_id": finding.annotation_id,
                    "value": finding.value,
                    "remedy": finding.remedy,
                }
                for finding in found[:limit]
            ],
        }
        for kind, found in ordered
    }
