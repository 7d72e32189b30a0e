"""What has to be right before a run begins."""

from __future__ import annotations

import os

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode

from ..data.checks import require_datasets, require_num_classes


def prepare(cfg: CfgNode, *, eval_only: bool, num_gpus: int = 1) -> None:
    """Choose the device, and check that weights, data sets and GPUs are there.

    Without a GPU, ``MODEL.DEVICE`` becomes ``cpu`` and one line says so.

    Args:
        cfg: not frozen.
        eval_only: only the data sets of ``DATASETS.TEST`` are needed.
        num_gpus: processes on this machine, one GPU each.

    Raises:
        FileNotFoundError: weights or a data set are missing.
        ValueError: a data set is not registered or has another number of classes, there are fewer
            GPUs than asked for, or mixed precision is to be trained on the CPU.
    """
    available = torch.cuda.device_count()
    if num_gpus > max(available, 1):
        raise ValueError(
            f"--num-gpus {num_gpus} was asked for, but {available} GPUs are found on this machine. "
            "Leave it out to train with one of them, or with none on the CPU."
        )
    if available == 0 and cfg.MODEL.DEVICE == "cuda":
        print("No GPU found: running on the CPU.")
        cfg.MODEL.DEVICE = "cpu"

    names = cfg.DATASETS.TEST if eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    require_datasets(names)
    require_num_classes(names, cfg.MODEL.RETINANET.NUM_CLASSES)

    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu" and not eval_only:
        raise ValueError("SOLVER.AMP.ENABLED needs a GPU: set it to False to train on the CPU.")

    # What follows a question mark are options of detectron2's checkpointer.
    weights = cfg.MODEL.WEIGHTS.split("?")[0]
    if weights and "://" not in weights and not os.path.isfile(weights):
        raise FileNotFoundError(
            f"MODEL.WEIGHTS '{weights}' does not exist. Give the path of a checkpoint, a model-zoo "
            "address such as detectron2://ImageNetPretrained/MSRA/R-50.pkl, or '' for none."
        )
    if eval_only and not weights:
        print("MODEL.WEIGHTS is empty: an untrained network is evaluated.")


def load_weights(checkpointer: DetectionCheckpointer, weights: str, *, resume: bool) -> dict:
    """Load weights, or the last checkpoint of the output folder if one is there and ``resume``.

    Returns:
        what else the checkpoint holds.

    Raises:
        ValueError: the file cannot be fetched or read; the message names it.
    """
    try:
        return checkpointer.resume_or_load(weights, resume=resume)
    except Exception as error:
        file = checkpointer.get_checkpoint_file() if resume else ""
        raise ValueError(
            f"{'The checkpoint' if file else 'MODEL.WEIGHTS'} '{file or weights}' could not be "
            f"loaded ({type(error).__name__}: {error}). Give the path of a whole checkpoint; an "
            "address needs a network."
        ) from error
