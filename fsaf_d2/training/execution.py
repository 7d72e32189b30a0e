"""How a model is run in training: deterministically, in several processes, in bfloat16."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.engine import defaults
from torch import nn


def be_deterministic(cfg: CfgNode) -> None:
    """Have torch run the same way every time, or raise where it cannot.

    Raises:
        ValueError: there is no ``SEED``.
    """
    if cfg.SEED < 0:
        raise ValueError("DETERMINISTIC needs a SEED of 0 or more, such as SEED 1.")
    # cuBLAS reads it when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


@contextlib.contextmanager
def ddp_for(device: str) -> Iterator[None]:
    """Have detectron2 wrap models of this device for several processes.

    It gives DistributedDataParallel the number of a GPU, which is refused for a model on the CPU.
    """
    original = defaults.create_ddp_model
    if not device.startswith("cuda"):
        defaults.create_ddp_model = functools.partial(original, device_ids=None)
    try:
        yield
    finally:
        defaults.create_ddp_model = original


def train_in_bfloat16(model: nn.Module) -> None:
    """Put the forward pass under autocast while the model trains; evaluation stays in float32."""
    forward = model.forward

    @functools.wraps(forward)
    def wrapped(batched_inputs: list[dict]) -> dict | list[dict]:
        if not model.training:
            return forward(batched_inputs)
        with torch.autocast(model.device.type, torch.bfloat16):
            return forward(batched_inputs)

    model.forward = wrapped
