"""detectron2's default trainer with what every run of this project needs."""

from __future__ import annotations

import contextlib
import logging
import os
import weakref

import detectron2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog, build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from ..config import differences
from ..data.loader import TrainingLoader, build_training_loader
from ..data.mapper import build_mapper
from ..detectors.building import build_detector
from ..detectors.contract import contract_of, each_branch, traits_of
from ..evaluation import BoxEvaluator, keep_report
from ..weights.layouts import Conversion, to_current_names
from .advice import write_advice
from .checkpoints import (
    REMEDY,
    RunCheckpointer,
    UnwritableOutput,
    random_state,
    set_random_state,
    why_unwritable,
)
from .ema import MovingAverage
from .examination import Examination, for_tensorboard
from .execution import be_deterministic, ddp_for, train_in_bfloat16
from .hooks import DataShare, DetectorSteps, KeepReport
from .level_lens import LevelLens
from .non_finite import NonFinite, NonFiniteGuard, RollBack
from .periodic_evaluation import EarlyStop, EndOfTraining, Evaluation, metric_names
from .run_hooks import RegularWriter, SaveCheckpoints, StopOnSignal, UnbrokenLog
from .setup import load_weights
from .validation import labelled_loader

_logger = logging.getLogger("detectron2.fsaf_d2.training")


