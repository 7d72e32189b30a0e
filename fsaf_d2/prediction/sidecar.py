"""What is said beside an exported detector: classes, thresholds and how images are prepared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..data.loading.resizing import RESIZE_METHODS
from ..texts import as_line
from .description import MAX_NAME_LENGTH

# Of the entries; it is raised when their meaning changes.
FORMAT = 2
# Before it, files did not name the branches, of which there were these.
_FORMER, _FORMER_BRANCHES = 1, ["anchor", "point"]
# Under which a file of ONNX or TorchScript holds the same text.
ENTRY = "fsaf_d2.json"
MAX_BYTES = 1 << 24
_MAX_CLASSES = 1 << 16
_MAX_SIDE = (1 << 31) - 1


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
    if content.get("format") == _FORMER:
        content = {"branch_names": _FORMER_BRANCHES, **content}
    for key in Sidecar._fields:
        if key not in content:
            raise ValueError(f"'{source}' has no entry {key!r}. Export the detector again.")
    for key, value in content.items():
        if key not in _RULES:
            raise ValueError(f"'{source}' has an unknown entry {key!r:.99}: remove it.")
        is_right, expected = _RULES[key]
        if not is_right(value):
            raise ValueError(
                f"'{source}': {key} must be {expected}, not {json.dumps(value):.99}. Mend it, or "
                "export the detector again."
            )
    sidecar = Sidecar(**content)
    count = len(sidecar.class_names)
    for key in ("category_ids", "thresholds"):
        if len(content[key]) != count:
            raise ValueError(
                f"'{source}': {key} has {len(content[key])} values, but there are {count} "
                "class_names."
            )
    return sidecar._replace(class_names=[as_line(name) for name in sidecar.class_names])


def _whole(low: int, high: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _number(low: float, high: float) -> Callable[[object], bool]:
    def is_right(value: object) -> bool:
        # Of NaN neither is true; an int may be too large for a float.
        return type(value) in (int, float) and low <= value <= high

    return is_right


def _list(
    is_right: Callable[[object], bool], low: int = 1, high: int = _MAX_CLASSES
) -> Callable[[object], bool]:
    def are_right(values: object) -> bool:
        return (
            isinstance(values, list) and low <= len(values) <= high and all(map(is_right, values))
        )

    return are_right


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME_LENGTH


def _are_different(values: object) -> bool:
    are_whole = _list(_whole(-(2**53), 2**53))
    return are_whole(values) and len(set(values)) == len(values)


def _is_truth(value: object) -> bool:
    return isinstance(value, bool)


_NAMES = f"texts of {MAX_NAME_LENGTH} letters at the most"
_SHARE = (_number(0, 1), "a number from 0 to 1")
_CHANNELS = (_list(_number(-1e6, 1e6), 3, 3), "3 numbers")
_RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "format": (_whole(_FORMER, FORMAT), f"{_FORMER} or {FORMAT}, those that are known"),
    "with_nms": (_is_truth, "true or false"),
    "class_names": (_list(_is_name), _NAMES),
    "category_ids": (_are_different, "different whole numbers"),
    "thresholds": (_list(_number(0, 1)), "numbers from 0 to 1"),
    "level_names": (_list(_is_name, high=32), _NAMES),
    "branch_names": (_list(_is_name, high=32), _NAMES),
    "input_format": (lambda value: value in ("BGR", "RGB"), '"BGR" or "RGB"'),
    "short_side": (_whole(0, _MAX_SIDE), f"a whole number from 0 to {_MAX_SIDE}"),
    "max_side": (_whole(1, _MAX_SIDE), f"a whole number from 1 to {_MAX_SIDE}"),
    "resize": (lambda value: value in list(RESIZE_METHODS), f"one of {RESIZE_METHODS}"),
    "size_divisibility": (_whole(1, 4096), "a whole number from 1 to 4096"),
    "pixel_mean": _CHANNELS,
    "pixel_std": (_list(_number(1e-6, 1e6), 3, 3), "3 numbers above 0"),
    "score_thresh": _SHARE,
    "nms_thresh": _SHARE,
    "nms_per_level": (_is_truth, "true or false"),
    "max_detections": (_whole(1, 10**6), "a whole number from 1 to 1000000"),
}
