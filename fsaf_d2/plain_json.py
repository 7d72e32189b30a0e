"""JSON of strangers, in which no key is lost and nothing ends but in one error."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import IO

from .regular_files import open_regular


def load_json(path: str | os.PathLike[str], *, encoding: str = "utf-8-sig") -> object:
    """Parse a file.

    Raises:
        OSError: it cannot be read or is no file.
        ValueError: as :func:`parse_json`, or it is no text in this encoding.
    """
    with open_regular(path, "r", encoding=encoding) as file:
        return parse_stream(file)


def parse_stream(stream: IO) -> object:
    """Parse what is left of an open file.

    Raises:
        OSError, ValueError: as :func:`load_json`.
    """
    with _one_error():
        return json.load(stream, object_pairs_hook=_object)


def parse_json(text: str | bytes) -> object:
    """Parse JSON, in which a key may stand once in its object.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or has a key twice or a whole number of
            thousands of digits.
    """
    with _one_error():
        return json.loads(text, object_pairs_hook=_object)


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    try:
        yield
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except MemoryError as error:
        raise ValueError("it is larger than the memory") from error
    except ValueError as error:
        if "set_int_max_str_digits" not in str(error):
            raise
        raise ValueError("it has a whole number of thousands of digits") from error


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r:.99} stands twice in an object")
    return found
