"""Training and evaluation of what a LazyConfig describes, without a yacs config.

What is described must have detectron2's names (``tools/lazyconfig_train_net.py`` there): ``model``,
``dataloader`` with ``train``, ``test`` and ``evaluator``, ``optimizer``, ``lr_multiplier`` and
``train``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import (
    AMPTrainer,
    HookBase,
    SimpleTrainer,
    default_setup,
    default_writers,
    hooks,
)
from detectron2.engine import defaults as engine
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from omegaconf import DictConfig, ListConfig
from torch import nn

from ..detectors import each_branch
from .checkpoints import RunCheckpointer
from .execution import ddp_for
from .setup import load_weights

_PARTS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")


# What names the weights in such a config.
_WEIGHTS = "train.init_checkpoint"


class ConfigError(ValueError):
    """A Python config names weights, data or arguments of a model that are not there."""


def load_lazy_config(config_file: str, overrides: list[str]) -> DictConfig:
    """Run a Python config and apply ``key=value`` overrides.

    The file, and those that it imports, may do whatever Python can do. Without a GPU,
    ``train.device`` becomes "cpu".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no Python file, lacks a part, or has a key that is wrong.
    """
    if not config_file.endswith(".py"):
        raise ValueError(
            f"--config-file '{config_file}' is no Python config, such as "
            "configs/lazy/fsaf_R_50_FPN_1x.py; train_net.py takes YAML."
        )
    if not os.path.isfile(config_file):
        raise FileNotFoundError(f"Config file '{config_file}' does not exist.")
    wrong = [word for word in overrides if "=" not in word]
    if wrong:
        raise ValueError(
            f"Overrides of a Python config are written key=value, as in train.max_iter=100, unlike "
            f"'{wrong[0]}'."
        )
    try:
        cfg = LazyConfig.load(config_file)
    except (ImportError, SyntaxError, AssertionError) as error:
        raise ValueError(
            f"Config file '{config_file}' cannot be run ({type(error).__name__}: {error})."
        ) from error
    for word in overrides:
        _require_known(cfg, word.partition("=")[0])
    try:
        cfg = LazyConfig.apply_overrides(cfg, overrides)
    except Exception as error:
        # hydra and omegaconf raise errors of types of their own.
        raise ValueError(f"An override cannot be read ({error}): write key=value.") from error
    missing = [part for part in _PARTS if part not in cfg]
    if missing:
        raise ValueError(
            f"Config file '{config_file}' does not define {', '.join(missing)}: import them from "
            "configs/lazy/common/, as configs/lazy/fsaf_R_50_FPN_1x.py does."
        )
    if cfg.train.device == "cuda" and not torch.cuda.is_available():
        cfg.train.device = "cpu"
    return cfg


def _require_known(cfg: DictConfig, key: str) -> None:
    """Make sure that a key is there, since detectron2 would add what is misspelt.

    Arguments that are left at their defaults are not in a config: those of a call may be added.
    """
    node, parts = cfg, key.split(".")
    for i, part in enumerate(parts):
        part = int(part) if part.isdigit() else part
        if not isinstance(node, (DictConfig, ListConfig)):
            raise ValueError(f"Override '{key}': '{'.'.join(parts[:i])}' has no parts.")
        known = part < len(node) if isinstance(part, int) else part in node
        is_argument = i == len(parts) - 1 and "_target_" in node
        if not known and not is_argument:
            raise ValueError(f"Override '{key}': there is no '{part}' in the config.")
        node = node[part] if known else None


def run(cfg: DictConfig, args: argparse.Namespace) -> dict | None:
    """Run one process: train, or evaluate if ``args.eval_only``.

    Returns:
        the last evaluation's results, in the main process.
    """
    default_setup(cfg, args)
    try:
        model = instantiate(cfg.model).to(cfg.train.device)
    except TypeError as error:
        raise ConfigError(f"The config's model cannot be built: {error}.") from error
    if cfg.train.get("channels_last", False):
        model = model.to(memory_format=torch.channels_last)
    if args.eval_only:
        checkpointer = RunCheckpointer(model, cfg.train.output_dir)
        _load(checkpointer, cfg, resume=args.resume, complete=True)
        return evaluate(cfg, model)
    return train(cfg, model, resume=args.resume)


def _load(
    checkpointer: RunCheckpointer, cfg: DictConfig, *, resume: bool, complete: bool = False
) -> None:
    weights = cfg.train.init_checkpoint
    try:
        load_weights(checkpointer, weights, resume=resume, complete=complete, key=_WEIGHTS)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _build_loader(part: DictConfig) -> Iterable:
    try:
        return instantiate(part)
    except FileNotFoundError as error:
        raise ConfigError(
            f"'{error.filename}' does not exist: data sets are looked for in the folder that "
            "DETECTRON2_DATASETS names, ./datasets by default."
        ) from error


def evaluate(cfg: DictConfig, model: nn.Module) -> dict | None:
    """Evaluate a model on ``cfg.dataloader.test``, each branch alone too."""
    loader = _build_loader(cfg.dataloader.test)
    evaluator = instantiate(cfg.dataloader.evaluator)
    training = model.training
    model.eval()
    with each_branch(model):
        results = inference_on_dataset(model, loader, evaluator)
    model.train(training)
    return results or None


def train(cfg: DictConfig, model: nn.Module, *, resume: bool) -> dict | None:
    """Train to the end, with detectron2's hooks and this project's checkpoints.

    Args:
        cfg: what to train with.
        model: in the memory of its device.
        resume: go on behind the newest whole checkpoint of ``cfg.train.output_dir``.

    Raises:
        ConfigError: there is none, or weights cannot be loaded.
    """
    model.train()
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    with ddp_for(cfg.train.device):
        wrapped = engine.create_ddp_model(model, **cfg.train.ddp)
    trainer_type = AMPTrainer if cfg.train.amp.enabled else SimpleTrainer
    trainer = trainer_type(wrapped, _build_loader(cfg.dataloader.train), optimizer)
    checkpointer = RunCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    results: dict = {}

    def evaluated() -> dict:
        results.clear()
        results.update(evaluate(cfg, model) or {})
        return dict(results)

    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            *_of_main_process(cfg, checkpointer),
            hooks.EvalHook(cfg.train.eval_period, evaluated),
            *_writers(cfg),
        ]
    )
    if resume and not checkpointer.has_checkpoint():
        raise ConfigError(
            f"There is no whole checkpoint to resume from in '{cfg.train.output_dir}': leave "
            "--resume out to begin, or set train.output_dir to the run's folder."
        )
    _load(checkpointer, cfg, resume=resume)
    trainer.train(trainer.iter + 1 if resume else 0, cfg.train.max_iter)
    return results or None


def _of_main_process(cfg: DictConfig, checkpointer: RunCheckpointer) -> list[HookBase]:
    if not comm.is_main_process():
        return []
    return [hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer)]


def _writers(cfg: DictConfig) -> list[HookBase]:
    if not comm.is_main_process():
        return []
    writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
    return [hooks.PeriodicWriter(writers, period=cfg.train.log_period)]
