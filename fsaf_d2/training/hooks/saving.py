"""Hooks that save a run: regularly, and when it is asked to end."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from types import FrameType

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..checkpoints import RunCheckpointer

_logger = logging.getLogger("detectron2.fsaf_d2.training")
# A run that was asked to end, has saved, and can go on with --resume: EX_TEMPFAIL of sysexits.h.
EXIT_RESUMABLE = 75
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
            self.save_final()
        elif step % self._period == 0:
            self.save_now()

    def save_now(self) -> None:
        """Save a numbered checkpoint behind the present step."""
        self._save(f"model_{self.trainer.iter:07d}")
        self._checkpointer.remove_old(self._keep)

    def save_final(self) -> None:
        """Save ``model_final`` behind the last step, also when all hooks are through with it."""
        step = self.trainer.iter
        self.trainer.iter = min(step, self.trainer.max_iter - 1)
        try:
            self._save("model_final")
        finally:
            self.trainer.iter = step

    def _save(self, name: str) -> None:
        self.trainer.gather_random_states()
        self._checkpointer.save(name, iteration=self.trainer.iter, **self.trainer.description())


class StopOnSignal(HookBase):
    """Ends a run that gets SIGTERM or SIGINT behind its step: saved, with exit code 75.

    Of a run in one process the step that waits for data is not waited for: what the one before has
    left is saved. Before the first step there is nothing to save, and the exit code is that of the
    signal, 128 and its number. A second SIGINT ends a run at once.
    """

    def __init__(self, save: Callable[[], None], break_off: Callable[[], None]) -> None:
        """
        Args:
            save: a checkpoint behind the present step.
            break_off: raises :class:`WaitBrokenOff` in whoever waits for data, now or later.
        """
        self._save = save
        self._break_off = break_off
        self._process = os.getpid()
        self._received: int | None = None
        self._former: dict[int, object] = {}

    def before_train(self) -> None:
        """Listen."""
        self._process = os.getpid()
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._note)
        except ValueError:
            _logger.warning("Training is not in the main thread: SIGTERM and SIGINT do not save.")

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A worker, to which a terminal sends SIGINT too: it is ended by the run.
            return
        if self._received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._received = number
        # A scheduler may have sent it to the workers too. Torch would raise what ends them wherever
        # this process is, in a step or in the saving.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        if comm.get_world_size() == 1:
            self._break_off()

    def after_step(self) -> None:
        """End the run if a signal has come, to any of the processes."""
        received = self._received is not None
        if comm.get_world_size() > 1:
            if (self.trainer.iter + 1) % AGREE_PERIOD:
                return
            received = any(comm.all_gather(received))
        if received and self.trainer.iter + 1 < self.trainer.max_iter:
            self._end()

    def end_before_step(self) -> None:
        """End the run, whose present step has not begun as it has no data."""
        if self.trainer.iter == 0:
            _logger.info("Stopped by a signal before the first step: there is nothing to save.")
            raise SystemExit(128 + self._received)
        self.trainer.storage.iter = self.trainer.iter = self.trainer.iter - 1
        self._end()

    def _end(self) -> None:
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
