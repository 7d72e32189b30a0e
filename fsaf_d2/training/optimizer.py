"""The optimizers that ``SOLVER.OPTIMIZER`` names."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn


def build_named_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that ``SOLVER.OPTIMIZER`` names, ``SOLVER.FUSED`` or not.

    Raises:
        ValueError: the name is unknown, or ``SOLVER.BACKBONE_LR_FACTOR`` is for a backbone that has
            no pyramid.
    """
    optimizer = _build_plain(cfg, model)
    if cfg.SOLVER.BACKBONE_LR_FACTOR != 1:
        _scale_backbone(optimizer, model, cfg.SOLVER.BACKBONE_LR_FACTOR)
    if cfg.SOLVER.FUSED:
        # Not by argument: a GradScaler would then leave it to the optimizer to unscale the
        # gradients, behind detectron2's clipping.
        for group in optimizer.param_groups:
            group.update(fused=True, foreach=False)
    return optimizer


def _scale_backbone(optimizer: torch.optim.Optimizer, model: nn.Module, factor: float) -> None:
    """Give the parameters of the network below the pyramid a share of the learning rate."""
    bottom_up = getattr(getattr(model, "backbone", None), "bottom_up", None)
    if bottom_up is None:
        raise ValueError(
            f"SOLVER.BACKBONE_LR_FACTOR {factor} is for a network below a pyramid, which this "
            "model's backbone has not: set it to 1.0."
        )
    inside = set(bottom_up.parameters())
    groups = []
    for group in optimizer.param_groups:
        parts = [
            [x for x in group["params"] if (x in inside) is wanted] for wanted in (False, True)
        ]
        for params, rate in zip(parts, (group["lr"], group["lr"] * factor)):
            groups += [{**group, "params": params, "lr": rate}] if params else []
    optimizer.param_groups[:] = groups


def _build_plain(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
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
