"""The wall between the models and whoever uses them: what a detector tells of itself and can do.

Training, evaluation, prediction and export ask a detector through this file alone and know none by
name. :class:`fsaf_d2.detectors.one_stage.OneStageDetector` keeps the contract itself;
:mod:`fsaf_d2.detectors.adapters` keeps it for detectron2's own models.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..assignment.coverage import LocationCounts
    from ..assignment.grid import Grid
    from ..assignment.objects import Objects
    from ..inference.candidates import Candidates
    from ..inference.suppression import Suppression

# The detections of all branches together, in what a detector gives for an image; those of a branch
# alone are under its name and this ending.
ALL_BRANCHES = "instances"
BRANCH_ENDING = "_branch"


class LossTerm(NamedTuple):
    """A loss: weight * the sum of totals over processes / the sum of counts, at least the least."""

    total: Tensor  # scalar
    count: Tensor  # scalar, what the total is divided by, such as the number of positives
    weight: float = 1.0
    least: float = 1.0

    def value(self) -> float:
        """The loss of this process alone."""
        return self.weight * self.total.item() / max(float(self.count), self.least)


@dataclasses.dataclass(frozen=True)
class Traits:
    """What is known of a detector from its config.

    Attributes:
        num_classes: K; None if it is not known.
        class_keys: the config keys that hold K; all of them must be set to it.
        score_threshold: the score below which nothing is given; None if there is none.
        level_names: of the levels that detections name by ``pred_levels``, the finest first; empty
            if they do not.
        branch_names: of the branches that detections name by ``pred_branches``; empty if they do
            not.
        loss_names: of the losses of training; empty if they are not known.
        section: the part of the config, such as ``MODEL.RETINANET``, that the detector reads.
        anchor_levels_key: the config key that names the feature maps which have anchors.
        step_keys: config keys that count steps of training.
        notes: sentences on what the config, as it is, will not do.
        count_locations: counts, for objects on a grid in so many images, the locations that answer
            for them; None if that is not known beforehand.
    """

    num_classes: int | None = None
    class_keys: tuple[str, ...] = ()
    score_threshold: float | None = None
    level_names: tuple[str, ...] = ()
    branch_names: tuple[str, ...] = ()
    loss_names: tuple[str, ...] = ()
    section: str = ""
    anchor_levels_key: str = "MODEL.RETINANET.IN_FEATURES"
    step_keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    count_locations: Callable[[Objects, Grid, int], LocationCounts] | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Under which names an evaluation has figures: all branches, and each if there are more."""
        alone = self.branch_names if len(self.branch_names) > 1 else ()
        return (ALL_BRANCHES, *(f"{name}{BRANCH_ENDING}" for name in alone))


class DetectorContract(abc.ABC):
    """What a detector does for those who train, evaluate, use and export it.

    What it does not offer is left out of tables and images, or refused in the sentence that
    :meth:`lacks` gives.

    Attributes:
        suppression: what turns candidates into detections; None if it cannot be used by itself.
    """

    suppression: Suppression | None = None

    @property
    @abc.abstractmethod
    def traits(self) -> Traits:
        """What is known of it."""

    @abc.abstractmethod
    def loss_terms(self, batched_inputs: list[dict]) -> dict[str, LossTerm]:
        """Compute the losses of annotated images, and change nothing.

        Layers such as batch norm work as in evaluation, whatever mode the model is in, and other
        processes have no part in it.

        Args:
            batched_inputs: as for training.

        Returns:
            by the names that the losses have in training.
        """

    @abc.abstractmethod
    def observed(self) -> dict[str, nn.Module]:
        """The modules whose outputs tell most of a step that is not finite, by name."""

    @abc.abstractmethod
    def compiled(self) -> Sequence[nn.Module]:
        """The parts that torch.compile is for."""

    def at_step(self, step: int) -> None:  # noqa: B027
        """Take note that a step of training begins, which are counted from 0.

        Schedules follow it. Without it a detector is as behind the last step.
        """

    def counts(self) -> Mapping[str, Tensor]:
        """What the last training step of this process has counted, for the log; scalars."""
        return {}

    def extra_state(self) -> dict[str, float | Tensor]:
        """What a training goes on with that is neither a parameter nor a buffer, by name."""
        return {}

    def load_extra_state(self, state: Mapping[str, float | Tensor]) -> None:  # noqa: B027
        """Restore what :meth:`extra_state` gave."""

    def detect_each_branch(self, wanted: bool) -> bool:
        """Also give, or no longer, what each branch finds alone; what it was before."""
        return False

    def candidates(self, images: Tensor, image_sizes: Tensor) -> list[Candidates]:
        """Detect up to the suppression, in operations that can be traced.

        Args:
            images: (N, C, H, W), normalised and padded.
            image_sizes: (N, 2), height and width.

        Raises:
            ValueError: it cannot.
        """
        raise ValueError(f"{self.name} cannot be exported: {self.lacks('suppression')}")

    @property
    def name(self) -> str:
        """Of its class, for messages."""
        return type(self).__name__

    def lacks(self, what: str) -> str:
        """Say that it does not offer something, as the end of a sentence about it."""
        return f"it has no {what} that this project can reach."


def traits_of(cfg: CfgNode) -> Traits:
    """What is known of the detector that a config describes; next to nothing of strangers."""
    from .adapters import traits_of_detectron2

    name = cfg.MODEL.META_ARCHITECTURE
    known = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    if hasattr(known, "traits_from_config"):
        return known.traits_from_config(cfg)
    return traits_of_detectron2(known, cfg) or Traits()


def contract_of(model: nn.Module) -> DetectorContract | None:
    """The contract of a model, wrapped for several processes or not; None of a stranger."""
    from .adapters import adapt

    model = getattr(model, "module", model)
    return model if isinstance(model, DetectorContract) else adapt(model)


@contextlib.contextmanager
def keep_modes(model: nn.Module) -> Iterator[None]:
    """Whatever the body sets to training or evaluation, all modules are as before after it."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def each_branch(model: nn.Module) -> Iterator[None]:
    """Have detectors of several branches also tell what each of them finds alone.

    In the body, what they give for an image holds, beside ``instances``, the detections of each
    branch under its name and ``_branch``, as the same weights give them in a model without the
    others. All come from one pass through the network; what is added is suppression. Other models
    give what they always do.
    """
    contracts = [module for module in model.modules() if isinstance(module, DetectorContract)]
    before = [contract.detect_each_branch(True) for contract in contracts]
    try:
        yield
    finally:
        for contract, value in zip(contracts, before):
            contract.detect_each_branch(value)
