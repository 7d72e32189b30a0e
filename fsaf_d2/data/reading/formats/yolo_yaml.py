"""What stands beside YOLO's labels: the names of the classes, and where the splits are.

Folders that a YAML file names must lie within its own folder, after links have been followed.
``../train/images``, as Roboflow writes it, is taken as ``train/images``, as other programs do, and
where ``path`` leads nowhere, as ``/content/...`` of another machine, it is left out.
"""

from __future__ import annotations

import os

import yaml

from ....config import plain_yaml
from ..image_folder import ImageFolder
from .foreign_files import find_entry, list_files, read_text
from .source import SourceError, is_split_folder

# Names of the classes, one in each line.
NAMES_FILES = ("classes.txt", "obj.names", "classes.names")
_MAX_YAML = 1 << 20


def read_settings(path: str) -> dict[str, object]:
    """Read a YAML file with all values as the texts that stand there: ``yes`` may be a class.

    Raises:
        SourceError: it is no mapping in plain YAML.
    """
    folder, name = os.path.split(path)
    try:
        text = read_text(ImageFolder(folder), name, _MAX_YAML).decode("utf-8-sig")
        # Refuses tags and what unfolds.
        content = plain_yaml(text, path)
        texts = yaml.load(text, yaml.BaseLoader)
    except (ValueError, OSError, yaml.YAMLError, RecursionError) as error:
        raise SourceError(f"'{path}' cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise SourceError(f"'{path}' must be a mapping of keys to values.")
    empty = {str(key) for key, value in content.items() if value is None}
    return {key: None if key in empty else value for key, value in texts.items()}


def load_names(path: str, settings: dict[str, object]) -> list[str]:
    """The names of the classes of a YAML file, by class number.

    Raises:
        SourceError: they are neither a list nor a mapping of all numbers from 0 on, or are not as
            many as ``nc`` says.
    """
    names = settings.get("names")
    if isinstance(names, dict):
        try:
            numbered = {int(key): name for key, name in names.items()}
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


def split_folders(path: str, settings: dict[str, object], key: str) -> list[str]:
    """The folders of images that a YAML file names for a split.

    Raises:
        SourceError: one is not there, or not within the YAML file's folder.
    """
    values = settings.get(key)
    values = [values] if isinstance(values, str) else values
    if not (isinstance(values, list) and values and all(isinstance(x, str) for x in values)):
        raise SourceError(f"'{path}': '{key}' must be a folder, or a list of folders.")
    base = str(settings.get("path") or "")
    return [_split_folder(path, base, f"{key}: {value}", value) for value in values]


def _split_folder(path: str, base: str, entry: str, value: str) -> str:
    own = os.path.dirname(path) or os.curdir
    inside = value
    while inside.startswith(("../", "./")):
        inside = inside.partition("/")[2]
    places = [os.path.join(own, base, value), os.path.join(own, value), os.path.join(own, inside)]
    places = list(dict.fromkeys(os.path.normpath(place) for place in places))
    there = [place for place in places if os.path.exists(place)]
    folder = ImageFolder(own)
    found = {
        os.path.realpath(x): x
        for x in there
        if os.path.isdir(x) and folder.holds(os.path.relpath(x, own))
    }
    if len(found) == 1:
        return _images_in(next(iter(found.values())))
    if found:
        raise SourceError(
            f"'{path}': '{entry:.99}' may be {' or '.join(found)}. Correct it, or 'path'."
        )
    if any(os.path.isfile(place) for place in there):
        raise SourceError(
            f"'{path}': '{entry:.99}' is a file, but lists of images are not read: name a folder."
        )
    outside = " Folders outside of the YAML file's own are not read: give such a folder itself as "
    raise SourceError(
        f"'{path}': '{entry:.99}' leads to no folder. Looked for: {', '.join(places)}."
        + (f"{outside}the data set." if there else "")
    )


def _images_in(folder: str) -> str:
    """``images/`` of a folder that is named for it, with ``labels/`` beside."""
    images, labels = find_entry(folder, "images"), find_entry(folder, "labels")
    return images if images and labels and os.path.isdir(images) else folder


def find_names(images: str, labels: str) -> list[str]:
    """The names of the classes of a folder of images and the folder of their labels.

    They may stand in ``classes.txt`` or a YAML file: in either folder, in those up to the one that
    holds ``images/`` and ``labels/``, and, where that is named after a split, in the one above it.

    Raises:
        SourceError: there are none, or different ones.
    """
    places = [*_up_to("labels", labels), *_up_to("images", images)]
    if is_split_folder(places[-1]):
        places.append(os.path.dirname(places[-1]))
    found = {path: names for place in dict.fromkeys(places) for path, names in _names_in(place)}
    if not found:
        raise SourceError(
            f"The classes of '{images}' have no names: there is no YAML file with 'names' and no "
            f"{' or '.join(NAMES_FILES)} in {', '.join(dict.fromkeys(places))}."
        )
    first, *others = found
    for other in others:
        if found[other] != found[first]:
            raise SourceError(f"'{first}' and '{other}' give different names of classes.")
    return found[first]


def _up_to(name: str, folder: str) -> list[str]:
    """A folder, and those around it up to the one that holds the nearest of this name."""
    places = [os.path.abspath(folder)]
    if name in places[0].split(os.sep):
        while os.path.basename(places[-1]) != name:
            places.append(os.path.dirname(places[-1]))
        places.append(os.path.dirname(places[-1]))
    return places


def _names_in(folder: str) -> list[tuple[str, list[str]]]:
    found = []
    for name in list_files(folder, ".yaml", ".yml"):
        path = os.path.join(folder, name)
        try:
            settings = read_settings(path)
        except SourceError:
            continue
        if "names" in settings:
            found.append((path, load_names(path, settings)))
    for name in list_files(folder, *NAMES_FILES):
        if name.lower() in NAMES_FILES:
            path = os.path.join(folder, name)
            found.append((path, _lines(path, ImageFolder(folder), name)))
    return found


def _lines(path: str, folder: ImageFolder, name: str) -> list[str]:
    try:
        text = read_text(folder, name, _MAX_YAML).decode("utf-8-sig")
    except (ValueError, OSError) as error:
        raise SourceError(f"'{path}' cannot be read: {error}.") from error
    names = [line.strip() for line in text.rstrip().splitlines()]
    if not all(names):
        raise SourceError(f"'{path}' must have the name of a class in every line.")
    return names
