"""Evaluation in a run: when it is due, and which one is the best."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence

from detectron2.engine import hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from ...texts import SHOWN
from ..checkpoints import BEST, RunCheckpointer
from ..metrics import lower_is_better, may_be, of_datasets, unknown_metric

_logger = logging.getLogger("detectron2.fsaf_d2.training")


class Evaluation(hooks.EvalHook):
    """Evaluates every ``period`` steps, also where a run was killed in between, and keeps the best.

    The best checkpoint by ``metric`` is ``model_best``, which stays whatever else is removed. A
    complete run that is resumed is not evaluated once more.
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[], dict | None],
        checkpointer: RunCheckpointer,
        *,
        metric: str = "bbox/AP",
        patience: int = 0,
        datasets: Sequence[str] = (),
        known_metrics: Sequence[str] | None = None,
        save_final: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            evaluate: gives, in the main process, metrics in nested dicts.
            metric: by its name in the log; of several data sets the first one's, or with the data
                set's name before it. What has "loss" in its name is better if lower.
            patience: after so many evaluations without a better value the run is over; 0: never.
                Those before the first that is neither NaN nor 0 do not count.
            datasets: that are evaluated.
            known_metrics: all that ``evaluate`` may give of a data set, see
                :func:`..metrics.metric_names`; None if it is not known.
            save_final: saves the last checkpoint once more, behind the last evaluation, in all
                processes.

        Raises:
            ValueError: the metric is unknown, or there is nothing to be patient about.
        """
        results: dict = {}

        def evaluate_and_keep() -> dict | None:
            results.clear()
            found = evaluate()
            results.update(flatten_results_dict(found) if found else {})
            return found

        super().__init__(period, evaluate_and_keep)
        self._results = results
        self._checkpointer = checkpointer
        self._metric = metric
        self._sign = -1 if lower_is_better(metric) else 1
        self._patience = patience
        self._datasets = list(datasets)
        known = None if known_metrics is None else of_datasets(known_metrics, self._datasets)
        self._known = known
        self._save_final = save_final
        self._state = {"evaluated_steps": 0, "metric": metric, **_nothing_yet(self._sign)}
        self._require_possible()

    def _require_possible(self) -> None:
        if self._patience < 0:
            raise ValueError(f"TEST.PATIENCE must be 0 or more, not {self._patience}.")
        if self._patience and not (self._period > 0 and self._datasets):
            raise ValueError(
                f"TEST.PATIENCE {self._patience} counts evaluations during training: set "
                "TEST.EVAL_PERIOD to a number of steps and DATASETS.TEST to what is evaluated."
            )
        if self._known is None or not self._datasets:
            return
        if not may_be(self._metric, self._known):
            raise ValueError(unknown_metric(self._metric, self._known))

    @property
    def is_over(self) -> bool:
        """Whether the run shall end for lack of improvement; the same in all processes."""
        return 0 < self._patience <= self._state["without_improvement"]

    def reason(self) -> str:
        """Why it is over."""
        best, step = self._state["best"], self._state["best_step"]
        kept = f"its best is {best:.4g}, behind step {step} ({BEST}.pth)" if step else "it had none"
        return (
            f"{self._metric} has not improved in {self._state['without_improvement']} evaluations; "
            f"{kept}. TEST.PATIENCE {self._patience} ends the run: raise it and --resume to go on, "
            "or set it to 0"
        )

    def catch_up(self) -> None:
        """Evaluate behind the last step of a resumed run if that was missed."""
        step = self.trainer.start_iter
        due = self._period > 0 and step > 0 and step % self._period == 0
        if due and step < self.trainer.max_iter and self._state["evaluated_steps"] < step:
            self.trainer.storage.iter = self.trainer.iter = step - 1
            self._do_eval()
            self.trainer.storage.iter = self.trainer.iter = step

    def after_train(self) -> None:
        """Evaluate a complete run; unlike detectron2's, none that failed in its last step."""
        if self.trainer.iter >= self.trainer.max_iter:
            self._do_eval()
        # It refers to the trainer.
        del self._func

    def _do_eval(self) -> None:
        step = min(self.trainer.iter + 1, self.trainer.max_iter)
        if self._state["evaluated_steps"] >= step:
            _logger.info(
                f"Step {step} was evaluated before the run was resumed; --eval-only does so again."
            )
            return
        super()._do_eval()
        self._state["evaluated_steps"] = step
        error = ""
        if comm.is_main_process():
            error = self._judge(step) if self._period > 0 else ""
            _logger.info(self._line(step), extra=SHOWN)
        # The main process alone knows the results.
        error, self._state = comm.all_gather((error, self._state))[0]
        if error:
            raise ValueError(error)
        if step >= self.trainer.max_iter and self._save_final and self._datasets:
            self._save_final()

    def best(self) -> str:
        """Say which checkpoint is the best; "" where none was."""
        step = self._state["best_step"]
        if not step:
            return ""
        file = f"{self._checkpointer.save_dir}/{BEST}.pth"
        return f"Best {self._metric} {self._state['best']:.4g}, behind step {step}: {file}"

    def _line(self, step: int) -> str:
        """The figures of an evaluation in a line, those of the whole detector last."""
        figures = [f"{name} {_said(value)}" for name, value in _main_figures(self._results)]
        line = f"Evaluated behind step {step}: {', '.join(figures) or 'nothing to compare with'}"
        return f"{line}{'; the best so far' * (self._state['best_step'] == step)}."

    def _judge(self, step: int) -> str:
        """Keep the model if it is the best; the error if the metric is unknown."""
        value = self._results.get(self._metric)
        if value is None and len(self._datasets) > 1:
            value = self._results.get(f"{self._datasets[0]}/{self._metric}")
        if value is None and self._results and self._metric not in (self._known or ()):
            return unknown_metric(self._metric, list(self._results))
        # detectron2 gives NaN, or nothing, where nothing at all is found.
        value = math.nan if value is None else float(value)
        if self._sign * value > self._sign * self._state["best"]:
            self._state.update(best=value, best_step=step, without_improvement=0)
            # What needs the other processes, such as random states, is left as it was.
            self._checkpointer.save(
                BEST, tag=False, iteration=step - 1, **self.trainer.description()
            )
        elif self._datasets and self._found_something:
            self._state["without_improvement"] += 1
        return ""

    @property
    def _found_something(self) -> bool:
        """Whether there has been a value to improve on: an AP of 0 is where every run begins."""
        return math.isfinite(self._state["best"]) and self._state["best"] != 0

    def state_dict(self) -> dict:
        """What a resumed run needs."""
        return dict(self._state)

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore what :meth:`state_dict` gave; the best by another metric is forgotten."""
        self._state.update(state_dict)
        if self._state["metric"] != self._metric:
            _logger.info(
                f"TEST.BEST_METRIC is now {self._metric}: the best by {self._state['metric']} no "
                "longer counts."
            )
            self._state.update(metric=self._metric, **_nothing_yet(self._sign))


def _said(value: float) -> str:
    # detectron2 gives NaN where nothing at all is found.
    return "none" if math.isnan(value) else f"{value:.1f}"


def _main_figures(results: Mapping[str, float]) -> list[tuple[str, float]]:
    """AP of each branch alone, and AP and AP50 of the whole detector, by what they are called."""
    alone = [
        (f"AP of {name.removesuffix('/AP').replace('_branch', ' alone')}", value)
        for name, value in results.items()
        if name.endswith("_branch/AP")
    ]
    whole = [
        (name.replace("bbox/", ""), value)
        for name, value in results.items()
        if name.endswith(("bbox/AP", "bbox/AP50"))
    ]
    return [*alone, *whole]


def _nothing_yet(sign: int) -> dict:
    return {"best": -sign * math.inf, "best_step": 0, "without_improvement": 0}
