"""COCO's own format, and Roboflow's export in it."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable

from ....regular_files import open_regular
from ..annotation_files import MAX_BYTES, read_json
from ..image_folder import ImageFolder
from ..image_names import IMAGES
from ..near_names import NearNames
from .foreign_exports import explain_data
from .foreign_files import encoding_of, find_entry, list_files, list_tree
from .source import Candidate, Source, SourceError, split_of

ROBOFLOW = "_annotations.coco.json"
_LISTS = ("images", "annotations", "categories")
# Names that are looked for in other forms, where no image is there by its own.
TRIED = 20
# Folders in annotations/ that a file may lie in.
DEPTH = 3


def find(folder: str) -> list[Candidate]:
    """The COCO files of a folder: in ``annotations/``, else in the folder itself.

    Of several for one split, those whose names begin with ``instances`` are meant, as in COCO.
    """
    if os.path.isfile(os.path.join(folder, ROBOFLOW)):
        return [_candidate(folder, ROBOFLOW, None)]
    inner = find_entry(folder, "annotations")
    names = []
    if inner and os.path.isdir(inner):
        own = list_files(inner, ".json") or list_tree(inner, ".json")
        names = [os.path.join(os.path.basename(inner), x) for x in own]
    names = names or [x for x in list_files(folder, ".json") if _is_coco(os.path.join(folder, x))]
    found = []
    for split in sorted({split_of(os.path.basename(x)) for x in names}, key=str):
        group = [x for x in names if split_of(os.path.basename(x)) == split]
        if len(group) > 1:
            # Beside COCO's may lie those of other programs.
            group = [x for x in group if _is_coco(os.path.join(folder, x))] or group
        objects = [x for x in group if os.path.basename(x).startswith("instances")]
        found += [_candidate(folder, name, split) for name in objects or group]
    return found


def _candidate(folder: str, name: str, split: object) -> Candidate:
    path = os.path.join(folder, name)
    kind = "roboflow" if os.path.basename(name) == ROBOFLOW else "coco"
    place = folder if kind == "roboflow" else path
    return Candidate(kind, split, name, functools.partial(read, path), (place,))


def find_beside(annotation_file: str) -> list[Candidate]:
    """Other files of the folder of a COCO file, whose images are theirs."""
    folder, own = os.path.split(annotation_file)
    folder = folder or os.curdir
    others = [x for x in list_files(folder, ".json") if x != own]
    return [_candidate(folder, x, None) for x in others if x != ROBOFLOW]


def named_images(annotation_file: str) -> list[str] | None:
    """Names of the images of a COCO file, none where it is large; None if it is something else."""
    try:
        if os.path.getsize(annotation_file) > MAX_BYTES:
            return []
        data = _load(annotation_file)
    except (SourceError, OSError):
        return None
    if not all(isinstance(data.get(name), list) for name in _LISTS):
        return None
    return _names(data["images"])


def read(annotation_file: str, image_root: str | None = None) -> Source:
    """Read a COCO file.

    Args:
        annotation_file: path of the JSON file.
        image_root: the folder of its images. Else it is looked for: beside the file, in
            ``images/``, around ``annotations/``, also in folders named after the split.

    Raises:
        SourceError: the file is no COCO file, or there is no or more than one folder in which its
            images lie.
        OSError: it cannot be read.
    """
    data = _load(annotation_file)
    missing = [name for name in _LISTS if not isinstance(data.get(name), list)]
    if missing:
        raise SourceError(
            f"'{annotation_file}' is not in COCO format: it has no list "
            f"{' and no list '.join(repr(name) for name in missing)}."
            f"{explain_data(annotation_file, data)}"
        )
    source = Source(
        path=annotation_file,
        format="roboflow" if os.path.basename(annotation_file) == ROBOFLOW else "coco",
        annotation_file=annotation_file,
        image_root=image_root or _find_images(annotation_file, data["images"]),
        data={name: [_with_whole_numbers(x) for x in data[name]] for name in _LISTS},
    )
    if source.format == "roboflow":
        _leave_out_supercategory(source)
    return source


# What counts or numbers something; programs write 160.0 for 160.
_WHOLE = ("id", "image_id", "category_id", "width", "height", "iscrowd")


def _with_whole_numbers(entry: object) -> object:
    """An entry in which whole numbers are written as such: the same one if they are."""
    if not isinstance(entry, dict):
        return entry
    found = {key: entry[key] for key in _WHOLE if isinstance(entry.get(key), float)}
    whole = {key: int(value) for key, value in found.items() if value.is_integer()}
    return {**entry, **whole} if whole else entry


def _load(path: str) -> dict:
    try:
        with open_regular(path) as file:
            encoding = encoding_of(file.read(2))
        data = read_json(path, encoding=encoding)
    except ValueError as error:
        raise SourceError(f"'{path}' is not JSON ({type(error).__name__}: {error}).") from error
    if not isinstance(data, dict):
        raise SourceError(
            f"'{path}' is not in COCO format: it must be a mapping with the lists "
            f"{', '.join(_LISTS)}.{explain_data(path, data)}"
        )
    return data


def _is_coco(path: str) -> bool:
    """Whether a JSON file beside images is meant: there are others, of many programs."""
    try:
        return all(isinstance(_load(path).get(name), list) for name in _LISTS)
    except SourceError:
        return False


def _find_images(annotation_file: str, images: list) -> str:
    """The one folder in which images of the file lie."""
    names = _names(images)
    found: dict[str, str] = {}
    looked_in = list(_image_folders(annotation_file))
    for folder in looked_in:
        if _holds_any(folder, names):
            found.setdefault(os.path.realpath(folder), folder)
    # Where none is there by its name, the checks say which lie there with near ones.
    for folder in looked_in if not found else ():
        if any(near and near.name for near in map(NearNames(folder, IMAGES).find, names[:TRIED])):
            found.setdefault(os.path.realpath(folder), folder)
            break
    if len(found) == 1:
        return next(iter(found.values()))
    remedy = f"say which it is: '{annotation_file}:FOLDER'."
    if found:
        raise SourceError(
            f"Images of '{annotation_file}' lie in {_quoted(found.values())}: {remedy}"
        )
    shown = f", such as '{names[0]:.99}'," if names else ""
    raise SourceError(
        f"None of the {len(names)} images{shown} that '{annotation_file}' names lies in "
        f"{_quoted(looked_in) or 'a folder beside it'}: {remedy}"
    )


def _names(images: list) -> list[str]:
    """Those file names of images that are names."""
    return [x["file_name"] for x in images if isinstance(x, dict) and _is_name(x.get("file_name"))]


def _image_folders(annotation_file: str) -> Iterable[str]:
    folder = os.path.dirname(annotation_file)
    bases = [folder]
    around = os.path.abspath(folder).lower().split(os.sep)
    if "annotations" in around[-DEPTH:]:
        up = around[::-1].index("annotations") + 1
        bases.append(os.path.join(folder, *[os.pardir] * up))
    stem = os.path.splitext(os.path.basename(annotation_file))[0].lower()
    # "train2017" and "train" of "instances_train2017"
    words = {*re.findall(r"[a-z]+\d*", stem), *re.findall("[a-z]+", stem)}
    words = {word for word in words if split_of(word)}
    for base in bases:
        for name in ("", "images", "data"):
            inner = os.path.normpath(os.path.join(base, name))
            if os.path.isdir(inner):
                yield inner
                entries = (os.path.join(inner, x) for x in sorted(os.listdir(inner)))
                yield from (
                    x for x in entries if os.path.basename(x).lower() in words and os.path.isdir(x)
                )


def _holds_any(folder: str, names: list[str]) -> bool:
    inside = ImageFolder(folder)
    return any(inside.holds(x) and os.path.isfile(os.path.join(folder, x)) for x in names)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _quoted(paths: Iterable[str]) -> str:
    return " and ".join(f"'{path}'" for path in paths)


def _leave_out_supercategory(source: Source) -> None:
    """Remove the category 0 that Roboflow puts above the project's own, where nothing is of it."""
    categories = [x for x in source.data["categories"] if isinstance(x, dict)]
    # Lists, as what stands in the file may not go into a set.
    above = [x.get("supercategory") for x in categories if x.get("id") != 0]
    used = any(
        isinstance(x, dict) and x.get("category_id") == 0 for x in source.data["annotations"]
    )
    for category in categories:
        if category.get("id") == 0 and category.get("name") in above and not used:
            source.data["categories"].remove(category)
            source.notes.append(
                f"The category 0 ({category['name']!r:.99}) is left out: Roboflow puts it above "
                "the classes of a project, and no annotation is of it."
            )
            return
