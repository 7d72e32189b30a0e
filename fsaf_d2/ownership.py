"""One run or prediction at a time in an output folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import filelock


@contextlib.contextmanager
def owned(folder: str | os.PathLike[str], key: str = "OUTPUT_DIR") -> Iterator[None]:
    """Be the only process that writes to a folder, as long as the body runs.

    The system gives the lock back when its holder ends, however that is.

    Args:
        folder: it is made where it is missing.
        key: its name in the config or on the command line, for messages.

    Raises:
        ValueError: another run holds the folder; the message names its process and host. Or it
            cannot be a folder.
    """
    require_possible_folder(folder, key)
    holder, lock = Path(folder, "running.json"), filelock.FileLock(Path(folder, ".lock"))
    try:
        os.makedirs(folder, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ValueError(
            f"Another run{_described(holder)} writes to {key} '{folder}': set another {key}, or "
            "end that run first."
        ) from None
    except (OSError, NotImplementedError):
        # What cannot be written to is said by what writes there; some file systems have no locks.
        yield
        return
    try:
        with contextlib.suppress(OSError):
            about = {"host": socket.gethostname(), "process": os.getpid(), "since": time.ctime()}
            holder.write_text(json.dumps(about))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def require_possible_folder(folder: str | os.PathLike[str], key: str) -> None:
    """Make sure that neither a file nor a link that leads nowhere has a folder's place.

    Raises:
        ValueError: one has; the message names it.
    """
    for path in (Path(folder), *Path(folder).parents):
        if path.is_dir():
            return
        if path.exists() or path.is_symlink():
            kind = "a file" if path.exists() else "a link that leads nowhere"
            raise ValueError(f"{key} cannot be '{folder}': '{path}' is {kind}: name a folder.")


def _described(holder: Path) -> str:
    try:
        about = json.loads(holder.read_text())
        return f" (process {about['process']} on {about['host']}, since {about['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
