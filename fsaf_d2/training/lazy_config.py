"""Reading configs in Python, which are code that is run."""

from __future__ import annotations

import builtins

import torch
from detectron2.config import LazyConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from ..commands.calls import call
from ..config_names import find_config

_PARTS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")
# Of ``train``, where a file does not have them: as in train_net.py's configs, see
# fsaf_d2/config_defaults.py.
DEFAULTS = {
    "best_metric": "bbox/AP",
    "patience": 0,
    "loss": True,
    "samples": 6,
    "level_lens": 50,
    "non_finite": {"action": "stop", "max_times": 5},
    "ema_decay": 0.0,
}
# What the keys of train_net.py's configs, in messages, are called here.
WORDS = {
    "SOLVER.NON_FINITE.ACTION": "train.non_finite.action",
    "SOLVER.NON_FINITE.MAX_TIMES": "train.non_finite.max_times",
    "SOLVER.NON_FINITE": "train.non_finite",
    "SOLVER.EMA_DECAY": "train.ema_decay",
    "SOLVER.MAX_ITER": "train.max_iter",
    "SOLVER.BASE_LR": "optimizer.lr",
    "TEST.BEST_METRIC": "train.best_metric",
    "TEST.PATIENCE": "train.patience",
    "TEST.EVAL_PERIOD": "train.eval_period",
    "DATASETS.TEST": "dataloader.test",
    "MODEL.WEIGHTS": "train.init_checkpoint",
    "OUTPUT_DIR": "train.output_dir",
    "INPUT.MIN_SIZE_TRAIN": "the sizes of dataloader.train.mapper.augmentations",
}


class ConfigError(ValueError):
    """A Python config names weights, data or arguments of a model that are not there."""


def load_lazy_config(config_file: str, overrides: list[str]) -> DictConfig:
    """Run a Python config and apply ``key=value`` overrides.

    The file, and those that it imports, may do whatever Python can do. Without a GPU,
    ``train.device`` becomes "cpu". ``train`` gets what it lacks of :data:`DEFAULTS`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no Python file, lacks a part, or has a key that is wrong.
    """
    if not config_file.endswith(".py"):
        raise ValueError(
            f"--config-file '{config_file}' is no Python config, such as "
            f"configs/lazy/fsaf_R_50_FPN_1x.py; '{call('train')}' takes YAML."
        )
    config_file = find_config(config_file, ".py")
    wrong = [word for word in overrides if "=" not in word]
    if wrong:
        raise ValueError(
            f"Overrides of a Python config are written key=value, as in train.max_iter=100, unlike "
            f"'{wrong[0]}'."
        )
    importing = builtins.__import__
    try:
        cfg = LazyConfig.load(config_file)
    except (ImportError, SyntaxError, AssertionError) as error:
        raise ValueError(
            f"Config file '{config_file}' cannot be run ({type(error).__name__}: {error})."
        ) from error
    finally:
        # Where a config fails, detectron2 leaves its own in place.
        builtins.__import__ = importing
    if isinstance(cfg.get("train"), DictConfig):
        cfg.train = OmegaConf.merge(DEFAULTS, cfg.train)
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
