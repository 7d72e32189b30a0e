"""Checkpoints that are whole or not there, and the newest whole one to go on from."""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..weights.checkpointer import SafeCheckpointer
from .ema import MovingAverage

_logger = logging.getLogger("detectron2.fsaf_d2.training")
LAST = "last_checkpoint"
BEST = "model_best"
# Space for a file's own structure beside its tensors.
MARGIN = 1 << 20
REMEDY = (
    "What was saved before is untouched: make room, or make OUTPUT_DIR writable, and go on with "
    "--resume."
)


class UnwritableOutput(OSError):
    """Nothing can be written to the run's folder, or not all of a file."""


class RunCheckpointer(SafeCheckpointer):
    """Writes the checkpoints of a run, and finds the newest one that is whole.

    A file appears under its name only when all of it is on the disk. Torch's format holds a CRC-32
    of every tensor, by which a damaged file is recognised.
    """

    # What is saved as the model in its place, if anything.
    average: MovingAverage | None = None

    def save(self, name: str, *, tag: bool = True, **kwargs: object) -> None:
        """Write ``name + ".pth"`` in the run's folder, in the main process alone.

        Args:
            name: without extension.
            tag: whether a resumed run shall go on from here.
            kwargs: more to store.

        Raises:
            UnwritableOutput: the disk is full or the folder cannot be written to; no file has
                changed.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": (self.average or self.model).state_dict()}
        for key, checkpointable in self.checkpointables.items():
            data[key] = checkpointable.state_dict()
        file = Path(self.save_dir) / f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {file}")
        write_atomically(file, {**data, **kwargs})
        if tag:
            self.tag_last_checkpoint(file.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note which checkpoint is the last one, as detectron2 does, but never half a name."""
        file = Path(self.save_dir) / LAST
        part = file.with_name(f".{LAST}.part")
        with _named_errors(file):
            with open(part, "w", encoding="utf-8") as stream:
                stream.write(last_filename_basename)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(file)
            _sync_folder(file.parent)

    def has_checkpoint(self) -> bool:
        """Whether there is a whole one."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """Find the newest checkpoint that is whole, and say which newer ones are not.

        Returns:
            its path, "" if there is none.

        Raises:
            WeightsFileError: ``last_checkpoint`` leads out of the folder.
        """
        for file in self._candidates():
            damage = find_damage(file)
            if damage is None:
                return str(file)
            _logger.warning(f"Skipping checkpoint '{file}': {damage}.")
        return ""

    def _candidates(self) -> list[Path]:
        """The noted last checkpoint, then the others of the run, newest first."""
        folder = Path(self.save_dir)
        try:
            noted = bool((folder / LAST).read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError):
            noted = False
        last = super().get_checkpoint_file() if noted else ""
        files = [
            file
            for file in folder.glob("model_*.pth")
            if file.name != f"{BEST}.pth" and file.resolve().parent == folder.resolve()
        ]
        files.sort(key=lambda file: (str(file) == last, file.stat().st_mtime_ns), reverse=True)
        return files

    def remove_old(self, keep: int) -> None:
        """Remove all but the newest ``keep`` numbered checkpoints; 0 keeps all."""
        if not keep or not self.save_to_disk:
            return
        numbered = Path(self.save_dir).glob("model_" + "[0-9]" * 7 + ".pth")
        # By age: the folder may hold those of a former, longer run.
        for file in sorted(numbered, key=lambda file: file.stat().st_mtime_ns)[:-keep]:
            file.unlink(missing_ok=True)


def write_atomically(file: Path, data: dict) -> None:
    """Write a file of torch's, all of it or nothing.

    Raises:
        UnwritableOutput: the disk is full or the folder cannot be written to; the message names
            the file, and what was there is as before.
    """
    with _named_errors(file):
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
            _sync_folder(file.parent)
        finally:
            part.unlink(missing_ok=True)


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


class _named_errors:
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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def random_state() -> dict:
    """State of Python's, NumPy's and torch's generators, as tensors and plain values."""
    name, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict) -> None:
    """Restore what :func:`random_state` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["cuda"])
