"""Hooks of the training loop."""

from __future__ import annotations

import time

from detectron2.engine import HookBase


class ProgressLine(HookBase):
    """Prints a line with step, loss and time left every few seconds, in place of the full log."""

    def __init__(self, period: float = 15.0) -> None:
        """
        Args:
            period: seconds from one line to the next.
        """
        self._period = period

    def before_train(self) -> None:
        """Start the clock."""
        self._start = self._last = time.monotonic()

    def after_step(self) -> None:
        """Print a line if it is time, and one after the last step."""
        now = time.monotonic()
        done = self.trainer.iter + 1 - self.trainer.start_iter
        left = self.trainer.max_iter - self.trainer.iter - 1
        if left > 0 and now - self._last < self._period:
            return
        self._last = now
        loss = self.trainer.storage.history("total_loss").median(20)
        seconds_left = (now - self._start) / done * left
        print(
            f"  step {self.trainer.iter + 1:>5}/{self.trainer.max_iter}   loss {loss:6.3f}   "
            f"{_minutes(now - self._start)} gone, {_minutes(seconds_left)} left",
            flush=True,
        )


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
