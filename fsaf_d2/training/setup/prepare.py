"""What has to be right before a run begins."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch
from detectron2.config import CfgNode

from ...config import load_config
from ...config_keys import value_of, warnings_of_dead_keys
from ...data.checking.check_run import require_sound_data
from ...data.checking.checks import require_datasets, require_num_classes
from ...data.checking.images import image_limits
from ...data.reading.own import derive_num_classes, register_own_data
from ...detectors.contract import traits_of
from ...weights.atomic_writing import UnwritableOutput, why_unwritable
from ...weights.checkpointer import SafeCheckpointer
from ..launch import torchrun_process
from .batch_scaling import scale_to_batch
from .devices import choose_device, require_equal_shares
from .own_data import derive_eval_period
from .ranges import lines_of_warm_up


@dataclasses.dataclass(frozen=True)
class _Run:
    """What is asked for, as in :func:`prepare`."""

    cfg: CfgNode
    eval_only: bool
    num_gpus: int
    num_machines: int
    resume: bool

    @property
    def speaks(self) -> bool:
        """Whether this is the process that says what there is to say."""
        process = torchrun_process()
        return process is None or process.rank == 0

    @property
    def num_processes(self) -> int:
        process = torchrun_process()
        return process.world_size if process else self.num_gpus * self.num_machines

    @property
    def datasets(self) -> tuple[str, ...]:
        data = self.cfg.DATASETS
        return tuple(data.TEST) if self.eval_only else (*data.TRAIN, *data.TEST)


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
        resume: a run goes on that has looked at all image files when it began.

    Raises:
        FileNotFoundError: weights or a data set are missing.
        ValueError: a data set is not registered, has another number of classes or errors (see
            :func:`...data.checking.check_run.require_sound_data`), there are fewer GPUs than asked
            for, both torchrun and detectron2's launch are to start processes, the processes cannot
            share the batch equally, or mixed precision is to be trained on the CPU.
        UnwritableOutput: nothing can be written to ``OUTPUT_DIR``.
    """
    run = _Run(cfg, eval_only, num_gpus, num_machines, resume)
    for step in _STEPS:
        lines = step(run)
        if lines and run.speaks:
            print("\n".join(lines))


def _choose_device(run: _Run) -> list[str]:
    return choose_device(run.cfg, num_gpus=run.num_gpus, num_machines=run.num_machines)


def _warn_of_keys(run: _Run) -> list[str]:
    return [f"Warning: {line}" for line in warnings_of_dead_keys(run.cfg, load_config(""))]


def _derive_schedule(run: _Run) -> list[str]:
    if run.eval_only:
        return []
    require_equal_shares(run.cfg, run.num_processes)
    lines = [*scale_to_batch(run.cfg), *derive_eval_period(run.cfg), *traits_of(run.cfg).notes]
    lines += lines_of_warm_up(run.cfg)
    if run.cfg.TEST.AUG.ENABLED:
        lines.append("TEST.AUG.ENABLED is for --eval-only: training evaluates without it.")
    return lines


def _require_output(run: _Run) -> None:
    folder = run.cfg.OUTPUT_DIR
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


def _require_data(run: _Run) -> None:
    cfg, process = run.cfg, torchrun_process()
    register_own_data(cfg)
    require_datasets(run.datasets)
    # The others of torchrun's processes on a machine wait for the first, and end with it.
    if process is None or process.local_rank == 0:
        require_sound_data(
            () if run.eval_only else cfg.DATASETS.TRAIN,
            cfg.DATASETS.TEST,
            output_dir=cfg.OUTPUT_DIR if run.speaks else "",
            **image_limits(cfg),
            read_images=not run.resume,
            strict_boxes=cfg.DATALOADER.STRICT_BOXES,
        )


def _derive_classes(run: _Run) -> list[str]:
    return derive_num_classes(run.cfg, run.datasets)


def _require_classes(run: _Run) -> None:
    for key in traits_of(run.cfg).class_keys:
        require_num_classes(run.datasets, value_of(run.cfg, key), key)


def _require_possible_solver(run: _Run) -> None:
    solver = run.cfg.SOLVER
    if run.eval_only:
        return
    if solver.AMP.ENABLED and run.cfg.MODEL.DEVICE == "cpu":
        raise ValueError("SOLVER.AMP.ENABLED needs a GPU: set it to False to train on the CPU.")


def _require_weights(run: _Run) -> list[str]:
    cfg = run.cfg
    if run.resume:
        # The last checkpoint is taken; a training looks for a whole one.
        if run.eval_only and not _last_checkpoint(cfg.OUTPUT_DIR):
            raise ValueError(
                f"There is no checkpoint to evaluate in '{cfg.OUTPUT_DIR}': leave --resume out and "
                "set MODEL.WEIGHTS, or set OUTPUT_DIR to the run's folder."
            )
        return []
    # What follows a question mark are options of detectron2's checkpointer.
    weights = cfg.MODEL.WEIGHTS.split("?")[0]
    if weights and "://" not in weights and not os.path.isfile(weights):
        what = "is a folder" if os.path.isdir(weights) else "does not exist"
        raise FileNotFoundError(
            f"MODEL.WEIGHTS '{weights}' {what}. Give the path of a checkpoint, a model-zoo "
            "address such as detectron2://ImageNetPretrained/MSRA/R-50.pkl, or '' for none."
        )
    if run.eval_only:
        return [] if weights else ["MODEL.WEIGHTS is empty: an untrained network is evaluated."]
    return _line_of_former_run(cfg.OUTPUT_DIR)


def _line_of_former_run(folder: str) -> list[str]:
    # Whatever last_checkpoint says: damaged, it does not keep a new run from beginning.
    former = sorted(Path(folder).glob("model_*.pth"))
    if not former:
        return []
    return [
        f"Warning: OUTPUT_DIR '{folder}' holds a run already, with '{former[-1].name}'. This one "
        "begins anew and writes over its files: end it, and --resume that one or set another "
        "OUTPUT_DIR, if they are to be kept."
    ]


def _last_checkpoint(folder: str) -> str:
    return SafeCheckpointer(torch.nn.Identity(), folder).get_checkpoint_file()


# In this order; each gives lines for a person, or nothing.
_STEPS = (
    _choose_device,
    _warn_of_keys,
    _derive_schedule,
    _require_output,
    _require_data,
    _derive_classes,
    _require_classes,
    _require_possible_solver,
    _require_weights,
)
