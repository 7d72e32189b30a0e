"""Lists of images, ``train.txt``, as CVAT and Darknet write them for YOLO."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import NamedTuple

from ..image_folder import ImageFolder
from ..image_names import IMAGES
from ..near_names import NearNames, near_text
from .foreign_files import read_lines
from .source import Finding, SourceError


class Listed(NamedTuple):
    """The images of a list."""

    images: dict[str, list[str]]  # names by their folder
    findings: list[Finding]
    notes: list[str]


def resolve_list(own: str, base: str, path: str) -> Listed:
    """Find the images that a list names, a path in each line.

    Paths are relative to the YAML file's folder, its ``path`` or the list's own folder. Folders
    before them that are not there, such as ``data/`` of CVAT or those of another machine, are left
    out, and that is said.

    Args:
        own: the YAML file's folder; what is outside of it is not read.
        base: ``path`` of the YAML file.
        path: of the list.

    Raises:
        SourceError: the list cannot be read.
    """
    folder, near = ImageFolder(own), NearNames(own, IMAGES)
    listed = Listed(defaultdict(list), [], [])
    shortened: list[str] = []
    for line in _lines(folder, path):
        place = _exact(folder, (os.path.join(own, base), own, os.path.dirname(path)), line)
        found = None if place else near.find(line)
        if found and found.name and _is_tail(line, found.name):
            place = os.path.join(own, found.name)
            shortened.append(f"'{line:.99}' is '{found.name}'")
        if place is None:
            remedy = "Bring the image, or correct or remove the line."
            value = f"{line:.200}{near_text(found)}"
            listed.findings.append(
                Finding("listed image is missing", "error", path, None, value, remedy)
            )
        else:
            listed.images[os.path.dirname(place)].append(os.path.basename(place))
    if shortened:
        listed.notes.append(
            f"{len(shortened)} lines of '{path}' have folders before them that are not there, and "
            f"are taken without: {shortened[0]}."
        )
    names = {parent: list(dict.fromkeys(x)) for parent, x in listed.images.items()}
    return listed._replace(images=names)


def _lines(folder: ImageFolder, path: str) -> list[str]:
    """The lines of a list, each once."""
    try:
        lines = read_lines(folder, os.path.relpath(path, folder.root))
    except (ValueError, OSError) as error:
        raise SourceError(f"'{path}' cannot be read: {error}.") from error
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def _exact(folder: ImageFolder, bases: tuple[str, ...], line: str) -> str | None:
    """The place that a line names in one of the folders, if an image that may be read is there."""
    for base in bases:
        place = os.path.normpath(os.path.join(base, line))
        if folder.holds(os.path.relpath(place, folder.root)) and os.path.isfile(place):
            return place
    return None


def _is_tail(line: str, there: str) -> bool:
    """Whether a path is that of a file with other folders before it, and in nothing else."""
    parts = line.replace("\\", "/").split("/")
    others = there.split("/")
    return parts[-len(others) :] == others and len(parts) > len(others)
