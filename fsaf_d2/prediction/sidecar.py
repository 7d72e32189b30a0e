"""What is said beside an exported detector: classes, thresholds and how images are prepared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from ..texts import as_line
from .said_fields import FORMER_FORMAT, SIDECAR, check_field

# Files of the former format did not name the branches, of which there were these.
_FORMER_BRANCHES = ["anchor", "point"]
# Under which a file of ONNX or TorchScript holds the same text.
ENTRY = "fsaf_d2.json"
MAX_BYTES = 1 << 24


class Sidecar(NamedTuple):
    """Of an exported detector with K classes, L levels and branches."""

    format: int
    with_nms: bool  # else candidates come out, which are still to be suppressed
    class_names: list[str]
    category_ids: list[int]  # the data set's
    thresholds: list[float]  # the score from which a detection of each class counts
    level_names: list[str]
    branch_names: list[str]
    input_format: str  # "BGR" or "RGB", the order of the channels
    short_side: int  # that images are resized to, in pixels; 0 for as they are
    max_side: int  # above which no longer side gets
    resize: str  # by what images are resized, as INPUT.RESIZE
    size_divisibility: int  # to multiples of it the program pads images
    pixel_mean: list[float]  # of each channel; the program itself subtracts it
    pixel_std: list[float]  # of each channel; the program itself divides by it
    score_thresh: float  # below which nothing comes out
    nms_thresh: float  # IoU above which the lower score is suppressed
    nms_per_level: bool
    max_detections: int  # of an image

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(self._asdict(), indent=1, ensure_ascii=False) + "\n"


def sidecar_file(program: str | Path) -> Path:
    """Where the sidecar of a file lies: ``model.onnx.json`` beside ``model.onnx``."""
    return Path(f"{program}.json")


def read_sidecar(text: str | bytes, source: str) -> Sidecar:
    """Check the text of a sidecar, which is not trusted.

    Args:
        text: JSON.
        source: where it comes from, for messages.

    Raises:
        ValueError: it is not as :class:`Sidecar` says; the message names source, key and value.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"'{source}' is no JSON ({error}). Export the detector again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{source}' must be a JSON object. Export the detector again.")
    if content.get("format") == FORMER_FORMAT:
        content = {"branch_names": _FORMER_BRANCHES, **content}
    for key in Sidecar._fields:
        if key not in content:
            raise ValueError(f"'{source}' has no entry {key!r}. Export the detector again.")
    for key, value in content.items():
        if key not in SIDECAR:
            raise ValueError(f"'{source}' has an unknown entry {key!r:.99}: remove it.")
        check_field(SIDECAR, key, value, source, "Mend it, or export the detector again.")
    sidecar = Sidecar(**content)
    count = len(sidecar.class_names)
    for key in ("category_ids", "thresholds"):
        if len(content[key]) != count:
            raise ValueError(
                f"'{source}': {key} has {len(content[key])} values, but there are {count} "
                "class_names."
            )
    return sidecar._replace(class_names=[as_line(name) for name in sidecar.class_names])
