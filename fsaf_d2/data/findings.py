"""What is found in a data set that is not as it should be."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """One thing that is wrong with a data set, for a person to read."""

    kind: str  # the same for all findings of a kind, such as "zero-sized box"
    severity: Literal["error", "warning"]
    file: str  # annotation file or picture, with the line in text files: "labels/a.txt:3"
    annotation_id: int | None  # None where it is about a file, a picture or a category
    value: str  # what stands there
    remedy: str
