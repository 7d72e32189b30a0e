"""Hooks that tell how fast a run is, and what it waits for."""

from __future__ import annotations

import logging
import time

from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage

# Within detectron2's, so that its handlers show it.
_logger = logging.getLogger("detectron2.fsaf_d2.training")
# A share of the step that is worth telling, see data_share.
_MUCH_WAITING = 0.2


def data_share(storage: EventStorage, window: int = 20) -> float | None:
    """The share of training steps that was spent waiting for the data loader.

    It is the sum of ``data_time`` over the sum of ``time``, both as detectron2 records them, in
    seconds by the host's clock. ``data_time`` is how long a step waited for its batch (with
    several processes, the one that waited longest). ``time`` is the whole step: that wait,
    forward, backward and optimizer, but not the hooks after it, such as evaluation. The first two
    steps of a run, among them the start of the loader's workers, have no ``time`` and do not count.

    Args:
        storage: of a running training.
        window: so many of the last steps count.

    Returns:
        0 to 1; None if no step has both times.
    """
    histories = storage.histories()
    if "time" not in histories or "data_time" not in histories:
        return None
    steps = {step: seconds for seconds, step in histories["time"].values()[-window:]}
    waits = [
        (wait, steps[step])
        for wait, step in histories["data_time"].values()[-window:]
        if step in steps
    ]
    if not waits:
        return None
    return min(sum(wait for wait, _ in waits) / sum(seconds for _, seconds in waits), 1.0)


class DataShare(HookBase):
    """Logs :func:`data_share` and records it as the scalar ``data_share``.

    It belongs between detectron2's IterationTimer, which times a step, and its PeriodicWriter.
    """

    def __init__(self, period: int = 20) -> None:
        """
        Args:
            period: steps from one line to the next, and the steps that each is about.
        """
        self._period = period

    def after_step(self) -> None:
        """Log and record at the end of a period, and after the last step."""
        step = self.trainer.iter + 1
        if step % self._period and step != self.trainer.max_iter:
            return
        share = data_share(self.trainer.storage, self._period)
        # Only the main process knows how long the others waited.
        if share is not None:
            self.trainer.storage.put_scalar("data_share", share, smoothing_hint=False)
            _logger.info(f"data: {100 * share:.0f} % of the step")


class ProgressLine(HookBase):
    """Prints a line with step, loss and time left every few seconds, in place of the full log.

    Where the steps spend more than a fifth of their time waiting for data, it says so.
    """

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
        share = data_share(self.trainer.storage) or 0.0
        waiting = f"   {100 * share:.0f} % of it for data: raise DATALOADER.NUM_WORKERS"
        print(
            f"  step {self.trainer.iter + 1:>5}/{self.trainer.max_iter}   loss {loss:6.3f}   "
            f"{_minutes(now - self._start)} gone, {_minutes(seconds_left)} left"
            f"{waiting if share > _MUCH_WAITING else ''}",
            flush=True,
        )


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
