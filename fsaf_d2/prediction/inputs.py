"""Which files are predicted on, and how their outputs are called."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from ..data.reading.image_names import IMAGES, is_hidden
from ..data.reading.near_names import NearNames, near_text

VIDEOS = frozenset(
    f".{kind}"
    for kind in (
        *("mp4", "m4v", "mov", "3gp", "avi", "mkv", "webm", "mpg", "mpeg", "ts", "mts", "m2ts"),
        *("wmv", "asf", "flv", "ogv"),
    )
)


class InputFile(NamedTuple):
    """An image or a video."""

    path: str  # as the user would write it
    stem: str  # its outputs' path below their folders, without extension; no other input has it


class Inputs(NamedTuple):
    """What was found."""

    images: list[InputFile]
    videos: list[InputFile]
    skipped: list[tuple[str, str]]  # path and reason, of what is no image by its name


def find_inputs(
    given: Sequence[str | os.PathLike[str]],
    *,
    recursive: bool = False,
    output: str | os.PathLike[str] | None = None,
) -> Inputs:
    """List the images and videos that are meant.

    Files that are named are taken as they are. Of folders and patterns only files are taken whose
    name ends as those of images or videos do; the others are listed as skipped.

    Args:
        given: files, folders and patterns such as ``photos/*.jpg``, in which ``**`` stands for any
            folders.
        recursive: whether folders in folders are looked into; links to folders are not followed.
        output: a folder that is left out.

    Raises:
        FileNotFoundError: one of them does not exist, or a pattern matches nothing.
        ValueError: the output folder is one of the folders.
        OSError: a folder cannot be read.
    """
    search = _Search(recursive, output and os.path.realpath(output))
    for name in map(os.fspath, given):
        if os.path.exists(name):
            search.add(name, named=True)
            continue
        matches = sorted(glob.glob(_literal_folders(name), recursive=True))
        if not matches:
            raise FileNotFoundError(_missing(name))
        for match in matches:
            search.add(match, named=False)
    return search.result()


def _literal_folders(pattern: str) -> str:
    """A pattern whose first folders stand for themselves where they are there by their name."""
    place, rest = "", pattern
    while os.sep in rest:
        first, _, behind = rest.partition(os.sep)
        there = place + first + os.sep
        if not os.path.isdir(there):
            break
        place, rest = there, behind
    return glob.escape(place) + rest


def _missing(name: str) -> str:
    """Say that an input is not there, and which file is nearly called so."""
    if glob.has_magic(name):
        text = f"No file matches the input '{name}'."
        if name.lower() != name or name.upper() != name:
            other = glob.glob(_literal_folders(_in_any_case(name)), recursive=True)
            text += f" '{other[0]}' does if capitals are left out of account." if other else ""
        if "[" in name:
            text += " Brackets stand for one of the letters in them: '[[]' stands for '[' itself."
        return text
    folder = os.path.dirname(name.replace("\\", "/"))
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    # Below the current folder or the root may lie all that a machine has.
    is_own = folder not in ("", os.sep, os.curdir)
    inside = name if "\\" in name else os.path.relpath(name, folder or os.curdir)
    found = NearNames(folder, IMAGES | VIDEOS).find(inside) if is_own else None
    return f"Input '{name}' does not exist{near_text(found)}."


def _in_any_case(pattern: str) -> str:
    """A pattern in whose last part letters stand for capitals too."""
    folder, base = os.path.split(pattern)
    if "[" in base:
        return pattern
    letters = (f"[{x.lower()}{x.upper()}]" if x.isalpha() and x.isascii() else x for x in base)
    return os.path.join(folder, "".join(letters))


class _Search:
    def __init__(self, recursive: bool, output: str | None) -> None:
        self._recursive = recursive
        self._output = output
        self._roots: set[str] = set()
        # By absolute path, so that none comes twice.
        self._files: dict[str, str] = {}
        self._skipped: dict[str, str] = {}

    def add(self, path: str, *, named: bool) -> None:
        if not os.path.isdir(path):
            self._roots.add(os.path.dirname(os.path.abspath(path)))
            self._add_file(path, named)
            return
        if self._output == os.path.realpath(path):
            raise ValueError(
                f"'{path}' is the input folder and the output folder: choose another --output."
            )
        self._roots.add(os.path.abspath(path))
        for file in self._walk(path):
            self._add_file(file, named=False)

    def _add_file(self, path: str, named: bool) -> None:
        if not named and is_hidden(path):
            self._skipped[path] = "it is hidden"
        elif not named and Path(path).suffix.lower() not in IMAGES | VIDEOS:
            self._skipped[path] = "its name is not that of an image or video"
        elif not os.path.isfile(path):
            self._skipped[path] = "it is not a file"
        else:
            self._files.setdefault(os.path.abspath(path), path)

    def _walk(self, folder: str) -> Iterator[str]:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
        for entry in entries:
            if not entry.is_dir():
                yield entry.path
            elif is_hidden(entry.name):
                self._skipped[entry.path] = "it is hidden"
            elif os.path.realpath(entry.path) == self._output:
                self._skipped[entry.path] = "it is the output folder"
            elif not self._recursive:
                self._skipped[entry.path] = "it is a folder; --recursive looks into folders"
            elif entry.is_symlink():
                self._skipped[entry.path] = "it is a link to a folder"
            else:
                yield from self._walk(entry.path)

    def result(self) -> Inputs:
        top = os.path.commonpath(self._roots) if self._roots else ""
        stems = _stems([os.path.relpath(path, top) for path in self._files])
        files = [InputFile(path, stem) for path, stem in zip(self._files.values(), stems)]
        videos = [file for file in files if _is_video(file.path)]
        images = [file for file in files if not _is_video(file.path)]
        return Inputs(images, videos, list(self._skipped.items()))


def _is_video(path: str) -> bool:
    return Path(path).suffix.lower() in VIDEOS


def _stems(paths: Iterable[str]) -> list[str]:
    """Paths without extension; with it, or with a number, where two would be the same."""
    plain = [str(PurePath(path).with_suffix("")) for path in paths]
    # As file systems do that do not tell small letters from capitals.
    counts: dict[str, int] = {}
    for stem in plain:
        counts[stem.casefold()] = counts.get(stem.casefold(), 0) + 1
    taken: set[str] = set()
    stems = []
    for path, stem in zip(paths, plain):
        wanted = stem if counts[stem.casefold()] == 1 else path
        stem, number = wanted, 1
        while stem.casefold() in taken:
            number += 1
            stem = f"{wanted}_{number}"
        taken.add(stem.casefold())
        stems.append(stem)
    return stems
