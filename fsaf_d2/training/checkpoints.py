"""Checkpoints that are whole or not there, and the newest whole one to go on from."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import detectron2
import numpy as np
import torch

from ..weights.atomic_writing import find_damage, named_errors, sync_folder, write_atomically
from ..weights.checkpointer import SafeCheckpointer
from .ema import MovingAverage

_logger = logging.getLogger("detectron2.fsaf_d2.training")
LAST = "last_checkpoint"
BEST = "model_best"


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
        with named_errors(file):
            with open(part, "w", encoding="utf-8") as stream:
                stream.write(last_filename_basename)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(file)
            sync_folder(file.parent)

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


def versions() -> dict[str, str]:
    """Those of what a checkpoint was made with."""
    modules = {"torch": torch, "detectron2": detectron2, "numpy": np}
    return {name: str(module.__version__) for name, module in modules.items()}
