"""How the processes of a run start: by torchrun, or by detectron2's launch."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from detectron2.engine import DEFAULT_TIMEOUT
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from torch import distributed as dist

from ..ownership import owned


class TorchrunProcess(NamedTuple):
    """What torchrun says to each process that it starts; a machine is one torchrun command."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def torchrun_process() -> TorchrunProcess | None:
    """Which process of torchrun this one is; None where something else has started it.

    The environment decides: all variables that torchrun sets for its processes have to be there,
    so that those which some clusters set for every job (``RANK``, ``WORLD_SIZE``) do not.
    """
    names = [name.upper() for name in TorchrunProcess._fields]
    if not all(os.environ.get(name) for name in [*names, "MASTER_ADDR", "MASTER_PORT"]):
        return None
    return TorchrunProcess(*(int(os.environ[name]) for name in names))


def owned_output(
    folder: str | os.PathLike[str], key: str = "OUTPUT_DIR"
) -> contextlib.AbstractContextManager[None]:
    """:func:`.owned` by a run: of torchrun's processes the first owns the folder."""
    process = torchrun_process()
    return contextlib.nullcontext() if process and process.rank > 0 else owned(folder, key)


def launch(
    main: Callable[..., object],
    num_gpus: int = 1,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    device: str = "cuda",
    args: tuple = (),
) -> None:
    """Run ``main(*args)`` in every process of a run.

    Under torchrun this is one of the processes: it joins the others, by NCCL on GPUs and by Gloo
    elsewhere, runs ``main`` and leaves. Where an exception ends several processes, the first shows
    it, as the others only miss that one. Without torchrun detectron2 starts the processes.

    Args:
        main: what every process does.
        num_gpus: as ``num_machines``, ``machine_rank`` and ``dist_url`` an argument of detectron2's
            ``launch``; torchrun has its own.
        device: ``MODEL.DEVICE``.
        args: of ``main``.
    """
    process = torchrun_process()
    if process is None:
        detectron2_launch(
            main,
            num_gpus,
            num_machines=num_machines,
            machine_rank=machine_rank,
            dist_url=dist_url,
            args=args,
        )
        return

    on_gpus = device.startswith("cuda")
    if on_gpus:
        torch.cuda.set_device(process.local_rank)
    _wait_until_all_are_here(process)
    dist.init_process_group(
        "nccl" if on_gpus else "gloo",
        store=_store(),
        rank=process.rank,
        world_size=process.world_size,
        timeout=DEFAULT_TIMEOUT,
    )
    _create_local_process_group(process)
    try:
        main(*args)
        comm.synchronize()
    except Exception:
        if first_to_fail():
            raise
        sys.exit(1)
    # Not where main has failed: it could wait for processes that have ended.
    comm._LOCAL_PROCESS_GROUP = None
    dist.destroy_process_group()


def first_to_fail() -> bool:
    """Whether no process of the run has called this before: the one that may say what is wrong.

    Only torchrun's processes know of each other; any other one is the first.
    """
    if torchrun_process() is None:
        return True
    try:
        return _store().add(_key("failed"), 1) == 1
    except RuntimeError:
        # Better said twice than not at all.
        return True


@contextlib.contextmanager
def first_process_first() -> Iterator[bool]:
    """Have the first of torchrun's processes leave the body before the others enter it.

    Yields:
        whether this is the first process; so it is where torchrun has started none.
    """
    process = torchrun_process()
    if process is None:
        yield True
        return
    store, turn = _store(), next(_turns)
    done, failed = _key(f"turn {turn}"), _key(f"turn {turn} failed")
    if process.rank == 0:
        try:
            yield True
        except BaseException:
            store.add(failed, 1)
            raise
        store.add(done, 1)
        return
    last_call = time.monotonic() + DEFAULT_TIMEOUT.total_seconds()
    while not store.add(done, 0) and time.monotonic() < last_call:
        if store.add(failed, 0) or store.add(_key("failed"), 0):
            # It has said what is wrong.
            sys.exit(1)
        time.sleep(0.1)
    yield False


_turns = itertools.count()


def _wait_until_all_are_here(process: TorchrunProcess) -> None:
    """Wait for the others; end with them if one has failed on its way here.

    Torchrun ends those of the same machine, but those of others would wait for it to connect.
    """
    store = _store()
    store.add(_key("here"), 1)
    last_call = time.monotonic() + DEFAULT_TIMEOUT.total_seconds()
    while store.add(_key("here"), 0) < process.world_size and time.monotonic() < last_call:
        if store.add(_key("failed"), 0):
            sys.exit(1)
        time.sleep(0.1)


def _create_local_process_group(process: TorchrunProcess) -> None:
    """Tell detectron2 which processes share a machine, whose numbers of processes may differ.

    Every version of detectron2 keeps that group in this variable; only newer ones have a function
    that sets it, for machines of equally many processes.
    """
    machines = [0] * process.world_size
    dist.all_gather_object(machines, process.rank - process.local_rank)
    groups = [
        [rank for rank, machine in enumerate(machines) if machine == first]
        for first in sorted(set(machines))
    ]
    comm._LOCAL_PROCESS_GROUP, _ = dist.new_subgroups_by_enumeration(groups)


def _key(name: str) -> str:
    # The store can outlive an attempt, where torchrun may start the processes again.
    return f"fsaf_d2/{name}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


@functools.cache
def _store() -> dist.Store:
    """The key-value store that torchrun's processes share, before there is a process group too."""
    store, _, _ = next(dist.rendezvous("env://", timeout=DEFAULT_TIMEOUT))
    return store
