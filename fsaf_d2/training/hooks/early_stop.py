"""The end of a run that no longer gets better."""

from __future__ import annotations

import logging
from collections.abc import Callable

from detectron2.engine import HookBase

from ...texts import SHOWN
from .periodic_evaluation import Evaluation

_logger = logging.getLogger("detectron2.fsaf_d2.training")


class EndOfTraining(BaseException):
    """The run is over before its last step.

    No Exception, which detectron2 would log as a failure.
    """


class EarlyStop(HookBase):
    """Ends a run that :class:`Evaluation` says is over, in all processes; the last of the hooks."""

    def __init__(self, evaluation: Evaluation, save_final: Callable[[], None]) -> None:
        """
        Args:
            save_final: saves the last checkpoint, in all processes.
        """
        self._evaluation = evaluation
        self._save_final = save_final

    def before_train(self) -> None:
        """End a resumed run before its first step if it was over, or is after catching up."""
        if self._evaluation.is_over and self.trainer.start_iter < self.trainer.max_iter:
            self.trainer.storage.iter = self.trainer.iter = self.trainer.start_iter - 1
            self._end()

    def after_step(self) -> None:
        """End the run, unless it ends by itself."""
        if self._evaluation.is_over and self.trainer.iter + 1 < self.trainer.max_iter:
            self._end()

    def _end(self) -> None:
        self._save_final()
        _logger.info(
            f"Stopped early behind step {self.trainer.iter + 1}: {self._evaluation.reason()}.",
            extra=SHOWN,
        )
        raise EndOfTraining
