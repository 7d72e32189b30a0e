"""Files of torch's that are whole or not there, and folders that nothing can be written to."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import torch
from torch import Tensor

# Space for a file's own structure beside its tensors.
MARGIN = 1 << 20
REMEDY = (
    "What was saved before is untouched: make room, or make OUTPUT_DIR writable, and go on with "
    "--resume."
)


class UnwritableOutput(OSError):
    """Nothing can be written to the run's folder, or not all of a file."""


def write_atomically(file: Path, data: dict) -> None:
    """Write a file of torch's, all of it or nothing.

    Raises:
        UnwritableOutput: the disk is full or the folder cannot be written to; the message names
            the file, and what was there is as before.
    """
    with named_errors(file):
        needed, free = _size(data) + MARGIN, shutil.disk_usage(file.parent).free
        if free < needed:
            raise OSError(errno.ENOSPC, f"{needed >> 20} MiB are needed, {free >> 20} MiB are free")
        part = file.with_name(f".{file.name}.part")
        try:
            with open(part, "wb") as stream:
                torch.save(data, stream)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(file)
            sync_folder(file.parent)
        finally:
            part.unlink(missing_ok=True)


def require_another_file(output: Path, weights: str | os.PathLike[str], option: str) -> None:
    """Make sure that what is written does not take the place of the weights it is made from.

    Args:
        option: what names the output.

    Raises:
        ValueError: both are one file, or one leads to the other by links.
    """
    if output.exists() and os.path.exists(weights) and output.samefile(weights):
        raise ValueError(f"{option} '{output}' is the file of the weights: name another.")


def find_damage(file: Path) -> str | None:
    """Say what is wrong with a file of torch's, by its checksums; None if it is whole."""
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        return f"it is incomplete or damaged ({error})"
    return f"its part '{damaged}' is damaged" if damaged else None


def why_unwritable(folder: str | os.PathLike[str]) -> str | None:
    """Say why nothing can be written to a folder; None if something can."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".part") as file:
            # A block: a full disk may still have room for a few bytes beside others.
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        return "it is not there" if isinstance(error, FileNotFoundError) else _reason(error)
    return None


def raise_if_unwritable(folder: str, error: OSError) -> None:
    """Say that a run's folder is why there was an error, if so; else do nothing.

    Those who write the log say neither where nor what to do.

    Raises:
        UnwritableOutput: it is.
    """
    reason = why_unwritable(folder)
    if reason and not isinstance(error, UnwritableOutput):
        raise UnwritableOutput(
            f"Nothing can be written to OUTPUT_DIR '{folder}' any more ({reason}). {REMEDY}"
        ) from error


class named_errors:
    """Turn errors of writing into one that names the file and the remedy."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> None:
        # Torch's writer has its own way to say that the disk is full.
        if isinstance(error, (OSError, RuntimeError)):
            raise UnwritableOutput(
                f"'{self._file}' could not be written ({_reason(error)}). {REMEDY}"
            ) from error


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _size(data: object) -> int:
    """Bytes of the tensors in nested containers."""
    if isinstance(data, Tensor):
        return data.numel() * data.element_size()
    if isinstance(data, dict):
        return sum(map(_size, data.values()))
    if isinstance(data, (list, tuple)):
        return sum(map(_size, data))
    return 0
