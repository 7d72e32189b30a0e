"""What files say of a detector, in a checkpoint or a sidecar: types and ranges, none trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..data.loading.resizing import RESIZE_METHODS
from ..texts import MAX_NAME_LENGTH, shown

MAX_CLASSES = 1 << 16
# Ten times as long as any; reading YAML takes a second for 50 thousand letters.
MAX_CONFIG_LENGTH = 1 << 17
# Of a sidecar's entries; it is raised when their meaning changes.
FORMER_FORMAT, FORMAT = 1, 2
_MAX_SIDE = (1 << 31) - 1


class Rule(NamedTuple):
    """What a value must be."""

    holds: Callable[[object], bool]
    words: str  # behind "must be"


def check_field(
    rules: Mapping[str, Rule], key: str, value: object, source: str, remedy: str = ""
) -> None:
    """Make sure that a value is as its rule says; ``remedy`` is for the message.

    Raises:
        ValueError: it is not; the message names file, field, value and rule.
    """
    if not rules[key].holds(value):
        raise ValueError(
            f"'{source}': {key} must be {rules[key].words}, not {shown(value)}."
            + (f" {remedy}" if remedy else "")
        )


def _whole(low: int, high: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _number(low: float, high: float) -> Callable[[object], bool]:
    # Of NaN neither is true; an int may be too large for a float.
    return lambda value: type(value) in (int, float) and low <= value <= high


def _list(
    holds: Callable[[object], bool], low: int = 1, high: int = MAX_CLASSES
) -> Callable[[object], bool]:
    return lambda values: (
        type(values) is list and low <= len(values) <= high and all(map(holds, values))
    )


def _is_name(value: object) -> bool:
    return type(value) is str and len(value) <= MAX_NAME_LENGTH


def _are_ids(values: object) -> bool:
    return _list(_whole(-(2**53), 2**53))(values) and len(set(values)) == len(values)


def _are_shares_of_names(values: object) -> bool:
    return (
        type(values) is dict
        and len(values) <= MAX_CLASSES
        and all(map(_is_name, values))
        and all(map(_number(0, 1), values.values()))
    )


def _is_truth(value: object) -> bool:
    return type(value) is bool


_NAMES = f"texts of {MAX_NAME_LENGTH} letters at the most"
_COMMON = {
    "class_names": Rule(_list(_is_name), f"1 to {MAX_CLASSES} {_NAMES}"),
    "category_ids": Rule(_are_ids, "different whole numbers"),
    "input_format": Rule(
        lambda value: type(value) is str and value in ("BGR", "RGB"), '"BGR" or "RGB"'
    ),
}
CHECKPOINT = {
    **_COMMON,
    "thresholds": Rule(_are_shares_of_names, "a number from 0 to 1 for each class name"),
    "config": Rule(
        lambda value: type(value) is str and len(value) <= MAX_CONFIG_LENGTH,
        f"a text of {MAX_CONFIG_LENGTH} letters at the most",
    ),
}
_SHARE = Rule(_number(0, 1), "a number from 0 to 1")
_PARTS = Rule(_list(_is_name, high=32), f"1 to 32 {_NAMES}")
_TRUTH = Rule(_is_truth, "true or false")
SIDECAR = {
    **_COMMON,
    "format": Rule(
        _whole(FORMER_FORMAT, FORMAT), f"{FORMER_FORMAT} or {FORMAT}, those that are known"
    ),
    "with_nms": _TRUTH,
    "thresholds": Rule(_list(_number(0, 1)), "numbers from 0 to 1"),
    "level_names": _PARTS,
    "branch_names": _PARTS,
    "short_side": Rule(_whole(0, _MAX_SIDE), f"a whole number from 0 to {_MAX_SIDE}"),
    "max_side": Rule(_whole(1, _MAX_SIDE), f"a whole number from 1 to {_MAX_SIDE}"),
    "resize": Rule(lambda value: value in list(RESIZE_METHODS), f"one of {RESIZE_METHODS}"),
    "size_divisibility": Rule(_whole(1, 4096), "a whole number from 1 to 4096"),
    "pixel_mean": Rule(_list(_number(-1e6, 1e6), 3, 3), "3 numbers"),
    "pixel_std": Rule(_list(_number(1e-6, 1e6), 3, 3), "3 numbers above 0"),
    "score_thresh": _SHARE,
    "nms_thresh": _SHARE,
    "nms_per_level": _TRUTH,
    # A million drawn detections take hours.
    "max_detections": Rule(_whole(1, 10**5), "a whole number from 1 to 100000"),
}


def said(content: Mapping, key: str, source: str) -> object:
    """An entry of a checkpoint; None where it is empty or is not there.

    Raises:
        ValueError: as :func:`check_field`.
    """
    value = content.get(key)
    if value is None or (type(value) in (list, dict) and not value):
        return None
    check_field(CHECKPOINT, key, value, source)
    return value
