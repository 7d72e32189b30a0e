"""Files in a data set's folder that were not used: counted and named, so that none is lost."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from .formats import coco
from .formats.source import Candidate, Source
from .image_names import READ, UNREAD, ending, is_hidden
from .near_names import MAX_FILES

SHOWN = 3


def note_leftovers(source: Source, folders: Iterable[str], others: Iterable[Candidate]) -> None:
    """Note which files of the data set's folders were not used.

    Args:
        source: that was read; its ``left_out`` and ``notes`` are added to.
        folders: that the data set lies in.
        others: other data sets there, such as other splits, whose files are not left out.
    """
    used = {os.path.abspath(path) for path in source.used}
    root = os.path.abspath(source.image_root)
    names = (x.get("file_name") for x in source.data["images"] if isinstance(x, dict))
    used |= {os.path.normpath(os.path.join(root, x)) for x in names if isinstance(x, str)}
    used |= {os.path.abspath(source.annotation_file)}
    others = list(others)
    elsewhere: set[str] = set()
    for other in others:
        names = coco.named_images(other.places[0]) if other.format == "coco" else []
        if names is not None:
            elsewhere |= {os.path.abspath(place) for place in other.places}
            used |= {os.path.normpath(os.path.join(root, x)) for x in names}
    folders = list(folders)
    elsewhere -= {os.path.abspath(x) for x in folders}
    left: list[str] = []
    for folder in folders:
        for path in _files(folder, elsewhere):
            absolute = os.path.abspath(path)
            if absolute not in used:
                used.add(absolute)
                left.append(path)
            if len(left) > MAX_FILES:
                source.notes.append(f"'{folder}' holds more files than are looked through.")
                break
    source.left_out += left
    source.notes += _notes(left)


def _files(folder: str, elsewhere: set[str]) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        there = os.path.abspath(parent)
        folders[:] = [
            name
            for name in sorted(folders)
            if not is_hidden(name) and os.path.join(there, name) not in elsewhere
        ]
        own = [name for name in sorted(files) if os.path.join(there, name) not in elsewhere]
        yield from (os.path.normpath(os.path.join(parent, name)) for name in own)


def _notes(left: list[str]) -> Iterator[str]:
    """A sentence for each kind of file."""
    shown = [x for x in left if not is_hidden(x)]
    images = [x for x in shown if ending(x) in READ]
    unread = [x for x in shown if ending(x) in UNREAD]
    rest = [x for x in shown if ending(x) not in READ | UNREAD]
    hidden = len(left) - len(shown)
    if images:
        what = _count(images, "image")
        yield f"{what} left out, as no part of what is read here: {_such(images)}."
    if unread:
        kinds = ", ".join(sorted({ending(x) for x in unread}))
        yield (
            f"{_count(unread, 'image')} left out, as {kinds} is not read: {_such(unread)}. Save "
            "them as JPEG or PNG."
        )
    if rest:
        yield f"{_count(rest, 'other file')} not used: {_such(rest)}."
    if hidden:
        names = sorted({os.path.basename(x) for x in left if is_hidden(x)})
        yield f"{hidden} hidden files, such as '{names[0]}', are not used."


def _count(paths: list[str], what: str) -> str:
    return f"1 {what} is" if len(paths) == 1 else f"{len(paths)} {what}s are"


def _such(paths: list[str]) -> str:
    named = ", ".join(f"'{x}'" for x in paths[:SHOWN])
    return named + (", ..." if len(paths) > SHOWN else "")
