"""Training and evaluation on data sets of one's own, in every process of a run."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode

from ...config_keys import COMMAND_LINE, derive, given
from ...data.checking.own_writing import write_evaluation_data, write_own_data
from ...data.reading.annotation_files import read_json
from ...data.reading.own import EVAL, TRAIN, VAL, own_file, set_own_data
from ...plain_yaml import plain_yaml
from ...prediction.said_fields import CHECKPOINT
from ...regular_files import open_regular
from ...weights.weights_files import load_file
from ..launch import first_process_first, torchrun_process


def use_own_data(
    cfg: CfgNode,
    train_data: str | os.PathLike[str] | None = None,
    val_data: str | os.PathLike[str] | None = None,
    *,
    classes: Sequence[Mapping] | None = None,
    resume: bool = False,
) -> None:
    """Train on a data set of one's own, or evaluate on one: COCO, Roboflow, Pascal VOC or YOLO.

    The data are written as COCO json to ``OUTPUT_DIR/data/train.json`` and ``val.json``, both with
    the training data's category ids, and registered as ``own_train`` and ``own_val``, in place of
    what had these names. ``DATASETS`` and ``MODEL.RETINANET.NUM_CLASSES`` are set. Without
    ``train_data``, for evaluation alone, the names are ``data/eval.json`` and ``own_eval``. What is
    done is printed. Every process of torchrun calls this, the first writes. Processes that are
    started later call :func:`fsaf_d2.data.reading.own.register_own_data`.

    Args:
        cfg: not frozen.
        train_data: a path that :func:`fsaf_d2.data.reading.sources.open_source` takes.
        val_data: the same; without it nothing is evaluated.
        classes: without ``train_data``, entries with ``id`` and ``name`` in the order in which the
            model has them, as of :func:`saved_classes`. Else the data's own classes are taken.
        resume: the run of ``OUTPUT_DIR`` goes on: its classes must be the same. Without paths its
            files are taken, if it was one on data of one's own.

    Raises:
        ValueError: a path leads to no data set, an object cannot be read, validation has classes
            that training lacks, or the config was given another number of classes.
        OSError: a file cannot be read or written.
    """
    if train_data is None and val_data is None:
        if resume and _is_run_on_own_data(cfg):
            _say([f"Going on with the data in '{own_file(cfg, TRAIN)}'."])
            test = VAL if os.path.isfile(own_file(cfg, VAL)) else None
            _say(set_own_data(cfg, TRAIN, test))
        return
    _require_no_other(cfg)
    train, val = (None if x is None else os.fspath(x) for x in (train_data, val_data))
    with first_process_first() as is_first:
        if is_first and train is None:
            _say(write_evaluation_data(cfg, val, classes))
        elif is_first:
            _say(write_own_data(cfg, train, val, resume=resume))
    if train is None:
        _say(set_own_data(cfg, None, EVAL))
    else:
        _say(set_own_data(cfg, TRAIN, VAL if val is not None else None))


def derive_eval_period(cfg: CfgNode) -> list[str]:
    """Evaluate a run on one's own data up to ten times, but not more often than once in an epoch.

    That is done where ``TEST.EVAL_PERIOD`` was given nowhere. To evaluate an image takes about as
    long as to train on it, its losses and drawings included: so many evaluations are left out that
    they are a tenth of the run at the most, if need be all but the one at the end. Where
    ``TEST.PATIENCE`` counts them, none is.

    Args:
        cfg: not frozen, with the batch and ``MAX_ITER`` of the run.

    Returns:
        a line for a person, if the period was set.
    """
    key = "TEST.EVAL_PERIOD"
    if tuple(cfg.DATASETS.TRAIN) != (TRAIN,) or not cfg.DATASETS.TEST or given(cfg, key):
        return []
    images, to_evaluate = (len(read_json(own_file(cfg, x))["images"]) for x in (TRAIN, VAL))
    batch, steps = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER
    period = max(math.ceil(images / batch), steps // 10)
    if not cfg.TEST.PATIENCE:
        period = max(period, math.ceil(10 * to_evaluate / batch))
    before = cfg.TEST.EVAL_PERIOD
    if period >= steps:
        derive(cfg, key, 0)
        return [f"{key}: {before} -> 0, at the end alone: more would be over a tenth of the run."]
    derive(cfg, key, period)
    return [f"{key}: {before} -> {period}, every {period * batch / images:.1f} epochs."]


def saved_classes(path: str, *, trust: bool = False) -> list[dict] | None:
    """The classes of a checkpoint, in the order in which its model has them.

    Args:
        path: of a file; addresses are not fetched.
        trust: as in :func:`.weights.load_file`.

    Returns:
        entries with ``id``, in the data that it was trained on, and ``name``; None where the file
        does not say.

    Raises:
        WeightsFileError: the file cannot be read.
    """
    if not os.path.isfile(path):
        return None
    checkpoint = load_file(path, trust=trust)
    names, ids = checkpoint.get("class_names"), checkpoint.get("category_ids")
    if not CHECKPOINT["class_names"].holds(names):
        return None
    is_known = CHECKPOINT["category_ids"].holds(ids) and len(ids) == len(names)
    # Readers of COCO files put classes in the order of their ids.
    if not is_known or ids != sorted(ids):
        ids = range(1, len(names) + 1)
    return [{"id": key, "name": name} for key, name in zip(ids, names)]


def _say(lines: Sequence[str]) -> None:
    process = torchrun_process()
    if lines and (process is None or process.rank == 0):
        print("\n".join(lines), flush=True)


def _require_no_other(cfg: CfgNode) -> None:
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        place = given(cfg, key)
        if place is not None and place.place == COMMAND_LINE:
            raise ValueError(
                f"{key} was given by {place.place}, and so was data of your own: leave one out."
            )
    if not cfg.OUTPUT_DIR:
        raise ValueError("OUTPUT_DIR is empty, but data of your own are written to it: set it.")


def _is_run_on_own_data(cfg: CfgNode) -> bool:
    """Whether the config that the run of the output folder has written says so."""
    file = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    try:
        with open_regular(file, "r", encoding="utf-8") as text:
            config = plain_yaml(text.read(), f"'{file}'")
        return list(config["DATASETS"]["TRAIN"]) == [TRAIN] and os.path.isfile(own_file(cfg, TRAIN))
    except (OSError, ValueError, KeyError, TypeError):
        return False
