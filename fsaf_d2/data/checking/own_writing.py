"""Data sets of one's own, by their paths: checked, and written in one form for a run."""

from __future__ import annotations

import collections
import os
import shlex
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode

from ...commands.calls import call
from ..reading.annotation_files import hold, read_json
from ..reading.canonical import canonical_coco, match_categories, write_json
from ..reading.formats.source import Source
from ..reading.own import EVAL, TRAIN, VAL, class_keys, class_list, own_file, require_not_given
from ..reading.sources import open_source
from .check_source import check_source
from .checks import AnnotationFileError
from .empty_boxes import empty_boxes, left_out_text, without
from .output import error_text


def write_own_data(
    cfg: CfgNode, train_data: str, val_data: str | None = None, *, resume: bool = False
) -> list[str]:
    """Write training and validation data below ``OUTPUT_DIR``, with the same category ids in both.

    Args:
        cfg: its ``OUTPUT_DIR`` is made if need be.
        train_data: a path that :func:`..reading.sources.open_source` takes.
        val_data: the same; without it, that of an earlier run is removed.
        resume: the run that is there goes on: its classes must be the same.

    Returns:
        lines for a person: what was read, and what was done with it.

    Raises:
        ValueError: a path leads to no data set, an object cannot be read, there is none, or
            validation has classes that training lacks; the message says where.
        OSError: a file cannot be read or written.
    """
    strict = cfg.DATALOADER.STRICT_BOXES
    train, lines = _open(train_data, "train", strict)
    classes = class_list(train)
    for key in class_keys(cfg):
        require_not_given(cfg, key, [x["name"] for x in classes], f"'{train_data}'")
    data = canonical_coco(train, classes, match_categories(classes, classes, train_data))
    if not data["annotations"]:
        raise ValueError(f"'{train_data}' has no annotation: there is nothing to learn.")
    if resume:
        lines += _changes(own_file(cfg, TRAIN), data)
    files = {own_file(cfg, TRAIN): data}
    if val_data is None:
        lines.append("Without validation data (--val-data) the run trains without evaluation.")
    else:
        val, more = _open(val_data, "val", strict)
        ids = match_categories(classes, class_list(val), val_data)
        files[own_file(cfg, VAL)] = canonical_coco(val, classes, ids)
        lines += more
    for file, content in files.items():
        _write(file, content)
    if val_data is None and os.path.exists(own_file(cfg, VAL)):
        os.remove(own_file(cfg, VAL))
    return lines


def write_evaluation_data(
    cfg: CfgNode, val_data: str, classes: Sequence[Mapping] | None = None
) -> list[str]:
    """Write data to evaluate on below ``OUTPUT_DIR``.

    Args:
        cfg: as in :func:`write_own_data`, as are the path, what is returned and raised.
        val_data: a path that :func:`..reading.sources.open_source` takes.
        classes: entries with ``id`` and ``name`` in the order in which the model has them; None:
            those of the data.
    """
    val, lines = _open(val_data, "val", cfg.DATALOADER.STRICT_BOXES)
    own = class_list(val)
    if classes is None:
        lines.append("The weights do not say their classes: those of the data are taken, by id.")
    ids = match_categories(classes or own, own, val_data)
    _write(own_file(cfg, EVAL), canonical_coco(val, classes or own, ids))
    return lines


def _write(file: str, data: dict) -> None:
    write_json(file, data)
    hold(file, data)


def _open(path: str, split: str, strict: bool) -> tuple[Source, list[str]]:
    """A source without flaws, and what a person should know of it."""
    source = open_source(path, split)
    left_out = _left_out(source, split, strict)
    data = source.data
    names = [str(category["name"]) for category in class_list(source)]
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    lines = [
        f"{'Training' if split == 'train' else 'Validation'} data '{path}' ({source.format}): "
        f"{len(data['images'])} images, {len(data['annotations'])} boxes, {len(names)} classes "
        f"({shown})."
    ]
    counts = collections.Counter(finding.kind for finding in source.findings)
    lines += [f"  {note}" for note in source.notes]
    lines += [f"  Warning: {kind}: {count}" for kind, count in counts.items()]
    lines += [f"  {line}" for line in left_out]
    return source, lines


def _left_out(source: Source, split: str, strict: bool) -> list[str]:
    """Stop at errors: an image would have fewer objects than it shows. Leave out what has no area.

    Returns:
        what was left out, for a person.
    """
    # The images are looked at once the data are written.
    check = check_source(source, read_images=False)
    found = [] if strict else empty_boxes(check, and_images=True)
    if found:
        source.data = without(source.data, found)
        return [left_out_text(check, found)]
    if check.num_errors:
        option = " --split val" if split == "val" else ""
        command = f"{call('check')} {shlex.quote(source.path)}{option}"
        raise AnnotationFileError(error_text(check, f"'{source.path}'", command))
    return []


def _changes(file: str, data: dict) -> list[str]:
    """How training data differ from those that a run began with."""
    if not os.path.isfile(file):
        return []
    before = read_json(file)
    if before["categories"] != data["categories"]:
        raise ValueError(
            f"The classes are not those that the run began with, in '{file}': "
            f"{_names(before)} before, {_names(data)} now. Start anew in another OUTPUT_DIR."
        )
    counts = [
        f"{len(before[key])} -> {len(data[key])} {key}"
        for key in ("images", "annotations")
        if before[key] != data[key]
    ]
    return [f"Unlike the saved run: the training data ({', '.join(counts)})."] if counts else []


def _names(data: dict) -> str:
    return ", ".join(str(category["name"]) for category in data["categories"])
