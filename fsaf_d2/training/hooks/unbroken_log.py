"""The log of a run, which has no seam where the run was broken off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from detectron2.engine import HookBase, hooks
from detectron2.utils.events import EventStorage, EventWriter

# detectron2's writers smooth over so many steps; by default the log is written as often.
WRITER_PERIOD = 20


class RegularWriter(hooks.PeriodicWriter):
    """Writes the log every so many steps and with every evaluation.

    Otherwise one evaluation could replace the values of another before they are written.
    """

    def __init__(
        self, writers: list[EventWriter], eval_period: int, period: int = WRITER_PERIOD
    ) -> None:
        """
        Args:
            eval_period: steps from one evaluation to the next; 0 for none during training.
            period: steps from one line to the next.
        """
        super().__init__(writers, period=period)
        self.writers = writers
        self._periods = [period, *([eval_period] if eval_period > 0 else [])]
        self._written = -1

    def is_due(self, step: int) -> bool:
        """Whether the log is written behind this step, counted from 1."""
        return step >= self.trainer.max_iter or any(step % x == 0 for x in self._periods)

    def after_step(self) -> None:
        """Write if it is time."""
        if self.is_due(self.trainer.iter + 1):
            self.write()

    def write(self) -> None:
        """Write all that is new."""
        self._written = self.trainer.storage.iter
        for writer in self.writers:
            writer.write()

    def after_train(self) -> None:
        """Write what is left; the terminal's writer cannot tell the time of no step."""
        if self.trainer.storage.iter != self._written:
            self.write()
        for writer in self.writers:
            writer.close()


class UnbrokenLog(HookBase):
    """Lets the log of a resumed run be the one that it would have been without the break.

    Lines of ``metrics.json`` that were written behind the checkpoint go, and the smoothing of
    scalars goes on from the values before it.
    """

    def __init__(
        self, output_dir: str, writer: RegularWriter | None, catch_up: Callable[[], None]
    ) -> None:
        """
        Args:
            writer: of this process, if it writes.
            catch_up: records what the run has missed behind the checkpoint's step.
        """
        self._file = Path(output_dir) / "metrics.json"
        self._writer = writer
        self._catch_up = catch_up
        self._scalars: dict[str, dict] = {}

    def before_train(self) -> None:
        """Restore scalars, cut the file, and write what is due behind the checkpoint's step."""
        storage, start = self.trainer.storage, self.trainer.start_iter
        steps = sorted({step for scalar in self._scalars.values() for step in scalar["steps"]})
        # The last evaluation of a run is logged one behind its last step, which is none of those
        # of a run that goes on.
        goes_on = start < self.trainer.max_iter
        last = [step for step in steps if step >= start]
        for step in steps:
            if step < start or goes_on:
                self._restore(step, min(step, start - 1))
        storage.iter = start
        if start == 0:
            return
        is_due = self._writer is not None and (self._writer.is_due(start) or bool(last))
        if self._writer is not None:
            last_written = self._cut(start - 1 if is_due else start)
            for writer in self._writer.writers:
                # Else they would write the restored values once more. That of the terminal is no
                # step.
                if isinstance(getattr(writer, "_last_write", None), int):
                    writer._last_write = last_written
        self._catch_up()
        if is_due:
            storage.iter = start - 1
            self._writer.write()
            storage.iter = start
        if not goes_on:
            for step in last:
                self._restore(step, step)
            storage.iter = start

    def _restore(self, step: int, place: int) -> None:
        self.trainer.storage.iter = place
        for name, scalar in self._scalars.items():
            if step in scalar["steps"]:
                value = scalar["values"][scalar["steps"].index(step)]
                self.trainer.storage.put_scalar(name, value, smoothing_hint=scalar["smooth"])

    def _cut(self, step: int) -> int:
        """Remove all from the first line on that is of this or a later step, or damaged.

        Returns:
            the iteration of the last line that stays, -1 if none does.
        """
        last = -1
        if not self._file.is_file():
            return last
        # In place: a writer may have the file open to add to it.
        with open(self._file, "r+b") as file:
            end = 0
            for line in file:
                try:
                    iteration = json.loads(line)["iteration"]
                    if not line.endswith(b"\n") or iteration >= step:
                        break
                except (ValueError, KeyError, TypeError):
                    break
                end += len(line)
                last = max(last, iteration)
            file.truncate(end)
        return last

    def state_dict(self) -> dict:
        """The last values of every scalar."""
        storage: EventStorage | None = getattr(self.trainer, "storage", None)
        if storage is None:
            return {}
        hints = storage.smoothing_hints()
        return {
            name: {
                "values": [float(value) for value, _ in buffer.values()[-WRITER_PERIOD:]],
                "steps": [int(step) for _, step in buffer.values()[-WRITER_PERIOD:]],
                "smooth": bool(hints[name]),
            }
            for name, buffer in storage.histories().items()
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore what :meth:`state_dict` gave, when training begins."""
        self._scalars = state_dict
