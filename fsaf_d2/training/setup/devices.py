"""On which devices, and in how many processes, a run is to compute."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode

from ...commands.calls import call
from ..launch import torchrun_process


def choose_device(cfg: CfgNode, *, num_gpus: int, num_machines: int) -> list[str]:
    """Make sure that the processes can be had; without a GPU ``MODEL.DEVICE`` becomes ``cpu``.

    Returns:
        lines for a person.

    Raises:
        ValueError: there are fewer GPUs than processes, or both torchrun and detectron2's launch
            are to start them.
    """
    _require_one_launcher(num_gpus, num_machines)
    require_gpus(num_gpus)
    available, process = torch.cuda.device_count(), torchrun_process()
    lines = []
    if available == 0 and cfg.MODEL.DEVICE == "cuda":
        lines.append("No GPU found: running on the CPU.")
        cfg.MODEL.DEVICE = "cpu"
    if process and cfg.MODEL.DEVICE == "cuda" and process.local_world_size > available:
        raise ValueError(
            f"torchrun has started {process.local_world_size} processes on this machine, but "
            f"{available} GPUs are found on it: start {available} at most with --nproc-per-node, "
            "or set MODEL.DEVICE to 'cpu'."
        )
    return lines


def require_gpus(num_gpus: int) -> None:
    """Make sure that there are as many GPUs as detectron2's launch would take.

    Raises:
        ValueError: there are fewer; one is not needed, as everything runs on the CPU, too.
    """
    available = torch.cuda.device_count()
    if num_gpus <= max(available, 1):
        return
    program = call("train").replace("python ", "").replace("fsaf-d2", "-m fsaf_d2")
    remedy = (
        "Leave it out to train with one of them."
        if available
        else "Leave it out to train on the CPU, with several processes there by "
        f"'torchrun --standalone --nproc-per-node {num_gpus} {program} ...'."
    )
    raise ValueError(
        f"--num-gpus {num_gpus} was asked for, but {available} GPUs are found on this machine. "
        + remedy
    )


def require_equal_shares(cfg: CfgNode, num_processes: int) -> None:
    """Make sure that the processes can share the batch equally.

    Raises:
        ValueError: they cannot.
    """
    # detectron2 scales the batch of another number of processes, where that is given.
    num_processes = cfg.SOLVER.REFERENCE_WORLD_SIZE or max(num_processes, 1)
    if cfg.SOLVER.IMS_PER_BATCH % num_processes:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is the batch of all processes "
            f"together, which {num_processes} cannot share equally: make it a multiple of "
            f"{num_processes}."
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
