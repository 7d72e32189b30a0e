"""Data sets as people have them: COCO, Roboflow's export of it, Pascal VOC, YOLO."""

from __future__ import annotations

import os

from .formats import coco, voc, yolo
from .formats.foreign_exports import explain
from .formats.source import Candidate, Source, SourceError, Split, is_split_folder, split_of
from .image_names import is_hidden
from .leftovers import note_leftovers

__all__ = ["Source", "SourceError", "open_source"]

_READERS = (coco, voc, yolo)
_LOOKED_FOR = """\
COCO: annotations/*.json, or one JSON file beside its images or images/
Roboflow: train/_annotations.coco.json, or valid/, test/
Pascal VOC: Annotations/**/*.xml with JPEGImages/ or images/, or XML files beside their images
YOLO: data.yaml, or images/ with labels/ and classes.txt"""


def open_source(path: str | os.PathLike[str], split: Split = "train") -> Source:
    """Read a data set as it lies in its files.

    Args:
        path: ``ann.json:images/``, a COCO file and the folder of its images; a COCO file alone,
            with its images beside it or in ``images/``; a YAML file of YOLO; or a folder, whose
            format is recognised. A folder may hold several splits, or be one.
        split: which of them is meant. Where ``val`` is and there is none, ``test`` is taken.

    Raises:
        SourceError: nothing is there, its format is not recognised, or it can be read in more than
            one way. Nothing is guessed.
        OSError: a file cannot be read.
    """
    path = os.fspath(path)
    source = _open(path, split)
    source.path = path
    return source


def _open(path: str, split: Split) -> Source:
    pair = _file_and_folder(path) or (path, None)
    if os.path.isfile(pair[0]):
        if not path.lower().endswith((".yaml", ".yml")):
            source = coco.read(*pair)
            note_leftovers(source, [source.image_root], coco.find_beside(pair[0]))
            return source
        return _choose(path, yolo.find_in_yaml(path, is_meant=True), split)
    if not os.path.isdir(path):
        raise SourceError(_not_there(path))
    return _choose(path, _candidates(path), split)


def _file_and_folder(path: str) -> tuple[str, str] | None:
    """Both parts of "ann.json:images/", where either name may have colons too."""
    cuts = [index for index, letter in enumerate(path) if letter == ":"]
    pairs = [(path[:cut], path[cut + 1 :]) for cut in cuts]
    pairs = [(file, folder) for file, folder in pairs if os.path.isfile(file)]
    pairs = [(file, folder) for file, folder in pairs if os.path.isdir(folder)]
    if len(pairs) + os.path.exists(path) > 1:
        ways = [f"the file '{file}' with the folder '{folder}'" for file, folder in pairs]
        ways += [f"'{path}'"] * os.path.exists(path)
        raise SourceError(f"'{path}' can be read as {' or as '.join(ways)}: rename one of them.")
    return pairs[0] if pairs else None


def _not_there(path: str) -> str:
    for cut in (index for index, letter in enumerate(path) if letter == ":"):
        file, folder = path[:cut], path[cut + 1 :]
        if os.path.isfile(file):
            return f"'{path}': there is the file '{file}', but no folder '{folder}'."
        if os.path.isdir(folder) and folder:
            return f"'{path}': there is the folder '{folder}', but no file '{file}'."
    return (
        f"'{path}' does not exist. Give a folder, or a COCO file with the folder of its images "
        "as 'annotations.json:images/'."
    )


def _candidates(folder: str) -> list[Candidate]:
    """What a folder holds by itself, and in folders that are named after splits."""
    found = [candidate for reader in _READERS for candidate in reader.find(folder)]
    formats = {candidate.format for candidate in found}
    for name in sorted(x for x in os.listdir(folder) if not is_hidden(x)):
        inner = os.path.join(folder, name)
        if is_split_folder(inner) and os.path.isdir(inner):
            found += [
                x._replace(split=split_of(name), name=os.path.join(name, x.name))
                for reader in _READERS
                for x in reader.find(inner)
                if x.format not in formats
            ]
    return found


def _choose(folder: str, found: list[Candidate], split: Split) -> Source:
    if not found and os.path.isfile(folder):
        raise SourceError(
            f"'{folder}' is no YAML file of YOLO: it has no 'names' with 'train', 'val' or 'test'."
        )
    if not found:
        entries = sorted(os.listdir(folder))
        there = ", ".join(entries[:20]) + (", ..." if len(entries) > 20 else "")
        raise SourceError(
            f"The format of '{folder}' is not recognised. Looked for:\n{_LOOKED_FOR}\n"
            f"There is: {there or 'nothing'}.{explain(folder)}"
        )
    formats = sorted({x.format for x in found})
    if len(formats) > 1:
        ways = [f"{x.format} ({x.name})" for x in found]
        raise SourceError(
            f"'{folder}' can be read as {' or as '.join(ways)}: name the one that is meant, as "
            "'annotations.json:images/', as a YAML file or as a folder that holds nothing else."
        )
    for wanted in (split, None) if split == "train" else (split, None, "test"):
        group = [x for x in found if x.split == wanted]
        if len(group) > 1:
            raise SourceError(
                f"'{folder}' holds more than one data set for {split}: "
                f"{' and '.join(x.name for x in group[:5])}{' ...' if len(group) > 5 else ''}. "
                f"Name one of them.{explain(folder) if os.path.isdir(folder) else ''}"
            )
        if group:
            source = group[0].read()
            others = [x for x in found if x is not group[0]]
            is_folder = os.path.isdir(folder)
            note_leftovers(source, [folder] if is_folder else group[0].places, others)
            if wanted == "test" != split:
                source.notes.append(f"There is no split 'val': 'test' is taken ({group[0].name}).")
            return source
    raise SourceError(
        f"'{folder}' holds no split '{split}', only {' and '.join(x.name for x in found)}: name "
        "what is meant."
    )
