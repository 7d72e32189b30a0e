"""What stands beside YOLO's labels: the names of the classes, and where the splits are.

Folders, and lists of images, that a YAML file names must lie within its own folder, after links
have been followed. ``../train/images``, as Roboflow writes it, is taken as ``train/images``, as
other programs do, and where ``path`` leads nowhere, as ``/content/...`` of another machine, it is
left out.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from ....plain_numbers import whole
from ....plain_yaml import MAX_YAML, YamlError, plain_yaml
from ..image_folder import ImageFolder, is_short
from ..image_names import is_hidden
from .foreign_files import decode_text, find_entry, list_files, read_lines, read_text
from .source import Finding, SourceError, is_split_folder
from .yolo_lines import Format, stated_format
from .yolo_lists import resolve_list

# Folders and lists that a split may name.
MAX_PLACES = 1000
# Names of the classes, one in each line.
NAMES_FILES = ("classes.txt", "obj.names", "classes.names")


class Classes(NamedTuple):
    """What is known of the labels of a data set."""

    names: list[str]
    stated: Format
    files: tuple[str, ...]  # in which it stands


class Part(NamedTuple):
    """A folder of images and the folder of their labels."""

    images: str
    labels: str
    listed: list[str] | None = None  # relative to the folder; None: all that are in it


class Parts(NamedTuple):
    """What a YAML file names for a split."""

    parts: list[Part]
    findings: list[Finding]
    notes: list[str]
    used: set[str]  # lists


def read_settings(path: str) -> dict[str, object]:
    """Read a YAML file with all values as the texts that stand there: ``yes`` may be a class.

    Raises:
        SourceError: it is no mapping in plain YAML.
    """
    folder, name = os.path.split(path)
    try:
        text = decode_text(read_text(ImageFolder(folder), name, MAX_YAML))
        settings = plain_yaml(text, f"'{path}'", as_texts=True)
    except YamlError as error:
        raise SourceError(str(error)) from error
    except (ValueError, OSError) as error:
        raise SourceError(f"'{path}' cannot be read: {error}.") from error
    if not isinstance(settings, dict):
        raise SourceError(f"'{path}' must be a mapping of keys to values.")
    return settings


def load_names(path: str, settings: dict[str, object]) -> list[str]:
    """The names of the classes of a YAML file, by class number.

    Raises:
        SourceError: they are neither a list nor a mapping of all numbers from 0 on, or are not as
            many as ``nc`` says.
    """
    names = settings.get("names")
    if isinstance(names, dict):
        try:
            numbered = {whole(key): name for key, name in names.items()}
        except ValueError:
            numbered = {}
        if sorted(numbered) != list(range(len(names))):
            raise SourceError(f"'{path}': the keys of 'names' must be 0, 1, 2 and so on.")
        names = [numbered[key] for key in sorted(numbered)]
    if not (isinstance(names, list) and names and all(isinstance(x, str) and x for x in names)):
        raise SourceError(f"'{path}': 'names' must be a list of the names of the classes.")
    count = settings.get("nc")
    if count is not None and count != str(len(names)):
        raise SourceError(
            f"'{path}': 'nc' says {count!s:.20} classes, but 'names' has {len(names)}."
        )
    return names


def split_parts(path: str, settings: dict[str, object], key: str) -> Parts:
    """The images that a YAML file names for a split: folders, or lists of files (``train.txt``).

    Raises:
        SourceError: one is not there, or not within the YAML file's folder.
    """
    values = settings.get(key)
    values = [values] if isinstance(values, str) else values
    if not (isinstance(values, list) and values and all(map(_is_name, values))):
        raise SourceError(f"'{path}': '{key:.99}' must be a folder, or a list of folders.")
    values = list(dict.fromkeys(values))
    if len(values) > MAX_PLACES:
        raise SourceError(
            f"'{path}': '{key:.99}' names {len(values)} folders, more than the {MAX_PLACES} that "
            "are read: put the images into fewer."
        )
    base = settings.get("path") or ""
    if base and not _is_name(base):
        raise SourceError(f"'{path}': 'path' must be a folder.")
    own = os.path.dirname(path) or os.curdir
    found, known = Parts([], [], [], set()), set()
    for value in values:
        place = _place(path, base, f"{key}: {value}", value)
        if os.path.isdir(place):
            if os.path.realpath(place) in known:
                continue
            known.add(os.path.realpath(place))
            found.parts.append(Part(place, _own_labels(own, place)))
            continue
        listed = resolve_list(own, base, place)
        found.used.add(os.path.abspath(place))
        found.findings.extend(listed.findings)
        found.notes.extend(listed.notes)
        for images, names in listed.images.items():
            found.parts.append(Part(images, _own_labels(own, images), names))
    if not found.parts:
        first = f" {found.findings[0].value}" if found.findings else ""
        raise SourceError(f"'{path}': '{key}' lists no image that is there.{first}")
    return found


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != "" and is_short(value)


def _own_labels(own: str, images: str) -> str:
    """The folder of labels, which lies within the YAML file's own folder."""
    labels = labels_of(images)
    return labels if ImageFolder(own).holds(os.path.relpath(labels, own)) else images


