"""Hooks that make a run survive: checkpoints, the best one, evaluation and log without gaps."""

from __future__ import annotations

import json
import logging
import math
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter

from .checkpoints import BEST, RunCheckpointer

_logger = logging.getLogger("detectron2.fsaf_d2.training")
# A run that was asked to end, has saved, and can go on with --resume: EX_TEMPFAIL of sysexits.h.
EXIT_RESUMABLE = 75
# detectron2's writers write every so many steps, and smooth over so many.
WRITER_PERIOD = 20
# Processes agree on a signal every so many steps.
AGREE_PERIOD = 10


class SaveCheckpoints(HookBase):
    """Saves a numbered checkpoint every ``period`` steps, and ``model_final`` behind the last."""

    def __init__(self, checkpointer: RunCheckpointer, period: int, *, keep: int = 0) -> None:
        """
        Args:
            keep: so many numbered ones stay; 0 keeps all.
        """
        self._checkpointer = checkpointer
        self._period = period
        self._keep = keep

    def after_step(self) -> None:
        """Save if it is time; all processes take part, as each has random numbers of its own."""
        step = self.trainer.iter + 1
        if step >= self.trainer.max_iter:
            self._save("model_final")
        elif step % self._period == 0:
            self.save_now()

    def save_now(self) -> None:
        """Save a numbered checkpoint behind the present step."""
        self._save(f"model_{self.trainer.iter:07d}")
        self._checkpointer.remove_old(self._keep)

    def _save(self, name: str) -> None:
        self.trainer.gather_random_states()
        self._checkpointer.save(name, iteration=self.trainer.iter, **self.trainer.description())


class Evaluation(hooks.EvalHook):
    """Evaluates every ``period`` steps, also where a run was killed in between, and keeps the best.

    The best checkpoint by ``metric`` is ``model_best``, which stays whatever else is removed.
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[], dict | None],
        checkpointer: RunCheckpointer,
        *,
        metric: str = "bbox/AP",
    ) -> None:
        super().__init__(period, evaluate)
        self._checkpointer = checkpointer
        self._metric = metric
        self._state = {"evaluated_steps": 0, "best": -math.inf}

    def catch_up(self) -> None:
        """Evaluate behind the last step of a resumed run if that was missed."""
        step = self.trainer.start_iter
        due = self._period > 0 and step > 0 and step % self._period == 0
        if due and step < self.trainer.max_iter and self._state["evaluated_steps"] < step:
            self.trainer.storage.iter = self.trainer.iter = step - 1
            self._do_eval()
            self.trainer.storage.iter = self.trainer.iter = step

    def _do_eval(self) -> None:
        super()._do_eval()
        self._state["evaluated_steps"] = self.trainer.iter + 1
        value, step = self.trainer.storage.latest().get(self._metric, (math.nan, -1))
        if self._period > 0 and step == self.trainer.storage.iter and value > self._state["best"]:
            # The main process alone knows: what needs the others, such as random states, is left.
            self._state["best"] = float(value)
            self._checkpointer.save(BEST, tag=False, iteration=step, **self.trainer.description())

    def state_dict(self) -> dict:
        """What a resumed run needs."""
        return dict(self._state)

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._state.update(state_dict)


class UnbrokenLog(HookBase):
    """Lets the log of a resumed run be the one that it would have been without the break.

    Lines of ``metrics.json`` that were written behind the checkpoint go, and the smoothing of
    scalars goes on from the values before it.
    """

    def __init__(
        self, output_dir: str, writers: list[EventWriter], catch_up: Callable[[], None]
    ) -> None:
        """
        Args:
            catch_up: records what the run has missed behind the checkpoint's step.
        """
        self._file = Path(output_dir) / "metrics.json"
        self._writers = writers
        self._catch_up = catch_up
        self._scalars: dict[str, dict] = {}

    def before_train(self) -> None:
        """Restore scalars, cut the file, and write what is due behind the checkpoint's step."""
        storage, start = self.trainer.storage, self.trainer.start_iter
        steps = sorted({step for scalar in self._scalars.values() for step in scalar["steps"]})
        for step in steps:
            storage.iter = step
            for name, scalar in self._scalars.items():
                if step in scalar["steps"]:
                    value = scalar["values"][scalar["steps"].index(step)]
                    storage.put_scalar(name, value, smoothing_hint=scalar["smooth"])
        storage.iter = start
        if start == 0:
            return
        is_due = start % WRITER_PERIOD == 0 or start >= self.trainer.max_iter
        first_missing = start - 1 if is_due else start
        if comm.is_main_process():
            self._cut(first_missing)
        for writer in self._writers:
            # Else they would write the restored values once more. That of the terminal is no step.
            if isinstance(getattr(writer, "_last_write", None), int):
                writer._last_write = first_missing // WRITER_PERIOD * WRITER_PERIOD - 1
        self._catch_up()
        if is_due:
            storage.iter = start - 1
            for writer in self._writers:
                writer.write()
            storage.iter = start

    def _cut(self, step: int) -> None:
        """Remove all from the first line on that is of this or a later step, or damaged."""
        if not self._file.is_file():
            return
        # In place: a writer may have the file open to add to it.
        with open(self._file, "r+b") as file:
            end = 0
            for line in file:
                try:
                    if not line.endswith(b"\n") or json.loads(line)["iteration"] >= step:
                        break
                except (ValueError, KeyError, TypeError):
                    break
                end += len(line)
            file.truncate(end)

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


class StopOnSignal(HookBase):
    """Ends a run that gets SIGTERM or SIGINT behind its step: saved, with exit code 75.

    A second SIGINT ends it at once.
    """

    def __init__(self, save: Callable[[], None]) -> None:
        self._save = save
        self._received: int | None = None
        self._former: dict[int, object] = {}

    def before_train(self) -> None:
        """Listen."""
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._note)
        except ValueError:
            _logger.warning("Training is not in the main thread: SIGTERM and SIGINT do not save.")

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._received = number

    def after_step(self) -> None:
        """End the run if a signal has come, to any of the processes."""
        received = self._received is not None
        if comm.get_world_size() > 1:
            if (self.trainer.iter + 1) % AGREE_PERIOD:
                return
            received = any(comm.all_gather(received))
        if received and self.trainer.iter + 1 < self.trainer.max_iter:
            self._save()
            _logger.info(
                f"Stopped by a signal behind step {self.trainer.iter + 1}, which is saved: "
                "go on with --resume."
            )
            raise SystemExit(EXIT_RESUMABLE)

    def after_train(self) -> None:
        """Listen no more."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()
