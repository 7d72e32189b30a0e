"""Processes that load images and have ended: what torch raises then, and what helps."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

_LOST_WORKER = re.compile(
    r"DataLoader worker .*(killed by signal|exited unexpectedly)"
    r"|unable to \w+ (shared memory|file)|out of shared memory|No space left on device"
)


def is_of_lost_worker(error: BaseException) -> bool:
    """Whether it is what torch raises when a process that loads images has ended."""
    return isinstance(error, RuntimeError) and bool(_LOST_WORKER.search(str(error)))


@contextlib.contextmanager
def naming_lost_workers() -> Iterator[None]:
    """Turn what torch raises when a process that loads images has ended into a remedy.

    Raises:
        OSError: a loader's process was killed, or the shared memory is full.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_of_lost_worker(error):
            raise
        said = str(error).strip().splitlines()[-1]
        raise OSError(
            "A process that loads images has ended, most often for too little shared memory "
            "(/dev/shm; docker run --shm-size) or too little memory: give more of it, or lower "
            f"DATALOADER.NUM_WORKERS; a training goes on with --resume. Torch says: {said:.200}"
        ) from error
