"""From a config to a model in memory."""

from __future__ import annotations

import os
import shutil

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from .contract import contract_of


def build_detector(cfg: CfgNode) -> nn.Module:
    """Build the model as ``MODEL.CHANNELS_LAST`` and ``MODEL.COMPILE`` ask for.

    Raises:
        ValueError: the model is to be compiled but there is no compiler, or values of the config do
            not fit together.
    """
    if cfg.MODEL.COMPILE and not shutil.which(compiler := os.environ.get("CXX", "g++")):
        raise ValueError(
            f"MODEL.COMPILE needs a C++ compiler, but {compiler!r} is not found: install one, "
            "name it in the environment variable CXX, or set the key to False."
        )
    try:
        model = build_model(cfg)
    except (KeyError, IndexError, TypeError, AssertionError, RuntimeError) as error:
        # What detectron2 and torch raise for values that they cannot build of.
        raise ValueError(
            f"The config builds no model ({type(error).__name__}: {error}): a key below MODEL "
            "has a value that is not known, or that does not fit the others."
        ) from error
    if cfg.MODEL.CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)
    if cfg.MODEL.COMPILE:
        contract = contract_of(model)
        # In place, so that the weights keep their names in checkpoints.
        for part in contract.compiled() if contract else [model.backbone]:
            part.compile()
    return model
