"""Training and evaluation of what a LazyConfig describes, without a yacs config.

What is described must have detectron2's names (``tools/lazyconfig_train_net.py`` there): ``model``,
``dataloader`` with ``train``, ``test`` and ``evaluator``, ``optimizer``, ``lr_multiplier`` and
``train``. What ``train`` may have beside detectron2's keys is in
:data:`.lazy_config.DEFAULTS`.
"""

from __future__ import annotations

import argparse
import contextlib
import weakref
from collections.abc import Iterator

import torch
from detectron2.config import instantiate
from detectron2.engine import (
    AMPTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    default_writers,
    hooks,
)
from detectron2.engine import defaults as engine
from detectron2.evaluation import inference_on_dataset
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from fvcore.common.param_scheduler import ParamScheduler
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader

from ..detectors.contract import Traits, contract_of, each_branch
from ..evaluation import BoxEvaluator, keep_report
from ..weights.checkpointer import load_weights
from .checkpoints import RunCheckpointer
from .examination import EvaluationSet
from .execution import ddp_for
from .guarded_run import GuardedRun
from .lazy_config import WORDS, ConfigError, load_lazy_config
from .lazy_parts import (
    TrainingData,
    build_evaluator,
    build_part,
    evaluation_sets_of_lazy,
    is_called,
    labelled_mapper_of,
    settings_of_lazy,
)
from .run_settings import in_words
from .terminal import set_up
from .validation import labelled_loader

__all__ = ["ConfigError", "LazyTrainer", "evaluate", "load_lazy_config", "run"]


def run(cfg: DictConfig, args: argparse.Namespace) -> dict | None:
    """Run one process: train, or evaluate if ``args.eval_only``.

    Returns:
        the last evaluation's results, in the main process.

    Raises:
        ConfigError: weights, data or arguments of a model are not there, or a setting is wrong.
        OSError, FloatingPointError: as :meth:`.guarded_run.GuardedRun.train`.
    """
    set_up(cfg, args)
    try:
        model = instantiate(cfg.model).to(cfg.train.device)
    except TypeError as error:
        raise ConfigError(f"The config's model cannot be built: {error}.") from error
    if cfg.train.get("channels_last", False):
        model = model.to(memory_format=torch.channels_last)
    if args.eval_only:
        with _in_words_of_lazy():
            checkpointer = RunCheckpointer(model, cfg.train.output_dir)
            load_weights(
                checkpointer,
                cfg.train.init_checkpoint,
                resume=args.resume,
                complete=True,
                key=WORDS["MODEL.WEIGHTS"],
            )
        results = evaluate(cfg, model)
        if comm.is_main_process():
            keep_report(cfg.train.output_dir)
        return results
    with _in_words_of_lazy():
        trainer = LazyTrainer(cfg, model)
        trainer.resume_or_load(resume=args.resume)
    return trainer.train()


@contextlib.contextmanager
def _in_words_of_lazy() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ConfigError(in_words(str(error), WORDS)) from error


def evaluate(cfg: DictConfig, model: nn.Module) -> dict | None:
    """Evaluate a model on ``cfg.dataloader.test``, each branch alone too."""
    loader = build_part(cfg.dataloader.test)
    contract = contract_of(model)
    traits = contract.traits if contract else Traits()
    evaluator = build_evaluator(cfg.dataloader.evaluator, traits)
    with each_branch(model):
        results = inference_on_dataset(model, loader, evaluator)
    return results or None


class _Loop(TrainerBase):
    """detectron2's loop, called as DefaultTrainer's is."""

    def train(self) -> None:
        super().train(self.start_iter, self.max_iter)


class LazyTrainer(GuardedRun, _Loop):
    """A run of what a Python config describes; the same as train_net.py's but for the data's state.

    Its data begin anew, with another seed, where a run goes on.
    """

    def __init__(self, cfg: DictConfig, model: nn.Module) -> None:
        """
        Args:
            cfg: what to train with.
            model: in the memory of its device.

        Raises:
            ConfigError: data are not there.
            ValueError: a setting is out of its range.
        """
        super().__init__()
        self.lazy_cfg = cfg
        self.settings = settings_of_lazy(cfg)
        self.max_iter = cfg.train.max_iter
        model.train()
        cfg.optimizer.params.model = model
        optimizer = instantiate(cfg.optimizer)
        with ddp_for(cfg.train.device):
            wrapped = engine.create_ddp_model(model, **cfg.train.ddp)
        trainer_type = AMPTrainer if cfg.train.amp.enabled else SimpleTrainer
        self._trainer = trainer_type(wrapped, TrainingData(cfg.dataloader.train), optimizer)
        self.scheduler = instantiate(cfg.lr_multiplier)
        if isinstance(self.scheduler, ParamScheduler):
            self.scheduler = LRMultiplier(optimizer, self.scheduler, self.max_iter)
        self.checkpointer = RunCheckpointer(
            model, cfg.train.output_dir, trainer=weakref.proxy(self)
        )
        self.register_hooks(self.build_hooks())
        self.build_guard()

    @property
    def model(self) -> nn.Module:
        """Wrapped for several processes, if there are."""
        return self._trainer.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """That of the steps."""
        return self._trainer.optimizer

    @property
    def data_loader(self) -> TrainingData:
        """That of the steps."""
        return self._trainer.data_loader

    def build_hooks(self) -> list[HookBase]:
        """Build the hooks, as for train_net.py."""
        own: list[HookBase] = [hooks.IterationTimer(), hooks.LRScheduler()]
        if comm.is_main_process():
            writers = default_writers(self.settings.output_dir, self.max_iter)
            own.append(hooks.PeriodicWriter(writers, period=self.settings.log_period))
        is_ours = is_called(self.lazy_cfg.dataloader.evaluator, BoxEvaluator)
        return self.hooks_around(own, metrics_are_ours=is_ours)

    def traits(self) -> Traits:
        """What is known of the detector."""
        contract = contract_of(self.model)
        return contract.traits if contract else Traits()

    def evaluate_model(self) -> dict:
        """Metrics of the model as it is, in nested dicts, in the main process."""
        return evaluate(self.lazy_cfg, self.model) or {}

    def evaluation_sets(self) -> dict[str, EvaluationSet]:
        """That of ``dataloader.test``."""
        return evaluation_sets_of_lazy(self.lazy_cfg, self.settings)

    def lens_loader(self, count: int) -> DataLoader:
        """Some annotated training images, always the same, of this process."""
        test = self.lazy_cfg.dataloader.test
        records = self.data_loader.spread_records(count)
        return labelled_loader(records, labelled_mapper_of(test), test.get("num_workers", 0))

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore what :meth:`state_dict` gave, or a run of version 0.1."""
        if "_trainer" not in state_dict and "optimizer" in state_dict:
            own = ("iteration", "optimizer", "grad_scaler")
            of_step = {name: state_dict[name] for name in own if name in state_dict}
            state_dict = {**state_dict, "_trainer": of_step}
        super().load_state_dict(state_dict)