class Trainer(DefaultTrainer):
    """DefaultTrainer with COCO evaluation, AdamW beside SGD, and runs that can be broken off.

    Whatever a run depends on is in its checkpoints. With ``SEED`` and ``DETERMINISTIC`` on a CPU, a
    run that was killed and resumed ends with the same weights, bit for bit, as one that was not.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Build what ``cfg`` describes, on the CPU with several processes too.

        Raises:
            ValueError: as :meth:`build_optimizer`; a key of ``SOLVER`` is out of its range,
                ``DETERMINISTIC`` is set without ``SEED``, ``TEST.BEST_METRIC`` is unknown, or
                ``TEST.PATIENCE`` is set without evaluation during training.
        """
        if cfg.DETERMINISTIC:
            be_deterministic(cfg)
        with ddp_for(cfg.MODEL.DEVICE):
            super().__init__(cfg)
        model = self.checkpointer.model
        self._guard = NonFiniteGuard(
            model,
            self.optimizer,
            action=cfg.SOLVER.NON_FINITE.ACTION,
            max_times=cfg.SOLVER.NON_FINITE.MAX_TIMES,
            folder=cfg.OUTPUT_DIR,
            config=cfg.dump(),
        )
        if cfg.SOLVER.EMA_DECAY:
            self.checkpointer.average = MovingAverage(model, cfg.SOLVER.EMA_DECAY)
        self._random_states = [random_state()]
        self._halvings = 0
        self._thresholds: dict[str, float] = {}
        self._last_eval_results: dict = {}

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model as ``MODEL.CHANNELS_LAST``, ``COMPILE`` and ``SOLVER.BFLOAT16`` ask for.

        Raises:
            ValueError: a model is to be compiled but there is no compiler, or to be trained in two
                kinds of mixed precision, or values of the config do not fit together.
        """
        if cfg.SOLVER.BFLOAT16 and cfg.SOLVER.AMP.ENABLED:
            raise ValueError("SOLVER.BFLOAT16 and SOLVER.AMP.ENABLED exclude each other.")
        model = build_detector(cfg)
        _logger.info(f"Model:\n{model}")
        if cfg.SOLVER.BFLOAT16:
            train_in_bfloat16(model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer that ``SOLVER.OPTIMIZER`` names, ``SOLVER.FUSED`` or not.

        Raises:
            ValueError: the name is unknown.
        """
        optimizer = cls._build_plain_optimizer(cfg, model)
        if cfg.SOLVER.FUSED:
            # Not by argument: a GradScaler would then leave it to the optimizer to unscale the
            # gradients, behind detectron2's clipping.
            for group in optimizer.param_groups:
                group.update(fused=True, foreach=False)
        return optimizer

    @classmethod
    def _build_plain_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return build_optimizer(cfg, model)
        if cfg.SOLVER.OPTIMIZER != "ADAMW":
            raise ValueError(
                f"SOLVER.OPTIMIZER must be 'SGD' or 'ADAMW', not {cfg.SOLVER.OPTIMIZER!r}."
            )
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        optimizer_type = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
        return optimizer_type(params, cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainingLoader:
        """Build a loader whose batches depend on the seed and the step alone."""
        return build_training_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """Build detectron2's loader of one data set with this project's mapper."""
        return build_detection_test_loader(
            cfg, dataset_name, mapper=build_mapper(cfg, is_train=False)
        )

    def build_hooks(self) -> list[HookBase | None]:
        """Build detectron2's hooks, with this project's in place of some or beside them."""
        if not isinstance(self.checkpointer, RunCheckpointer):
            self.checkpointer = RunCheckpointer(
                self._trainer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
            )
        timer, *others = super().build_hooks()
        others = [hook for hook in others if hook is not None]
        # Of the main process alone.
        writers = [
            RegularWriter(hook._writers, self.cfg.TEST.EVAL_PERIOD)
            for hook in others
            if isinstance(hook, hooks.PeriodicWriter)
        ]
        replaced = (hooks.PeriodicCheckpointer, hooks.EvalHook, hooks.PeriodicWriter)
        saving = SaveCheckpoints(
            self.checkpointer,
            self.cfg.SOLVER.CHECKPOINT_PERIOD,
            keep=self.cfg.SOLVER.CHECKPOINTS_TO_KEEP,
        )
        evaluation = self._build_evaluation(saving)
        writer = writers[0] if writers else None
        log = UnbrokenLog(self.cfg.OUTPUT_DIR, writer, evaluation.catch_up)
        model = self.checkpointer.model
        self._examination = Examination(self.cfg, model) if contract_of(model) else None
        self._lens = self._build_level_lens()
        return [
            timer,
            DetectorSteps(contract_of(model)),
            DataShare(),
            *(hook for hook in others if not isinstance(hook, replaced)),
            self._lens,
            log,
            saving,
            evaluation,
            *writers,
            KeepReport(self.cfg.TEST.EVAL_PERIOD, self.cfg.OUTPUT_DIR),
            StopOnSignal(saving.save_now),
            EarlyStop(evaluation, saving.save_final),
        ]

    def _build_evaluation(self, saving: SaveCheckpoints) -> Evaluation:
        # An evaluator of somebody's own has metrics of its own.
        is_ours = type(self).build_evaluator.__func__ is Trainer.build_evaluator.__func__
        return Evaluation(
            self.cfg.TEST.EVAL_PERIOD,
            self._evaluate,
            self.checkpointer,
            metric=self.cfg.TEST.BEST_METRIC,
            patience=self.cfg.TEST.PATIENCE,
            datasets=self.cfg.DATASETS.TEST,
            known_metrics=metric_names(self.cfg, self._class_names()) if is_ours else None,
            save_final=saving.save_final,
        )

    def _build_level_lens(self) -> LevelLens | None:
        model, count = self.checkpointer.model, self.cfg.TEST.LEVEL_LENS
        if count < 1 or not LevelLens.fits(model):
            return None
        records = self.data_loader.spread_records(count)
        return LevelLens(model, labelled_loader(self.cfg, records), self.cfg.OUTPUT_DIR)

    def _evaluate(self) -> dict:
        """Evaluate the model, with the average of the weights if there is one, and look closer."""
        average, step = self.checkpointer.average, min(self.iter + 1, self.max_iter)
        with average.applied() if average else contextlib.nullcontext():
            results = self.test(self.cfg, self.model)
            if self._examination:
                self._examine(self._examination, results, step)
        if self._lens:
            self._lens.observe(step)
        self._last_eval_results = results
        return results

    def _examine(self, examination: Examination, results: dict, step: int) -> None:
        """Add losses to the results, which the main process has; note thresholds, draw pictures."""
        losses = examination.losses() if self.cfg.TEST.LOSS else {}
        if not comm.is_main_process():
            return
        for name, values in losses.items():
            target = results if len(losses) == 1 else results.setdefault(name, {})
            if values:
                target["validation"] = values
        self._thresholds = examination.thresholds()
        picture = examination.draw(step, self._thresholds)
        if picture is not None:
            self.storage.put_image("samples", for_tensorboard(picture))

    def train(self) -> dict | None:
        """Train to the end; the results of the last evaluation, in the main process.

        Raises:
            NonFinite: a step was not finite, see ``SOLVER.NON_FINITE``.
            OSError: pictures cannot be read, or ``OUTPUT_DIR`` cannot be written to.
            SystemExit: with code 75, after SIGTERM or SIGINT; the run is saved.
        """
        while True:
            try:
                super().train()
                break
            except RollBack as error:
                self._roll_back(error.__cause__)
            except EndOfTraining:
                break
            except OSError as error:
                # Those who write the log say neither where nor what to do.
                reason = why_unwritable(self.cfg.OUTPUT_DIR)
                if reason and not isinstance(error, UnwritableOutput):
                    raise UnwritableOutput(
                        f"Nothing can be written to OUTPUT_DIR '{self.cfg.OUTPUT_DIR}' any more "
                        f"({reason}). {REMEDY}"
                    ) from error
                raise
        advice = write_advice(
            self.cfg,
            steps=min(self.iter + 1, self.max_iter),
            num_pictures=self.data_loader.num_pictures,
        )
        if self.cfg.DATASETS.TEST and comm.is_main_process():
            keep_report(self.cfg.OUTPUT_DIR)
        if advice:
            _logger.info(advice)
        return self._last_eval_results or None

    def after_train(self) -> None:
        """Run the hooks; a run that was complete when it was resumed ends at the same step."""
        self.iter = min(self.iter, self.max_iter)
        super().after_train()

    def run_step(self) -> None:
        """Run a step, and keep what is not finite out of the weights."""
        self._trainer.iter = self.iter
        updated = self._guard.run(
            self._trainer.run_step, lambda: self.data_loader.last_batch, self.iter
        )
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
        evaluation, by name; there are none before it.
        """
        classes = self._class_names()
        names = self.cfg.DATASETS.TRAIN
        metadata = MetadataCatalog.get(names[0]) if names else Metadata()
        ids = metadata.get("thing_dataset_id_to_contiguous_id") or range(len(classes))
        modules = {"torch": torch, "detectron2": detectron2, "numpy": np}
        return {
            "config": self.cfg.dump(),
            "class_names": classes,
            "category_ids": sorted(ids, key=ids.get) if isinstance(ids, dict) else list(ids),
            "input_format": self.cfg.INPUT.FORMAT,
            "thresholds": dict(self._thresholds),
            "versions": {name: str(module.__version__) for name, module in modules.items()},
        }

    def _class_names(self) -> list[str]:
        names = self.cfg.DATASETS.TRAIN
        return list(MetadataCatalog.get(names[0]).get("thing_classes", [])) if names else []

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> BoxEvaluator:
        """Build the evaluator; its files go to ``OUTPUT_DIR/inference/<data set>``."""
        traits = traits_of(cfg)
        return BoxEvaluator(
            dataset_name,
            os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name),
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            level_names=traits.level_names,
            branch_names=traits.branch_names,
            score_thresh=traits.score_threshold,
            class_keys=traits.class_keys,
        )

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None
    ) -> dict:
        """Evaluate on ``DATASETS.TEST``, both branches together and each alone from one pass."""
        with each_branch(model):
            return super().test(cfg, model, evaluators)

    def resume_or_load(self, resume: bool = True) -> None:
        """Load ``MODEL.WEIGHTS``, or go on from the newest whole checkpoint if ``resume``.

        Raises:
            ValueError: the file cannot be fetched or read, there is none to go on from, or it has
                done more than ``SOLVER.MAX_ITER`` steps.
        """
        if resume and not self.checkpointer.has_checkpoint():
            raise ValueError(
                f"There is no whole checkpoint to resume from in '{self.cfg.OUTPUT_DIR}': leave "
                "--resume out to begin, or set OUTPUT_DIR to the run's folder."
            )
        rest = load_weights(self.checkpointer, self.cfg.MODEL.WEIGHTS, resume=resume, cfg=self.cfg)
        if resume:
            self.start_iter = self.iter + 1
            if self.start_iter > self.max_iter:
                raise ValueError(
                    f"'{self.checkpointer.get_checkpoint_file()}' has done {self.start_iter} "
                    f"steps, more than SOLVER.MAX_ITER {self.max_iter}: raise it to go on, or "
                    "evaluate the checkpoint with --eval-only."
                )
            rates = sorted({group["lr"] for group in self.optimizer.param_groups})
            _logger.info(
                f"Resuming '{self.checkpointer.get_checkpoint_file()}': {self.start_iter} of "
                f"{self.max_iter} steps are done, learning rate {max(rates):g}."
            )
            for line in differences(rest.get("config", ""), self.cfg.dump()):
                _logger.info(f"Unlike the saved run: {line}")
        elif self.checkpointer.average:
            self.checkpointer.average.load_state_dict(self.checkpointer.model.state_dict())

    def state_dict(self) -> dict:
        """Everything a resumed run needs; detectron2 0.6 leaves the optimizer out."""
        state = {
            **super().state_dict(),
            "_trainer": self._trainer.state_dict(),
            "data": self.data_loader.state_dict(),
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
        model, average = self.checkpointer.model, self.checkpointer.average
        if average:
            average.load_state_dict(model.state_dict())
        if "model" in state_dict:
            own = to_current_names(Conversion(state_dict["model"], {}, None), model.state_dict())
            model.load_state_dict(own.weights)
