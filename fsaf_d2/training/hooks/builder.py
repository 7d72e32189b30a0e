"""The hooks of a run, the same whatever kind of config describes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from detectron2.engine import HookBase, hooks

from ...detectors.contract import contract_of
from .detector_step import DetectorStep
from .early_stop import EarlyStop
from .level_lens_hook import LevelLens
from .periodic_evaluation import Evaluation
from .progress import DataShare
from .reporting import KeepReport
from .saving import SaveCheckpoints, StopOnSignal
from .unbroken_log import RegularWriter, UnbrokenLog

if TYPE_CHECKING:
    from ..guarded_run import GuardedRun

# detectron2's, which have counterparts here.
_REPLACED = (hooks.PeriodicCheckpointer, hooks.EvalHook, hooks.PeriodicWriter)


def hooks_of_run(
    run: GuardedRun,
    own: Iterable[HookBase | None],
    *,
    known_metrics: Sequence[str] | None,
    lens: LevelLens | None = None,
) -> list[HookBase]:
    """Put this project's hooks in place of some of detectron2's, and beside others.

    Args:
        run: whose they are.
        own: detectron2's, the one that times a step first; the writer is of the main process alone.
        known_metrics: see :class:`Evaluation`.
        lens: of the model, if it fits one.

    Raises:
        ValueError: as :class:`Evaluation`.
    """
    settings, checkpointer = run.settings, run.checkpointer
    own = [hook for hook in own if hook is not None]
    writers = [
        RegularWriter(hook._writers, settings.eval_period, settings.log_period)
        for hook in own
        if isinstance(hook, hooks.PeriodicWriter)
    ]
    saving = SaveCheckpoints(
        checkpointer, settings.checkpoint_period, keep=settings.checkpoints_to_keep
    )
    evaluation = Evaluation(
        settings.eval_period,
        run.evaluate,
        checkpointer,
        metric=settings.best_metric,
        patience=settings.patience,
        datasets=settings.datasets,
        known_metrics=known_metrics,
        save_final=saving.save_final,
    )
    stop = run.stop_on_signal = StopOnSignal(saving.save_now, run.data_loader.break_off)
    return [
        *(hook for hook in own if not isinstance(hook, _REPLACED)),
        DetectorStep(contract_of(checkpointer.model)),
        DataShare(),
        *([lens] if lens else []),
        UnbrokenLog(settings.output_dir, next(iter(writers), None), evaluation.catch_up),
        saving,
        evaluation,
        *writers,
        KeepReport(settings.eval_period, settings.output_dir),
        stop,
        EarlyStop(evaluation, saving.save_final),
    ]
