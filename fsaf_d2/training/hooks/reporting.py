"""What is written behind an evaluation."""

from __future__ import annotations

from detectron2.engine import HookBase
from detectron2.utils import comm

from ...evaluation import keep_report


class KeepReport(HookBase):
    """Writes ``report.html`` anew behind each evaluation during training."""

    def __init__(self, period: int, output_dir: str) -> None:
        """
        Args:
            period: steps from one evaluation to the next; 0 for none.
        """
        self._period = period
        self._output_dir = output_dir

    def after_step(self) -> None:
        """Write it if it is time; behind the last step the trainer does, with its advice."""
        step = self.trainer.iter + 1
        is_due = self._period > 0 and step % self._period == 0 and step < self.trainer.max_iter
        if is_due and comm.is_main_process():
            keep_report(self._output_dir)
