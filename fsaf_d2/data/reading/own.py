"""Data sets of one's own, by their paths: written in one form, registered, set in the config.

:func:`fsaf_d2.training.use_own_data` does all of it.
"""

from __future__ import annotations

import collections
import functools
import logging
import os
import shlex
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ...config_keys import derive, given, value_of
from ...detectors.contract import traits_of
from ..checking.check_source import check_source
from ..checking.checks import AnnotationFileError, class_names
from ..checking.output import error_text
from .annotation_files import hold, let_go, read_head, read_json
from .canonical import canonical_coco, match_categories, write_json
from .formats.source import Source
from .sources import open_source

TRAIN, VAL, EVAL = "own_train", "own_val", "own_eval"
_logger = logging.getLogger("detectron2.fsaf_d2.data")
# Below OUTPUT_DIR.
FILES = {TRAIN: "data/train.json", VAL: "data/val.json", EVAL: "data/eval.json"}


def write_own_data(
    cfg: CfgNode, train_data: str, val_data: str | None = None, *, resume: bool = False
) -> list[str]:
    """Write training and validation data below ``OUTPUT_DIR``, with the same category ids in both.

    Args:
        cfg: its ``OUTPUT_DIR`` is made if need be.
        train_data: a path that :func:`.sources.open_source` takes.
        val_data: the same; without it, that of an earlier run is removed.
        resume: the run that is there goes on: its classes must be the same.

    Returns:
        lines for a person: what was read, and what was done with it.

    Raises:
        ValueError: a path leads to no data set, an object cannot be read, there is none, or
            validation has classes that training lacks; the message says where.
        OSError: a file cannot be read or written.
    """
    train, lines = _open(train_data, "train")
    classes = class_list(train)
    for key in _class_keys(cfg):
        _require_not_given(cfg, key, [x["name"] for x in classes], f"'{train_data}'")
    data = canonical_coco(train, classes, match_categories(classes, classes, train_data))
    if not data["annotations"]:
        raise ValueError(f"'{train_data}' has no annotation: there is nothing to learn.")
    if resume:
        lines += _changes(own_file(cfg, TRAIN), data)
    files = {own_file(cfg, TRAIN): data}
    if val_data is None:
        lines.append("Without validation data (--val-data) the run trains without evaluation.")
    else:
        val, more = _open(val_data, "val")
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
        val_data: a path that :func:`.sources.open_source` takes.
        classes: entries with ``id`` and ``name`` in the order in which the model has them; None:
            those of the data.
    """
    val, lines = _open(val_data, "val")
    own = class_list(val)
    if classes is None:
        lines.append("The weights do not say their classes: those of the data are taken, by id.")
    ids = match_categories(classes or own, own, val_data)
    _write(own_file(cfg, EVAL), canonical_coco(val, classes or own, ids))
    return lines


def _write(file: str, data: dict) -> None:
    write_json(file, data)
    hold(file, data)


def set_own_data(cfg: CfgNode, train: str | None, test: str | None) -> list[str]:
    """Register data sets that were written, and set ``DATASETS`` and the number of classes.

    Args:
        cfg: not frozen.
        train: ``own_train``, or None to leave ``DATASETS.TRAIN`` as it is.
        test: ``own_val`` or ``own_eval``, or None for no evaluation.

    Returns:
        lines for a person.

    Raises:
        FileNotFoundError: one was not written.
        ValueError: the config was given another number of classes.
    """
    names = [name for name in (train, test) if name is not None]
    for name in names:
        if not os.path.isfile(own_file(cfg, name)):
            raise FileNotFoundError(
                f"'{own_file(cfg, name)}' is missing, though the first process has written it: "
                "OUTPUT_DIR must be a folder that all machines share."
            )
    if train is not None:
        derive(cfg, "DATASETS.TRAIN", (train,))
    derive(cfg, "DATASETS.TEST", (test,) if test else ())
    register_own_data(cfg)
    return derive_num_classes(cfg, names)


def register_own_data(cfg: CfgNode) -> None:
    """Register those data sets of the config that :func:`use_own_data` has written.

    Every process needs it; a second time does no harm.
    """
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        if name in FILES and os.path.isfile(own_file(cfg, name)):
            _register(name, own_file(cfg, name))


def derive_num_classes(cfg: CfgNode, names: Sequence[str]) -> list[str]:
    """Set the number of classes to that of the data, unless it was given.

    Args:
        cfg: not frozen.
        names: data sets that are there.

    Returns:
        a line for a person, if it was set.

    Raises:
        ValueError: another number was given.
    """
    name, found = next(((x, class_names(x)) for x in names if class_names(x)), ("", None))
    if found is None:
        return []
    lines = []
    for key in _class_keys(cfg):
        number = value_of(cfg, key)
        if number != len(found):
            _require_not_given(cfg, key, found, f"data set '{name}'")
            derive(cfg, key, len(found))
            lines.append(f"{key}: {number} -> {len(found)}, as in data set '{name}'.")
    return lines


def _class_keys(cfg: CfgNode) -> tuple[str, ...]:
    """The keys that hold the number of classes of the detector.

    Raises:
        ValueError: it is a stranger's, of which they are not known.
    """
    keys = traits_of(cfg).class_keys
    if not keys:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE '{cfg.MODEL.META_ARCHITECTURE}' does not say which key holds "
            "its number of classes: give it a method traits_from_config, see "
            "fsaf_d2/detectors/contract.py."
        )
    return keys


def _require_not_given(cfg: CfgNode, key: str, names: Sequence[str], what: str) -> None:
    number, place = value_of(cfg, key), given(cfg, key)
    if place is not None and number != len(names):
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise ValueError(
            f"{key} is {number}, given by {place.place}, but {what} has {len(names)} "
            f"classes ({shown}): leave it out, or set it to {len(names)}."
        )


def own_file(cfg: CfgNode, name: str) -> str:
    """Where one of this module's data sets is written."""
    return os.path.join(cfg.OUTPUT_DIR, FILES[name])


