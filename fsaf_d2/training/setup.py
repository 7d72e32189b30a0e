"""What has to be right before a run begins."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..config import load_config
from ..config_keys import value_of, warnings_of_dead_keys
from ..data.check_run import require_sound_data
from ..data.checks import require_datasets, require_num_classes
from ..data.own import derive_num_classes, register_own_data
from ..detectors.contract import traits_of
from ..weights.checkpointer import SafeCheckpointer
from ..weights.files import WeightsFileError
from ..weights.layouts import conflicts
from .batch_scaling import scale_to_batch
from .checkpoints import UnwritableOutput, why_unwritable
from .launch import torchrun_process
from .own_data import derive_eval_period


def prepare(
    cfg: CfgNode,
    *,
    eval_only: bool,
    num_gpus: int = 1,
    num_machines: int = 1,
    resume: bool = False,
) -> None:
    """Choose the device, and check that weights, data sets and GPUs are there.

    Without a GPU, ``MODEL.DEVICE`` becomes ``cpu`` and one line says so; of torchrun's processes
    the first says it. The number of classes becomes that of the data, unless it was given, and
    learning rate and schedule are scaled to the batch: :func:`.batch_scaling.scale_to_batch`; data
    of one's own are evaluated now and then: :func:`.own_data.derive_eval_period`. Keys that were
    given but do nothing for the model are named, and so are a run that this one would write over
    and what the detector says of its own keys.

    Args:
        cfg: not frozen.
        eval_only: only the data sets of ``DATASETS.TEST`` are needed.
        num_gpus: processes that detectron2's launch starts on this machine, one GPU each.
        num_machines: on which it does so.
        resume: a run goes on that has looked at all picture files when it began.

    Raises:
        FileNotFoundError: weights or a data set are missing.
        ValueError: a data set is not registered, has another number of classes or errors (see
            :func:`..data.check_run.require_sound_data`), there are fewer GPUs than asked for, both
            torchrun and detectron2's launch are to start processes, the processes cannot share the
            batch equally, or mixed precision is to be trained on the CPU.
        UnwritableOutput: nothing can be written to ``OUTPUT_DIR``.
    """
    process = torchrun_process()
    speaks = process is None or process.rank == 0
    available = torch.cuda.device_count()
    _require_one_launcher(num_gpus, num_machines)
    require_gpus(num_gpus)
    if available == 0 and cfg.MODEL.DEVICE == "cuda":
        if speaks:
            print("No GPU found: running on the CPU.")
        cfg.MODEL.DEVICE = "cpu"
    if process and cfg.MODEL.DEVICE == "cuda" and process.local_world_size > available:
        raise ValueError(
            f"torchrun has started {process.local_world_size} processes on this machine, but "
            f"{available} GPUs are found on it: start {available} at most with --nproc-per-node, "
            "or set MODEL.DEVICE to 'cpu'."
        )
    lines = [f"Warning: {line}" for line in warnings_of_dead_keys(cfg, load_config(""))]
    if not eval_only:
        _require_equal_shares(cfg, process.world_size if process else num_gpus * num_machines)
        lines += scale_to_batch(cfg)
        lines += derive_eval_period(cfg)
        lines += traits_of(cfg).notes
        if cfg.TEST.AUG.ENABLED:
            lines.append("TEST.AUG.ENABLED is for --eval-only: training evaluates without it.")

    _require_output(cfg.OUTPUT_DIR)
    register_own_data(cfg)
    names = cfg.DATASETS.TEST if eval_only else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    require_datasets(names)
    # The others of torchrun's processes on a machine wait for the first, and end with it.
    if process is None or process.local_rank == 0:
        require_sound_data(
            () if eval_only else cfg.DATASETS.TRAIN,
            cfg.DATASETS.TEST,
            output_dir=cfg.OUTPUT_DIR if speaks else "",
            max_pixels=cfg.INPUT.MAX_PIXELS,
            read_images=not resume,
        )
    lines += derive_num_classes(cfg, names)
    if speaks and lines:
        print("\n".join(lines))
    for key in traits_of(cfg).class_keys:
        require_num_classes(names, value_of(cfg, key), key)

    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu" and not eval_only:
        raise ValueError("SOLVER.AMP.ENABLED needs a GPU: set it to False to train on the CPU.")

    if cfg.SOLVER.MAX_ITER < 1 and not eval_only:
        raise ValueError(f"SOLVER.MAX_ITER must be 1 or more, not {cfg.SOLVER.MAX_ITER}.")

    if resume:
        # The last checkpoint is taken; a training looks for a whole one.
        if eval_only and not _last_checkpoint(cfg.OUTPUT_DIR):
            raise ValueError(
                f"There is no checkpoint to evaluate in '{cfg.OUTPUT_DIR}': leave --resume out and "
                "set MODEL.WEIGHTS, or set OUTPUT_DIR to the run's folder."
            )
        return
    # What follows a question mark are options of detectron2's checkpointer.
    weights = cfg.MODEL.WEIGHTS.split("?")[0]
    if weights and "://" not in weights and not os.path.isfile(weights):
        what = "is a folder" if os.path.isdir(weights) else "does not exist"
        raise FileNotFoundError(
            f"MODEL.WEIGHTS '{weights}' {what}. Give the path of a checkpoint, a model-zoo "
            "address such as detectron2://ImageNetPretrained/MSRA/R-50.pkl, or '' for none."
        )
    # Whatever last_checkpoint says: damaged, it does not keep a new run from beginning.
    former = sorted(Path(cfg.OUTPUT_DIR).glob("model_*.pth"))
    if not eval_only and speaks and former:
        print(
            f"Warning: OUTPUT_DIR '{cfg.OUTPUT_DIR}' holds a run already, with "
            f"'{former[-1].name}'. This one begins anew and writes over its files: end "
            "it, and --resume that one or set another OUTPUT_DIR, if they are to be kept."
        )
    if eval_only and not weights and speaks:
        print("MODEL.WEIGHTS is empty: an untrained network is evaluated.")


def require_gpus(num_gpus: int) -> None:
    """Make sure that there are as many GPUs as detectron2's launch would take.

    Raises:
        ValueError: there are fewer; one is not needed, as everything runs on the CPU, too.
    """
    available = torch.cuda.device_count()
    if num_gpus <= max(available, 1):
        return
    remedy = (
        "Leave it out to train with one of them."
        if available
        else "Leave it out to train on the CPU, with several processes there by "
        f"'torchrun --standalone --nproc-per-node {num_gpus} train_net.py ...'."
    )
    raise ValueError(
        f"--num-gpus {num_gpus} was asked for, but {available} GPUs are found on this machine. "
        + remedy
    )


def _last_checkpoint(folder: str) -> str:
    return SafeCheckpointer(torch.nn.Identity(), folder).get_checkpoint_file()


def _require_output(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
        reason = why_unwritable(folder)
    except OSError as error:
        reason = error.strerror
    if reason:
        raise UnwritableOutput(
            f"Nothing can be written to OUTPUT_DIR '{folder}' ({reason}): make room or allow it, "
            "or set OUTPUT_DIR to another folder."
        )


def _require_one_launcher(num_gpus: int, num_machines: int) -> None:
    process = torchrun_process()
    if process is None:
        return
    for option, value in (("--num-gpus", num_gpus), ("--num-machines", num_machines)):
        if value > 1:
            raise ValueError(
                f"{option} {value} was given, but torchrun has already started the processes "
                f"({process.world_size}): leave it out, and give their number to torchrun "
                "(--nproc-per-node, --nnodes)."
            )


def _require_equal_shares(cfg: CfgNode, num_processes: int) -> None:
    # detectron2 scales the batch of another number of processes, where that is given.
    num_processes = cfg.SOLVER.REFERENCE_WORLD_SIZE or max(num_processes, 1)
    if cfg.SOLVER.IMS_PER_BATCH % num_processes:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is the batch of all processes "
            f"together, which {num_processes} cannot share equally: make it a multiple of "
            f"{num_processes}."
        )


def load_weights(
    checkpointer: DetectionCheckpointer,
    weights: str,
    *,
    resume: bool,
    cfg: CfgNode | None = None,
    complete: bool = False,
    key: str = "MODEL.WEIGHTS",
) -> dict:
    """Load weights, or the last checkpoint of the output folder if one is there and ``resume``.

    Files are read by :class:`.weights.SafeCheckpointer`, whatever the class of ``checkpointer``.
    ``loaded_weights.txt`` in the output folder says what became of every tensor.

    Args:
        checkpointer: of the model.
        weights: the file, or its address.
        resume: prefer the last checkpoint.
        cfg: what the model was built from; keys under which the weights mean something else than
            where they come from are named in warnings.
        complete: every tensor of the model must be in the file; always so for ``resume``.
        key: what the weights were named by, for messages.

    Returns:
        what else the checkpoint holds.

    Raises:
        ValueError: the file cannot be fetched or read, holds more than weights, or is not the same
            in all processes, or nothing in it fits the model; the message names it.
    """
    if not isinstance(checkpointer, SafeCheckpointer):
        checkpointer = SafeCheckpointer(
            checkpointer.model,
            checkpointer.save_dir,
            trust=getattr(checkpointer, "trust", False),
            **checkpointer.checkpointables,
        )
    last = checkpointer.get_checkpoint_file() if resume else ""
    found = set(comm.all_gather(os.path.basename(last)))
    if len(found) > 1:
        names = " and ".join(f"'{name}'" if name else "none" for name in sorted(found))
        raise ValueError(
            f"The processes find different checkpoints to resume from ({names}): OUTPUT_DIR must "
            "be a folder that all machines share."
        )
    source = f"{'The checkpoint' if last else key} '{last or weights}'"
    try:
        rest = checkpointer.resume_or_load(weights, resume=resume)
    except WeightsFileError as error:
        raise WeightsFileError(f"{source} could not be loaded: {error}") from error
    except Exception as error:
        raise ValueError(
            f"{source} could not be loaded ({type(error).__name__}: {error}). Give the path of a "
            "whole checkpoint; an address needs a network."
        ) from error
    if checkpointer.report:
        _check_report(checkpointer, source, complete=complete or bool(last))
        if checkpointer.report.layout and cfg is not None:
            for line in conflicts(checkpointer.report.layout, cfg):
                checkpointer.logger.warning(line)
    return rest


def _check_report(checkpointer: SafeCheckpointer, source: str, *, complete: bool) -> None:
    report = checkpointer.report
    if checkpointer.save_dir and checkpointer.save_to_disk:
        os.makedirs(checkpointer.save_dir, exist_ok=True)
        with open(
            os.path.join(checkpointer.save_dir, "loaded_weights.txt"), "w", encoding="utf-8"
        ) as file:
            file.write("\n".join([report.summary(), *report.table()]) + "\n")
    problems = " ".join(report.problems())
    if not (report.loaded or report.converted):
        raise ValueError(f"{source} fits nothing in the model. {problems}")
    if complete and not report.complete:
        raise ValueError(
            f"{source} does not have all that the model needs: {report.summary()} "
            f"{problems or report.without_missing()}".rstrip()
        )
