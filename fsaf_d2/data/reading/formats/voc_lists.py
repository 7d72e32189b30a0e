"""VOC's lists of the images of a split, in ``ImageSets/Main/``."""

from __future__ import annotations

import os
import re

from ..image_folder import ImageFolder
from ..image_names import IMAGES, ending
from .foreign_files import find_entry, list_files, read_lines
from .source import SourceError, Split, split_of

_SPLITS = ("train", "val", "valid", "validation", "test")
# Of all images, where there is no list of the split itself: VOC's own, and CVAT's.
_WHOLE: dict[str, Split | None] = {"trainval": "train", "default": None, "all": None}


def find_lists(folder: str) -> list[tuple[Split | None, str]]:
    """The lists of a VOC folder with their splits; of several for one the more exact."""
    sets = find_entry(folder, "imagesets")
    main = (find_entry(sets, "main") or sets) if sets else None
    if not main or not os.path.isdir(main):
        return []
    names = {
        os.path.splitext(x)[0].lower(): os.path.join(main, x) for x in list_files(main, ".txt")
    }
    lists = [(split_of(name), path) for name, path in names.items() if name in _SPLITS]
    splits = {split for split, _ in lists}
    if "train" not in splits and "trainval" in names:
        lists.append(("train", names["trainval"]))
    if not lists:
        lists = [(_WHOLE[name], path) for name, path in names.items() if name in _WHOLE][:1]
    return lists


def listed_names(split_list: str) -> list[str]:
    """The lines of a list, each once.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        folder = ImageFolder(os.path.dirname(split_list))
        lines = read_lines(folder, os.path.basename(split_list))
    except (ValueError, OSError) as error:
        raise SourceError(f"'{split_list}' cannot be read: {error}.") from error
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


def stem_of(name: str) -> str:
    """The name that a line stands for, without VOC's mark of a class and an ending."""
    name = re.sub(r"\s+-?[01]$", "", name)
    return os.path.splitext(name)[0] if ending(name) in IMAGES | {".xml"} else name
