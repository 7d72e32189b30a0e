"""detectron2's own RetinaNet, FCOS and GeneralizedRCNN behind the contract of this project."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from .contract import DetectorContract, LossTerm, Traits, keep_modes

# In evaluation they go on working as such while the losses are computed.
_WITH_MODES = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def traits_of_detectron2(known: object, cfg: CfgNode) -> Traits | None:
    """What is known of a class of detectron2 with a config; None of other classes."""
    if not isinstance(known, type):
        return None
    if issubclass(known, GeneralizedRCNN):
        heads = cfg.MODEL.ROI_HEADS
        return _traits_of_rcnn(heads.NUM_CLASSES, heads.SCORE_THRESH_TEST)
    if issubclass(known, (RetinaNet, FCOS)):
        retinanet = cfg.MODEL.RETINANET
        return _traits_of_dense(known, retinanet.NUM_CLASSES, retinanet.SCORE_THRESH_TEST)
    return None


def adapt(model: nn.Module) -> DetectorContract | None:
    """Put a model of detectron2 behind the contract; None for others."""
    if isinstance(model, GeneralizedRCNN):
        return AdaptedRCNN(model)
    if isinstance(model, (RetinaNet, FCOS)):
        return AdaptedDense(model)
    return None


def _traits_of_rcnn(num_classes: int, score_threshold: float | None) -> Traits:
    return Traits(
        num_classes=num_classes,
        class_keys=("MODEL.ROI_HEADS.NUM_CLASSES",),
        score_threshold=score_threshold,
        section="MODEL.ROI_HEADS",
        anchor_levels_key="MODEL.RPN.IN_FEATURES",
    )


def _traits_of_dense(known: type, num_classes: int, score_threshold: float) -> Traits:
    losses = ("loss_cls", "loss_box_reg")
    if issubclass(known, FCOS):
        losses = ("loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr")
    return Traits(
        num_classes=num_classes,
        class_keys=("MODEL.RETINANET.NUM_CLASSES",),
        score_threshold=score_threshold,
        loss_names=losses,
        section="MODEL.RETINANET",
    )


class _Adapted(DetectorContract):
    """A model of detectron2 whose losses are those of its own forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def name(self) -> str:
        return f"detectron2's {type(self.model).__name__}"

    @torch.no_grad()
    def loss_terms(self, batched_inputs: list[dict]) -> dict[str, LossTerm]:
        with _computing_losses(self.model), EventStorage():
            return self._terms(batched_inputs)

    def _terms(self, batched_inputs: list[dict]) -> dict[str, LossTerm]:
        raise NotImplementedError


class AdaptedDense(_Adapted):
    """detectron2's RetinaNet or FCOS."""

    @property
    def traits(self) -> Traits:
        model = self.model
        return _traits_of_dense(type(model), model.num_classes, model.test_score_thresh)

    def observed(self) -> dict[str, nn.Module]:
        return {"head": self.model.head}

    def compiled(self) -> list[nn.Module]:
        return [self.model.backbone, self.model.head]

    def extra_state(self) -> dict[str, float | Tensor]:
        # The running mean of the positives, which is a plain attribute.
        value = self.model.__dict__.get("loss_normalizer")
        return {} if value is None else {"loss_normalizer": value}

    def load_extra_state(self, state: Mapping[str, float | Tensor]) -> None:
        if "loss_normalizer" in state:
            self.model.loss_normalizer = state["loss_normalizer"]
        else:
            self.model.__dict__.pop("loss_normalizer", None)

    def _terms(self, batched_inputs: list[dict]) -> dict[str, LossTerm]:
        # A running mean of the positives divides the losses. Beginning at 0, it is a known part of
        # this batch's own number, which gives the sums back.
        model = self.model
        before = model.__dict__.get("loss_normalizer")
        model.loss_normalizer = 0.0
        try:
            losses = model(batched_inputs)
            normalizer = model.loss_normalizer
        finally:
            if before is None:
                del model.loss_normalizer
            else:
                model.loss_normalizer = before
        count = torch.as_tensor(float(normalizer) / (1 - 0.9))
        return {name: LossTerm(loss * normalizer, count) for name, loss in losses.items()}


class AdaptedRCNN(_Adapted):
    """detectron2's GeneralizedRCNN, with whatever proposals and RoI heads."""

    @property
    def traits(self) -> Traits:
        # Each kind of heads keeps its threshold elsewhere.
        return _traits_of_rcnn(self.model.roi_heads.num_classes, None)

    def observed(self) -> dict[str, nn.Module]:
        parts = self.model.proposal_generator, self.model.roi_heads
        found = {}
        for part in (x for x in parts if x is not None):
            for name, module in part.named_children():
                if list(module.parameters()):
                    found[name] = module
        return found

    def compiled(self) -> list[nn.Module]:
        return [self.model.backbone]

    def _terms(self, batched_inputs: list[dict]) -> dict[str, LossTerm]:
        # Proposals and RoIs are sampled: always the same ones, whatever else is drawn.
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)
            losses = self.model(batched_inputs)
        count = torch.tensor(float(len(batched_inputs)))
        return {name: LossTerm(loss * count.item(), count) for name, loss in losses.items()}


@contextlib.contextmanager
def _computing_losses(model: nn.Module) -> Iterator[None]:
    """Have a model's forward pass give its losses, with batch norm and dropout as in evaluation."""
    with keep_modes(model):
        model.train()
        for module in model.modules():
            if isinstance(module, _WITH_MODES):
                module.training = False
        yield
