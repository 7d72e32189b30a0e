"""detectron2's default trainer with what every run of this project needs."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
from collections.abc import Iterable, Iterator

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, defaults
from detectron2.evaluation import COCOEvaluator
from detectron2.solver import build_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn
from torch.utils.data import DataLoader

from ..data.mapper import build_mapper
from .hooks import DataShare
from .setup import load_weights


class Trainer(DefaultTrainer):
    """DefaultTrainer with COCO evaluation, AdamW beside SGD, the optimizer in its checkpoints."""

    def __init__(self, cfg: CfgNode) -> None:
        """Build what ``cfg`` describes, on the CPU with several processes too.

        Raises:
            ValueError: as :meth:`build_optimizer`.
        """
        with _ddp_for(cfg.MODEL.DEVICE):
            super().__init__(cfg)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model as ``MODEL.CHANNELS_LAST``, ``COMPILE`` and ``SOLVER.BFLOAT16`` ask for.

        Raises:
            ValueError: a model is to be compiled but there is no compiler, or to be trained in two
                kinds of mixed precision.
        """
        if cfg.MODEL.COMPILE and not shutil.which(compiler := os.environ.get("CXX", "g++")):
            raise ValueError(
                f"MODEL.COMPILE needs a C++ compiler, but {compiler!r} is not found: install one, "
                "name it in the environment variable CXX, or set the key to False."
            )
        if cfg.SOLVER.BFLOAT16 and cfg.SOLVER.AMP.ENABLED:
            raise ValueError("SOLVER.BFLOAT16 and SOLVER.AMP.ENABLED exclude each other.")
        model = super().build_model(cfg)
        if cfg.MODEL.CHANNELS_LAST:
            model = model.to(memory_format=torch.channels_last)
        if cfg.MODEL.COMPILE:
            # In place, so that the weights keep their names in checkpoints.
            model.backbone.compile()
            model.head.compile()
        if cfg.SOLVER.BFLOAT16:
            _train_in_bfloat16(model)
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
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict]]:
        """Build detectron2's loader with this project's mapper."""
        return build_detection_train_loader(cfg, mapper=build_mapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """Build detectron2's loader of one data set with this project's mapper."""
        return build_detection_test_loader(
            cfg, dataset_name, mapper=build_mapper(cfg, is_train=False)
        )

    def build_hooks(self) -> list[HookBase | None]:
        """Build detectron2's hooks and, behind its timer, which comes first, DataShare."""
        timer, *others = super().build_hooks()
        return [timer, DataShare(), *others]

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        """Build the COCO box evaluator; its files go to ``OUTPUT_DIR/inference/<data set>``."""
        return COCOEvaluator(
            dataset_name,
            tasks=("bbox",),
            output_dir=os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name),
            max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
            # The fast evaluation is one of the compiled operators, which need not be there.
            use_fast_impl=importlib.util.find_spec("detectron2._C") is not None,
        )

    def resume_or_load(self, resume: bool = True) -> None:
        """Load ``MODEL.WEIGHTS``, or go on from the last checkpoint if one is there and ``resume``.

        Raises:
            ValueError: the file cannot be fetched or read.
        """
        load_weights(self.checkpointer, self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1

    def state_dict(self) -> dict:
        """Everything a resumed run needs; detectron2 0.6 leaves the optimizer out."""
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

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


@contextlib.contextmanager
def _ddp_for(device: str) -> Iterator[None]:
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


def _train_in_bfloat16(model: nn.Module) -> None:
    """Put the forward pass under autocast while the model trains; evaluation stays in float32."""
    forward = model.forward

    @functools.wraps(forward)
    def wrapped(batched_inputs: list[dict]) -> dict | list[dict]:
        if not model.training:
            return forward(batched_inputs)
        with torch.autocast(model.device.type, torch.bfloat16):
            return forward(batched_inputs)

    model.forward = wrapped
