"""detectron2's default trainer with what every run of this project needs."""

from __future__ import annotations

import functools
import logging
import os
import weakref

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.evaluation import DatasetEvaluator
from torch import nn
from torch.utils.data import DataLoader

from ..data.loading.loader import TrainingLoader, build_training_loader
from ..data.loading.mapper import build_labelled_mapper, build_mapper
from ..detectors.building import build_detector
from ..detectors.contract import Traits, each_branch, traits_of
from ..evaluation import BoxEvaluator
from .checkpoints import RunCheckpointer
from .examination import EvaluationSet
from .execution import be_deterministic, ddp_for, train_in_bfloat16
from .guarded_run import GuardedRun
from .optimizer import build_named_optimizer
from .run_settings import RunSettings, evaluation_sets_of, settings_of
from .validation import labelled_loader

_logger = logging.getLogger("detectron2.fsaf_d2.training")


class Trainer(GuardedRun, DefaultTrainer):
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
        self.build_guard()

    @functools.cached_property
    def settings(self) -> RunSettings:
        """What the run does beside its steps."""
        return settings_of(self.cfg)

    def traits(self) -> Traits:
        """What is known of the detector."""
        return traits_of(self.cfg)

    def evaluation_sets(self) -> dict[str, EvaluationSet]:
        """Those of ``DATASETS.TEST``."""
        return evaluation_sets_of(self.cfg)

    def lens_loader(self, count: int) -> DataLoader:
        """Some annotated training images, always the same, of this process."""
        records = self.data_loader.spread_records(count)
        mapper = build_labelled_mapper(self.cfg)
        return labelled_loader(records, mapper, self.cfg.DATALOADER.NUM_WORKERS)

    def evaluate_model(self) -> dict:
        """Metrics of the model as it is, in nested dicts, in the main process."""
        return self.test(self.cfg, self.model)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model, see :func:`build_detector`, and train it as ``SOLVER.BFLOAT16`` asks.

        Raises:
            ValueError: as that function, or it is to be trained in two kinds of mixed precision.
        """
        if cfg.SOLVER.BFLOAT16 and cfg.SOLVER.AMP.ENABLED:
            raise ValueError("SOLVER.BFLOAT16 and SOLVER.AMP.ENABLED exclude each other.")
        model = build_detector(cfg)
        _logger.debug(f"Model:\n{model}")
        if cfg.SOLVER.BFLOAT16:
            train_in_bfloat16(model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimizer that ``SOLVER.OPTIMIZER`` names, ``SOLVER.FUSED`` or not.

        Raises:
            ValueError: the name is unknown.
        """
        return build_named_optimizer(cfg, model)

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

    def build_hooks(self) -> list[HookBase]:
        """Build detectron2's hooks, with this project's in place of some or beside them."""
        if not isinstance(self.checkpointer, RunCheckpointer):
            self.checkpointer = RunCheckpointer(
                self._trainer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
            )
        # An evaluator of somebody's own has metrics of its own.
        is_ours = type(self).build_evaluator.__func__ is Trainer.build_evaluator.__func__
        return self.hooks_around(super().build_hooks(), metrics_are_ours=is_ours)

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
        """Evaluate on ``DATASETS.TEST``, all branches together and each alone from one pass."""
        with each_branch(model):
            return super().test(cfg, model, evaluators)
