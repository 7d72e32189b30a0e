"""Numbers as they stand in people's files: ASCII digits, and no other of Python's ways."""

from __future__ import annotations

import math
import re

# Signs of a number; of a whole one digits.
MAX_SIGNS = 64
MAX_DIGITS = 20
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_WHOLE = re.compile(rf"\d{{1,{MAX_DIGITS}}}", re.ASCII)
# Of ids; what is larger has no place in a table.
_BITS = 63


def decimal(text: str) -> float:
    """A finite number: ``3``, ``-0.5``, ``1e-3``.

    Raises:
        ValueError: it is written in another way, such as ``1_0``, ``nan`` or with other digits
            than 0 to 9, or is longer than :data:`MAX_SIGNS`; the message shows it.
    """
    is_number = len(text) <= MAX_SIGNS and _DECIMAL.fullmatch(text)
    value = float(text) if is_number else math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r:.40} is no number in decimal digits")
    return value


def whole(text: str) -> int:
    """A whole number of 0 or more, of at most :data:`MAX_DIGITS` digits.

    Raises:
        ValueError: it is written in another way; the message shows it.
    """
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text!r:.40} is no whole number in decimal digits")
    return int(text)


def is_in_range(value: int) -> bool:
    """Whether a whole number has at most 63 bits beside its sign, as ids in tables do."""
    return -(1 << _BITS) <= value < 1 << _BITS