def class_list(source: Source) -> list[dict]:
    """The categories of a source in the order in which a model has them: by id."""
    return sorted(source.data["categories"], key=lambda category: category["id"])


def _open(path: str, split: str) -> tuple[Source, list[str]]:
    """A source without flaws, and what a person should know of it."""
    source = open_source(path, split)
    _require_sound(source, split)
    data = source.data
    names = [str(category["name"]) for category in class_list(source)]
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    lines = [
        f"{'Training' if split == 'train' else 'Validation'} data '{path}' ({source.format}): "
        f"{len(data['images'])} pictures, {len(data['annotations'])} boxes, {len(names)} classes "
        f"({shown})."
    ]
    counts = collections.Counter(finding.kind for finding in source.findings)
    lines += [f"  {note}" for note in source.notes]
    lines += [f"  Warning: {kind}: {count}" for kind, count in counts.items()]
    return source, lines


def _require_sound(source: Source, split: str) -> None:
    """Stop at errors: a picture would have fewer objects than it shows."""
    # The pictures are looked at once the data are written.
    check = check_source(source, read_images=False)
    if check.num_errors:
        option = " --split val" if split == "val" else ""
        command = f"python tools/check_data.py {shlex.quote(source.path)}{option}"
        raise AnnotationFileError(error_text(check, f"'{source.path}'", command))


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


def _register(name: str, file: str) -> None:
    data = read_head(file)
    categories = sorted(data["categories"], key=lambda category: category["id"])
    ids = {category["id"]: index for index, category in enumerate(categories)}
    image_root = data["info"]["image_root"]
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    DatasetCatalog.register(name, functools.partial(_load_dicts, file, image_root, ids))
    MetadataCatalog.get(name).set(
        json_file=file,
        image_root=image_root,
        source_path=data["info"]["source"],
        evaluator_type="coco",
        thing_classes=[category["name"] for category in categories],
        thing_dataset_id_to_contiguous_id=ids,
    )


def _load_dicts(file: str, image_root: str, ids: Mapping[int, int]) -> list[dict]:
    """The records of a file that :func:`canonical_coco` made, as detectron2 makes them."""
    data = read_json(file)
    objects: dict[int, list[dict]] = {image["id"]: [] for image in data["images"]}
    for entry in data["annotations"]:
        objects[entry["image_id"]].append(
            {
                "iscrowd": entry["iscrowd"],
                "bbox": list(entry["bbox"]),
                "category_id": ids[entry["category_id"]],
                "bbox_mode": BoxMode.XYWH_ABS,
            }
        )
    let_go()
    _logger.info(f"Loaded {len(objects)} images from '{file}'.")
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": objects[image["id"]],
        }
        for image in sorted(data["images"], key=lambda image: image["id"])
    ]
