"""What the numbers of YOLO's lines mean, judged from all lines of a set together.

Behind the class a line has a box (x y width height, of the centre, as shares of the image), and
behind that maybe a score, the number of a track or keypoints; or a track before the box; or the
points of a polygon, those of a turned box among them. Readings that give the same box are one kind.
What two kinds fit is refused: ``label_format`` or ``kpt_shape`` in the YAML file says which it is.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ....plain_numbers import whole
from .source import SourceError

# Values of label_format: what a line is behind its class.
LABEL_FORMATS = {
    "box": "x y width height of the centre, and what may stand behind",
    "track box": "the number of a track, then a box",
    "polygon": "x1 y1 x2 y2 x3 y3 ..., whose bounding box is taken",
    "top-left": "x y width height of the top left corner",
    "corners": "x1 y1 x2 y2, two corners",
}
# What a reading may miss of the lines that can be read at all, and what rounding adds to an image.
MISSED = 0.1
ROUNDING = 0.01
# Lines with nothing but a box, of all lines, from which on no reading with keypoints is likely.
PLAIN = 0.05


class Format(NamedTuple):
    """What a YAML file says of the lines."""

    kpt_shape: tuple[int, int] | None = None
    label_format: str | None = None


class Reading(NamedTuple):
    """One way to read a line."""

    kind: str  # of LABEL_FORMATS
    text: str  # what it takes the line for


class Decision(NamedTuple):
    """How the lines of one group (see :func:`group_of`) are read."""

    kind: str
    text: str
    count: int  # of lines


def stated_format(path: str, settings: dict[str, object]) -> Format:
    """``kpt_shape`` and ``label_format`` of a YAML file's settings.

    Raises:
        SourceError: a value is none that is known.
    """
    shape, name = settings.get("kpt_shape"), settings.get("label_format")
    if shape is not None:
        try:
            first, second = map(whole, shape)
        except (ValueError, TypeError) as error:
            raise SourceError(
                f"'{path}': 'kpt_shape' must be [number of keypoints, 2 or 3]."
            ) from error
        shape = (first, second)
        if not (0 < shape[0] < 10_000 and shape[1] in (2, 3)):
            raise SourceError(f"'{path}': 'kpt_shape' {list(shape)} is not [keypoints, 2 or 3].")
    if name is not None and name not in LABEL_FORMATS:
        raise SourceError(
            f"'{path}': 'label_format' is {name!r:.50}; known are {', '.join(LABEL_FORMATS)}."
        )
    return Format(shape, name)


def group_of(numbers: Sequence[float]) -> str:
    """Lines that are judged together: a box alone, a box and one more number, longer ones."""
    return {4: "plain", 5: "one more"}.get(len(numbers), "long")


def readings(numbers: Sequence[float], stated: Format) -> list[Reading]:
    """All ways to read the numbers behind a class, by what the YAML file says if it does.

    Raises:
        ValueError: there is none; the message says what stands there.
    """
    count = len(numbers)
    found: list[Reading] = []
    if stated.label_format:
        found = list(_as_stated(count, stated.label_format))
    elif count == 4:
        found = [Reading("box", "a box")]
    elif stated.kpt_shape:
        expected = 4 + math.prod(stated.kpt_shape)
        if count != expected:
            raise ValueError(
                f"{count + 1} numbers; 'kpt_shape' {list(stated.kpt_shape)} asks for {expected + 1}"
            )
        found = [Reading("box", "a box and keypoints")]
    elif all(map(math.isfinite, numbers)):
        found = list(_fitting(numbers))
    if not found:
        raise ValueError(f"{count + 1} numbers that fit no reading")
    return found


def _as_stated(count: int, name: str) -> Iterator[Reading]:
    if name == "polygon":
        if count >= 6 and count % 2 == 0:
            yield Reading(name, "a polygon")
        elif count == 4:
            yield Reading("box", "a box")
    elif count >= (5 if name == "track box" else 4):
        yield Reading(name, LABEL_FORMATS[name])


def _fitting(numbers: Sequence[float]) -> Iterator[Reading]:
    """The readings of more than four numbers."""
    count, rest = len(numbers), numbers[4:]
    if _is_box(numbers):
        if count == 5 and 0 <= rest[0] <= 1:
            yield Reading("box", "a box and a score")
        if count == 5 and _is_track(rest[0]):
            yield Reading("box", "a box and the number of a track")
        if count == 6 and any(0 <= x <= 1 and _is_track(y) for x, y in (rest, rest[::-1])):
            yield Reading("box", "a box, a score and the number of a track")
        for dim in (2, 3):
            if count > 5 and len(rest) % dim == 0 and _are_keypoints(numbers, dim):
                text = f"a box and {len(rest) // dim} keypoints of {dim} numbers"
                yield Reading("box", text)
    if count == 5 and _is_track(numbers[0], least=-1) and _is_box(numbers[1:]):
        yield Reading("track box", "the number of a track and a box")
    if count >= 6 and count % 2 == 0 and all(-0.1 <= x <= 1.1 for x in numbers):
        yield Reading("polygon", "a turned box" if _is_turned(numbers) else "a polygon")


def _is_box(numbers: Sequence[float]) -> bool:
    """Whether four shares are a box in the image."""
    x, y, width, height = numbers[:4]
    half, other = width / 2 - ROUNDING, height / 2 - ROUNDING
    is_inside = half <= x <= 1 - half and other <= y <= 1 - other
    return 0 < width <= 1 + ROUNDING and 0 < height <= 1 + ROUNDING and is_inside


def _is_track(value: float, least: int = 0) -> bool:
    return value == int(value) and value >= least


def _are_keypoints(numbers: Sequence[float], dim: int) -> bool:
    """Whether what stands behind a box are points around the middle of which it lies."""
    x, y, width, height = numbers[:4]
    rest = numbers[4:]
    points = [rest[i : i + dim] for i in range(0, len(rest), dim)]
    if dim == 3 and any(point[2] not in (0, 1, 2) for point in points):
        return False
    seen = [point for point in points if any(point[:2]) and (dim == 2 or point[2] != 0)]
    if any(not -0.1 <= value <= 1.1 for point in seen for value in point[:2]):
        return False
    if not seen:
        return True
    across, down = (sum(point[i] for point in seen) / len(seen) for i in (0, 1))
    return abs(across - x) <= width / 2 + ROUNDING and abs(down - y) <= height / 2 + ROUNDING


def _is_turned(numbers: Sequence[float]) -> bool:
    """Whether four points are a parallelogram, as far as shares of unknown sides tell."""
    if len(numbers) != 8:
        return False
    x0, y0, x1, y1, x2, y2, x3, y3 = numbers
    return abs(x0 + x2 - x1 - x3) <= ROUNDING and abs(y0 + y2 - y1 - y3) <= ROUNDING


def raw_box(numbers: Sequence[float], kind: str) -> list[float]:
    """x, y, width, height of the centre, as shares, of the numbers read as one kind."""
    if kind == "polygon" and len(numbers) > 4:
        xs, ys = numbers[::2], numbers[1::2]
        left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
        return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
    first, second, third, fourth = numbers[1:5] if kind == "track box" else numbers[:4]
    if kind == "top-left":
        return [first + third / 2, second + fourth / 2, third, fourth]
    if kind == "corners":
        return [(first + third) / 2, (second + fourth) / 2, third - first, fourth - second]
    return [first, second, third, fourth]


class Votes:
    """How many lines of each group fit each reading."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[Reading]] = defaultdict(Counter)
        self._totals: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, group: str, found: Sequence[Reading], place: str) -> None:
        """Take note of one line."""
        self._totals[group] += 1
        self._counts[group].update(found)
        self._first.setdefault(group, place)

    def decide(self) -> dict[str, Decision]:
        """How each group is read.

        Raises:
            SourceError: two kinds fit a group, or none does; the message names them.
        """
        return {group: self._decide(group) for group in self._counts}

    def _decide(self, group: str) -> Decision:
        total, best = self._totals[group], {}
        mixed = self._totals["plain"] > PLAIN * self._totals.total()
        for reading, count in self._counts[group].most_common():
            # Keypoints are in all lines of a set or in none.
            if mixed and group == "long" and reading.text.endswith("numbers"):
                continue
            text, before = best.get(reading.kind, (reading.text, 0))
            # Of a polygon and a turned box a line is one; of other readings it may be several.
            both = count + before if reading.kind == "polygon" else max(count, before)
            best[reading.kind] = text, both
        fitting = [kind for kind, (_, count) in best.items() if count >= (1 - MISSED) * total]
        if len(fitting) == 1:
            return Decision(fitting[0], best[fitting[0]][0], total)
        named = fitting or list(best)
        if not named:
            kind, text = "box", "a box and keypoints beside lines without"
            named, best = [kind], {kind: (text, total)}
        ways = " or ".join(f"{best[x][0]} ({best[x][1]}, label_format: {x})" for x in named)
        verb = "can each be read as" if fitting else "are not all of one kind: as"
        raise SourceError(
            f"{total} lines of YOLO labels, the first in {self._first[group]}, {verb} {ways}. Say "
            "which it is in the YAML file with 'names' (a data.yaml beside the labels where there "
            "is none): 'label_format: ...' as named here, or 'kpt_shape: [keypoints, 2 or 3]' for "
            "boxes with keypoints."
        )
