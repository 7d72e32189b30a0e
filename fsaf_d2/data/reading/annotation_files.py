"""Files of JSON, each of which is parsed once while a run is set up.

What was parsed is held until the records of a data set are made of it, which is the last that the
set-up does. Whoever reads it changes nothing in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from detectron2.data import MetadataCatalog

from ...plain_json import parse_stream
from ...regular_files import open_regular

# All held files together have so many bytes at the most; in memory they are some ten times larger.
MAX_BYTES = 1 << 26
# Parts of a file that are small, and are held on.
_HEAD = ("info", "categories")


class _Held(NamedTuple):
    stamp: tuple[int, int, int]  # of the file: what is there later may be another
    head: dict | None
    data: object  # None where it was let go


# By path and encoding; what was used last stands last.
_held: dict[tuple[str, str], _Held] = {}


def read_json(path: str | os.PathLike[str], *, encoding: str = "utf-8") -> object:
    """Parse a file, or give what was parsed of it before, unless it has changed since.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, see :func:`fsaf_d2.plain_json.load_json`.
    """
    key = _key(path, encoding)
    with open_regular(path, "r", encoding=encoding) as file:
        stamp = _stamp(os.fstat(file.fileno()))
        held = _held.pop(key, None)
        if held is None or held.stamp != stamp or held.data is None:
            data = parse_stream(file)
            held = _Held(stamp, _head(data), data)
    _hold(key, held)
    return held.data


def read_head(path: str | os.PathLike[str]) -> dict | None:
    """Of a file whose content is a mapping, ``info`` and ``categories``; of others None.

    Raises:
        OSError, ValueError: as :func:`read_json`.
    """
    held = _held.get(_key(path, "utf-8"))
    if held is not None and held.stamp == _stamp(os.stat(path)):
        return held.head
    return _head(read_json(path))


def class_names(name: str) -> list[str] | None:
    """The classes of a data set; None where nothing but loading all of it could tell.

    Raises:
        ValueError: its annotation file cannot be read.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is not None:
        return metadata.thing_classes
    path = metadata.get("json_file")
    if path is None:
        return None
    try:
        categories = read_head(path)["categories"]
        return [category["name"] for category in sorted(categories, key=lambda x: x["id"])]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"The annotation file '{path}' of data set '{name}' is not in COCO format: it must be "
            f"JSON with a list 'categories' of entries with 'id' and 'name' "
            f"({type(error).__name__}: {error})."
        ) from error


def hold(path: str | os.PathLike[str], data: object) -> None:
    """Take note of what was just written to a file, in place of parsing it."""
    _hold(_key(path, "utf-8"), _Held(_stamp(os.stat(path)), _head(data), data))


def let_go() -> None:
    """Free the memory of what was parsed."""
    for key, held in _held.items():
        _held[key] = held._replace(data=None)


def _hold(key: tuple[str, str], held: _Held) -> None:
    _held.pop(key, None)
    _held[key] = held
    for other in _oldest(MAX_BYTES):
        _held[other] = _held[other]._replace(data=None)


def _oldest(most: int) -> Iterable[tuple[str, str]]:
    """Those that are too many beside those that were used later."""
    total = 0
    for key in reversed(list(_held)):
        if _held[key].data is not None:
            total += _held[key].stamp[1]
            if total > most:
                yield key


def _key(path: str | os.PathLike[str], encoding: str) -> tuple[str, str]:
    return os.path.realpath(path), encoding


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _head(data: object) -> dict | None:
    return {key: data[key] for key in _HEAD if key in data} if isinstance(data, dict) else None