def labels_of(images: str) -> str:
    """The folder of the labels of a folder of images.

    In its path, ``labels`` stands for the last ``images``, in capitals or not; else they lie
    beside the images.
    """
    parts = os.path.abspath(images).split(os.sep)
    for index in reversed(range(len(parts))):
        if parts[index].lower() == "images":
            labels: str | None = os.sep.join(parts[:index]) or os.sep
            for part in ("labels", *parts[index + 1 :]):
                there = os.path.join(labels, part)
                labels = there if os.path.isdir(there) else find_entry(labels, part.lower())
                if labels is None or not os.path.isdir(labels):
                    return images
            return labels
    return images


def _place(path: str, base: str, entry: str, value: str) -> str:
    """The folder or the list that an entry means."""
    own = os.path.dirname(path) or os.curdir
    # As Windows parts folders; no folder of a data set has \\ in its name.
    base, value = base.replace("\\", "/"), value.replace("\\", "/")
    inside = value
    while inside.startswith(("../", "./")):
        inside = inside.partition("/")[2]
    places = [os.path.join(own, base, value), os.path.join(own, value), os.path.join(own, inside)]
    places = list(dict.fromkeys(os.path.normpath(place) for place in places))
    there = [place for place in places if os.path.exists(place)]
    folder = ImageFolder(own)
    found = {os.path.realpath(x): x for x in there if folder.holds(os.path.relpath(x, own))}
    if len(found) == 1:
        place = next(iter(found.values()))
        return _images_in(place) if os.path.isdir(place) else place
    if found:
        raise SourceError(
            f"'{path}': '{entry:.99}' may be {' or '.join(found)}. Correct it, or 'path'."
        )
    outside = " Folders outside of the YAML file's own are not read: give such a folder itself as "
    raise SourceError(
        f"'{path}': '{entry:.99}' leads to no folder. Looked for: {', '.join(places)}. In '{own}' "
        f"there is: {', '.join(sorted(x for x in os.listdir(own) if not is_hidden(x))[:10])}."
        + (f"{outside}the data set." if there else "")
    )


def _images_in(folder: str) -> str:
    """``images/`` of a folder that is named for it, with ``labels/`` beside."""
    images, labels = find_entry(folder, "images"), find_entry(folder, "labels")
    return images if images and labels and os.path.isdir(images) else folder


def find_classes(images: str, labels: str) -> Classes:
    """The names of the classes of a folder of images and the folder of their labels.

    They may stand in ``classes.txt`` or a YAML file: in either folder, in those up to the one that
    holds ``images/`` and ``labels/``, and, where that is named after a split, in the one above it.
    A YAML file there may also say what the lines are, see :mod:`.yolo_lines`.

    Raises:
        SourceError: there are none, or different ones.
    """
    places = [*_up_to("labels", labels), *_up_to("images", images)]
    if is_split_folder(places[-1]):
        places.append(os.path.dirname(places[-1]))
    found: dict[str, list[str]] = {}
    stated: dict[str, Format] = {}
    for place in filter(os.path.isdir, dict.fromkeys(places)):
        for path, settings in _yaml_files(place):
            if "names" in settings:
                found[path] = load_names(path, settings)
            if stated_format(path, settings) != Format():
                stated[path] = stated_format(path, settings)
        found.update(_names_files(place))
    if not found:
        raise SourceError(
            f"The classes of '{images}' have no names: there is no YAML file with 'names' and no "
            f"{' or '.join(NAMES_FILES)} in {', '.join(dict.fromkeys(places))}."
        )
    _require_same(found, "names of classes")
    _require_same(stated, "'kpt_shape' or 'label_format'")
    names, own = next(iter(found.values())), next(iter(stated.values()), Format())
    return Classes(names, own, (*found, *stated))


def _require_same(found: dict[str, object], what: str) -> None:
    first, *others = found or ("",)
    for other in others:
        if found[other] != found[first]:
            raise SourceError(f"'{first}' and '{other}' give different {what}.")


def _up_to(name: str, folder: str) -> list[str]:
    """A folder, and those around it up to the one that holds the nearest of this name."""
    places = [os.path.abspath(folder)]
    if name in places[0].lower().split(os.sep):
        while os.path.basename(places[-1]).lower() != name:
            places.append(os.path.dirname(places[-1]))
        places.append(os.path.dirname(places[-1]))
    return places


def _yaml_files(folder: str) -> list[tuple[str, dict[str, object]]]:
    found = []
    for name in list_files(folder, ".yaml", ".yml"):
        path = os.path.join(folder, name)
        try:
            found.append((path, read_settings(path)))
        except SourceError:
            continue
    return found


def _names_files(folder: str) -> dict[str, list[str]]:
    names = [x for x in list_files(folder, *NAMES_FILES) if x.lower() in NAMES_FILES]
    paths = [os.path.join(folder, name) for name in names]
    return {path: _lines(path, ImageFolder(folder), name) for path, name in zip(paths, names)}


def _lines(path: str, folder: ImageFolder, name: str) -> list[str]:
    try:
        lines = read_lines(folder, name, MAX_YAML)
    except (ValueError, OSError) as error:
        raise SourceError(f"'{path}' cannot be read: {error}.") from error
    names = "\n".join(line.strip() for line in lines).rstrip("\n").split("\n")
    if not all(names):
        raise SourceError(f"'{path}' must have the name of a class in every line.")
    return names
