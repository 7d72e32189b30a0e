"""Files that are not called as they are asked for, but nearly so."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Container
from itertools import takewhile
from typing import NamedTuple
from urllib.parse import unquote

from .image_folder import is_short
from .image_names import UNREAD, ending, is_hidden

# A folder with more files is not looked through to its end.
MAX_FILES = 500_000
# What Label Studio puts before names, and Roboflow behind them.
_ADDED = re.compile(r"^[0-9a-f]{8}-(?=.)|_(jpe?g|png|bmp|webp)\.rf\.\w+$")


class Near(NamedTuple):
    """A file that may be meant."""

    name: str | None  # relative to the folder; None where several are as near
    text: str  # which it is and how its name differs, for a message
    is_certain: bool = False  # whether the name differs in how it is written alone


class NearNames:
    """The files of a folder and the folders in it, which are listed when one is first missed."""

    def __init__(self, root: str, endings: Container[str] | None = None) -> None:
        """Take a folder, and the endings that a file may have; any by default."""
        self._root = root
        self._endings = endings
        self._by_key: dict[str, list[str]] | None = None

    def find(self, name: str) -> Near | None:
        """The file there whose name is nearest to one that is not there."""
        if not is_short(name):
            return None
        if self._by_key is None:
            self._by_key = self._listed()
        parts = _parts(name)
        if not parts:
            return None
        for key in _keys(parts[-1]):
            if key in self._by_key:
                return self._nearest(name, parts, self._by_key[key])
        return None

    def _nearest(self, name: str, parts: list[str], found: list[str]) -> Near:
        def distance(there: str) -> tuple[int, int, int]:
            others = _parts(there)
            pairs = zip(reversed(parts[:-1]), reversed(others[:-1]))
            same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
            return -same, len(others), others[-1] != parts[-1]

        ordered = sorted(found, key=lambda x: (distance(x), x))
        if len(ordered) > 1 and distance(ordered[0]) == distance(ordered[1]):
            two = " and ".join(f"'{x}'" for x in ordered[:2])
            return Near(None, f"{two} lie in '{self._root}', either of which may be meant")
        there = ordered[0]
        reasons = ", ".join(_differences(name, there))
        shorter, longer = sorted((parts, _parts(there)), key=len)
        # With the same name and ending, and folders too many or too few before it.
        is_certain = longer[-len(shorter) :] == shorter
        return Near(there, f"'{there}' lies in '{self._root}': {reasons}", is_certain)

    def _listed(self) -> dict[str, list[str]]:
        by_key: dict[str, list[str]] = defaultdict(list)
        count = 0
        for parent, folders, files in os.walk(self._root):
            folders[:] = sorted(x for x in folders if not is_hidden(x))
            inside = os.path.relpath(parent, self._root)
            for file in files:
                is_meant = self._endings is None or ending(file) in self._endings
                if is_meant and not is_hidden(file):
                    path = os.path.normpath(os.path.join(inside, file))
                    for key in _keys(_plain(file)):
                        by_key[key].append(path)
            count += len(files)
            if count > MAX_FILES:
                break
        return by_key


def near_text(near: Near | None) -> str:
    """What to put behind a name that is not there, empty where nothing is near."""
    return f"; {near.text}" if near else ""


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name)).strip().casefold()


def _parts(name: str) -> list[str]:
    """Folders and file in a form in which near names are the same."""
    parts = re.split(r"[/\\]+", _plain(name))
    return [part for part in parts if part not in ("", ".", "..") and not part.endswith(":")]


def _keys(base: str) -> list[str]:
    """What a file is looked up by, the surest first; ":" is in no key of another kind."""
    stem = os.path.splitext(base)[0]
    keys = [base, f"stem:{stem}", f"bare:{_ADDED.sub('', stem)}"]
    # An ending too many: a.jpg.txt of a.jpg.
    return [*keys, f"stem:{base}"]


def _differences(asked: str, there: str) -> list[str]:
    """How a name differs from that of the file that is there."""
    reasons = []
    if "\\" in asked and "\\" not in there:
        reasons.append("backslashes part its folders, here / does")
        asked = asked.replace("\\", "/")
    if unquote(asked) != asked and unquote(asked) != unquote(there):
        asked = unquote(asked)
    elif unquote(asked) != asked and "%" not in there:
        reasons.append("%20 and the like stand for letters")
        asked = unquote(asked)
    folder, base = os.path.split(asked)
    other_folder, other = os.path.split(there)
    if os.path.normpath(folder) != os.path.normpath(other_folder):
        kind = "the folders before it differ"
        if folder and folder.casefold() == other_folder.casefold():
            kind = "capitals of its folders differ"
        elif folder and not other_folder:
            kind = f"'{folder}/' is too many"
        elif other_folder and not folder:
            kind = f"'{other_folder}/' is missing"
        reasons.append(kind)
    return [*reasons, *_base_differences(base, other)] or ["an ending may be too many"]


def _base_differences(asked: str, there: str) -> list[str]:
    (stem, kind), (other_stem, other_kind) = os.path.splitext(asked), os.path.splitext(there)
    if asked == there:
        return []
    if _plain(asked) == _plain(there):
        if asked.casefold() == there.casefold():
            return ["capitals differ"]
        if asked.strip() != asked or there.strip() != there:
            return ["spaces at its ends differ"]
        return ["letters are coded otherwise (accents, %20 and the like)"]
    reasons = []
    if kind.casefold() != other_kind.casefold():
        unread = ", which is not read" if other_kind.lower() in UNREAD else ""
        reasons.append(f"its ending is '{other_kind}'" + (f", not '{kind}'" if kind else unread))
    if _plain(stem) != _plain(other_stem) and reasons == []:
        reasons.append("a program for labels added to one of the names")
    elif stem != other_stem and _plain(stem) == _plain(other_stem):
        reasons.append("capitals or coded letters differ")
    return reasons
