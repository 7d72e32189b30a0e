"""What makes a training a run that can be broken off, looked at, and is never spoilt."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.utils.data import DataLoader

from ..config import differences
from ..data.loading.stream import WaitBrokenOff
from ..detectors.contract import Traits, contract_of
from ..evaluation import keep_report
from ..texts import SHOWN
from ..weights.atomic_writing import raise_if_unwritable
from ..weights.checkpointer import load_weights
from ..weights.layouts import Conversion, to_current_names
from .advice import write_advice
from .checkpoints import RunCheckpointer, versions
from .ema import MovingAverage
from .examination import EvaluationSet, Examination, for_tensorboard
from .hooks.builder import hooks_of_run
from .hooks.early_stop import EndOfTraining
from .hooks.level_lens_hook import LevelLens
from .hooks.periodic_evaluation import Evaluation
from .hooks.saving import StopOnSignal
from .metrics import metric_names
from .non_finite import NonFinite, NonFiniteGuard, RollBack
from .random_state import random_state, set_random_state
from .run_settings import RunSettings
from .spoken import closing_lines, opening_lines
from .terminal import no_traceback_on_the_terminal

_logger = logging.getLogger("detectron2.fsaf_d2.training")


# Keys of what an optimizer's state has, which a resumed run takes from its checkpoint.
_SAVED_KEYS = (
    *("SOLVER.BASE_LR", "SOLVER.BIAS_LR_FACTOR", "SOLVER.MOMENTUM", "SOLVER.NESTEROV"),
    *("SOLVER.WEIGHT_DECAY", "SOLVER.BACKBONE_LR_FACTOR"),
)


class GuardedRun:
    """Is mixed into a trainer of detectron2's, before it, whatever kind of config describes it.

    The trainer has ``settings``, ``checkpointer``, ``scheduler`` and, behind ``_trainer``, what
    runs a step; its ``data_loader`` has ``last_batch``, ``num_images``, a state, ``break_off`` and
    ``close``. It calls :meth:`build_guard` once all that is built.
    """

    settings: RunSettings
    checkpointer: RunCheckpointer
    stop_on_signal: StopOnSignal

    def evaluation_sets(self) -> Mapping[str, EvaluationSet]:
        """What is looked at in evaluations beside their metrics, by the names of data sets."""
        raise NotImplementedError

    def traits(self) -> Traits:
        """What is known of the detector."""
        raise NotImplementedError

    def lens_loader(self, count: int) -> DataLoader:
        """Some annotated training images, always the same, of this process."""
        raise NotImplementedError

    def evaluate_model(self) -> dict | None:
        """Metrics of the model as it is, in nested dicts, in the main process."""
        raise NotImplementedError

    def build_guard(self) -> None:
        """Build what a step passes through.

        Raises:
            ValueError: a setting is out of its range.
        """
        settings, model = self.settings, self.checkpointer.model
        self._contract = contract_of(model)
        self._guard = NonFiniteGuard(
            model,
            self.optimizer,
            action=settings.non_finite,
            max_times=settings.max_non_finite,
            folder=settings.output_dir,
            config=settings.config,
        )
        if settings.ema_decay:
            self.checkpointer.average = MovingAverage(model, settings.ema_decay)
        self._random_states = [random_state()]
        self._halvings = 0
        self._thresholds: dict[str, float] = {}
        self._last_eval_results: dict = {}

    def hooks_around(
        self, own: Iterable[HookBase | None], *, metrics_are_ours: bool
    ) -> list[HookBase]:
        """The hooks of the run, see :func:`.hooks.builder.hooks_of_run`.

        Args:
            own: detectron2's.
            metrics_are_ours: whether the evaluation gives this project's metrics.
        """
        settings, model = self.settings, self.checkpointer.model
        self._examination = Examination(
            model,
            self.evaluation_sets(),
            folder=Path(settings.output_dir) / "samples",
            num_samples=settings.samples,
        )
        self._lens = None
        if settings.level_lens > 0 and LevelLens.fits(model):
            loader = self.lens_loader(settings.level_lens)
            self._lens = LevelLens(model, loader, settings.output_dir)
        known = None
        if metrics_are_ours:
            known = metric_names(self.traits(), settings.class_names, losses=settings.losses)
        return hooks_of_run(self, own, known_metrics=known, lens=self._lens)

    def evaluate(self) -> dict | None:
        """Evaluate the model, with the average of the weights if there is one, and look closer."""
        average, step = self.checkpointer.average, min(self.iter + 1, self.max_iter)
        with average.applied() if average else contextlib.nullcontext():
            results = self.evaluate_model()
            self._examine(self._examination, results, step)
        if self._lens:
            self._lens.observe(step)
        self._last_eval_results = results
        return results

    def _examine(self, examination: Examination, results: dict, step: int) -> None:
        """Add losses to the results, which the main process has; note thresholds, draw images."""
        losses = examination.losses() if self.settings.losses else {}
        if not comm.is_main_process():
            return
        for name, values in losses.items():
            target = results if len(losses) == 1 else results.setdefault(name, {})
            if values:
                target["validation"] = values
        self._thresholds = examination.thresholds()
        image = examination.draw(step, self._thresholds)
        if image is not None:
            self.storage.put_image("samples", for_tensorboard(image))

    def train(self) -> dict | None:
        """Train to the end; the results of the last evaluation, in the main process.

        Raises:
            NonFinite: a step was not finite, see ``SOLVER.NON_FINITE``.
            OSError: images cannot be read, or ``OUTPUT_DIR`` cannot be written to.
            SystemExit: with code 75, after SIGTERM or SIGINT; the run is saved.
        """
        if comm.is_main_process():
            _show(opening_lines(self))
        try:
            self._train_to_the_end()
        except OSError as error:
            raise_if_unwritable(self.settings.output_dir, error)
            raise
        finally:
            self.data_loader.close()
        settings, steps = self.settings, min(self.iter + 1, self.max_iter)
        advice = write_advice(settings, steps=steps, num_images=self.data_loader.num_images)
        if comm.is_main_process():
            if settings.datasets:
                keep_report(settings.output_dir)
            _show(closing_lines(self))
        if advice:
            _logger.info(settings.in_its_words(advice), extra=SHOWN)
        return self._last_eval_results or None

    def _train_to_the_end(self) -> None:
        while True:
            try:
                with no_traceback_on_the_terminal():
                    return super().train()
            except RollBack as error:
                self._roll_back(error.__cause__)
            except EndOfTraining:
                return None

    def best_checkpoint(self) -> str:
        """A sentence on the best checkpoint, if evaluations have chosen one; else ""."""
        found = (hook.best() for hook in self._hooks if isinstance(hook, Evaluation))
        return next(found, "")

    def after_train(self) -> None:
        """Run the hooks; a run that was complete when it was resumed ends at the same step."""
        self.iter = min(self.iter, self.max_iter)
        super().after_train()

    def run_step(self) -> None:
        """Run a step, and keep what is not finite out of the weights."""
        self._trainer.iter = self.iter
        try:
            updated = self._guard.run(
                self._trainer.run_step, lambda: self.data_loader.last_batch, self.iter
            )
        except WaitBrokenOff:
            self.stop_on_signal.end_before_step()
        if updated and self.checkpointer.average:
            self.checkpointer.average.update()

    def _roll_back(self, error: BaseException | None) -> None:
        """Go back to the last checkpoint, and halve the learning rate once for every time."""
        if not self.checkpointer.has_checkpoint():
            raise NonFinite(f"{error} There is no checkpoint to roll back to.")
        times = self._guard.times
        self._hooks = []
        self.register_hooks(self.build_hooks())
        self.resume_or_load(resume=True)
        factor = 0.5 ** (times - self._halvings)
        self._guard.times = self._halvings = times
        self.scheduler.base_lrs = [rate * factor for rate in self.scheduler.base_lrs]
        for group in self.optimizer.param_groups:
            group["lr"] *= factor

    def gather_random_states(self) -> None:
        """Collect the random state of every process, for the checkpoint that is saved next."""
        own = random_state()
        self._random_states = comm.all_gather(own) if comm.get_world_size() > 1 else [own]

    def description(self) -> dict:
        """What a checkpoint says about its run: config, classes, input format, versions.

        ``category_ids`` are those of the data set's file, in the order of ``class_names``.
        ``thresholds`` are the scores from which on each class had the best F1 in the last
        evaluation, by name; there are none before it. A Python config is not in it.
        """
        settings = self.settings
        return {
            **({"config": settings.config} if settings.config else {}),
            "class_names": settings.class_names,
            "category_ids": settings.category_ids,
            "input_format": settings.input_format,
            "thresholds": dict(self._thresholds),
            "versions": versions(),
        }

    def resume_or_load(self, resume: bool = True) -> None:
        """Load ``MODEL.WEIGHTS``, or go on from the newest whole checkpoint if ``resume``.

        Raises:
            ValueError: the file cannot be fetched or read, there is none to go on from, or it has
                done more than ``SOLVER.MAX_ITER`` steps.
        """
        settings, checkpointer = self.settings, self.checkpointer
        if resume and not checkpointer.has_checkpoint():
            raise ValueError(
                f"There is no whole checkpoint to resume from in '{settings.output_dir}': leave "
                "--resume out to begin, or set OUTPUT_DIR to the run's folder."
            )
        rest = load_weights(
            checkpointer,
            settings.weights,
            resume=resume,
            cfg=getattr(self, "cfg", None),
            key=settings.weights_key,
        )
        if resume:
            self._go_on(rest)
        elif checkpointer.average:
            checkpointer.average.load_state_dict(checkpointer.model.state_dict())

    def _go_on(self, rest: dict) -> None:
        """Begin behind the checkpoint that was loaded, and say so."""
        self.start_iter = self.iter + 1
        file = self.checkpointer.get_checkpoint_file()
        if self.start_iter > self.max_iter:
            raise ValueError(
                f"'{file}' has done {self.start_iter} steps, more than SOLVER.MAX_ITER "
                f"{self.max_iter}: raise it to go on, or evaluate the checkpoint with --eval-only."
            )
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        _logger.info(
            f"Resuming '{file}': {self.start_iter} of {self.max_iter} steps are done, learning "
            f"rate {rate:g}.",
            extra=SHOWN,
        )
        for line in differences(rest.get("config", ""), self.settings.config):
            end = ", without effect: the optimizer goes on as saved" * line.startswith(_SAVED_KEYS)
            _logger.info(f"Unlike the saved run: {line}{end}", extra=SHOWN)

    def state_dict(self) -> dict:
        """Everything a resumed run needs; detectron2 0.6 leaves the optimizer out."""
        state = {
            **super().state_dict(),
            "_trainer": self._trainer.state_dict(),
            "data": self.data_loader.state_dict(),
            "detector": self._contract.extra_state() if self._contract else {},
            "random": self._random_states,
            "thresholds": dict(self._thresholds),
            "non_finite": {"times": self._guard.times, "halvings": self._halvings},
        }
        if self.checkpointer.average:
            state["model"] = self.checkpointer.model.state_dict()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            ValueError: the optimizer is missing, as in checkpoints of detectron2 0.6 itself.
        """
        if "_trainer" not in state_dict:
            raise ValueError(
                "The checkpoint to resume from holds no optimizer, as detectron2 0.6 writes them. "
                "Start from its weights instead: MODEL.WEIGHTS, without --resume."
            )
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])
        if "data" in state_dict:
            self.data_loader.load_state_dict(state_dict["data"])
            self._guard.times = state_dict["non_finite"]["times"]
            self._halvings = state_dict["non_finite"]["halvings"]
            states = state_dict["random"]
            set_random_state(states[comm.get_rank() % len(states)])
            self._thresholds = dict(state_dict.get("thresholds", {}))
        if self._contract and "detector" in state_dict:
            self._contract.load_extra_state(state_dict["detector"])
        model, average = self.checkpointer.model, self.checkpointer.average
        if average:
            average.load_state_dict(model.state_dict())
        if "model" in state_dict:
            own = to_current_names(Conversion(state_dict["model"], {}, None), model.state_dict())
            model.load_state_dict(own.weights)


def _show(lines: Iterable[str]) -> None:
    for line in lines:
        _logger.info(line, extra=SHOWN)
