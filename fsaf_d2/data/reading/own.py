"""Data sets of one's own that have been written in one form: registered, set in the config.

:func:`..checking.own_writing.write_own_data` writes them; :func:`fsaf_d2.training.use_own_data`
does all of it.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ...config_keys import derive, given, value_of
from ...detectors.contract import traits_of
from .annotation_files import class_names, let_go, read_head, read_json
from .formats.source import Source

TRAIN, VAL, EVAL = "own_train", "own_val", "own_eval"
_logger = logging.getLogger("detectron2.fsaf_d2.data")
# Below OUTPUT_DIR.
FILES = {TRAIN: "data/train.json", VAL: "data/val.json", EVAL: "data/eval.json"}


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
    for key in class_keys(cfg):
        number = value_of(cfg, key)
        if number != len(found):
            require_not_given(cfg, key, found, f"data set '{name}'")
            derive(cfg, key, len(found))
            lines.append(f"{key}: {number} -> {len(found)}, as in data set '{name}'.")
    return lines


def class_keys(cfg: CfgNode) -> tuple[str, ...]:
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


def require_not_given(cfg: CfgNode, key: str, names: Sequence[str], what: str) -> None:
    """Make sure that a number of classes that was given is that of the data.

    Args:
        key: that holds it.
        names: of the classes of the data.
        what: the data, for the message.

    Raises:
        ValueError: it is another.
    """
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
