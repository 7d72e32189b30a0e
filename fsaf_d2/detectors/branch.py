"""A branch: one kind of answers on the features that all branches share.

Letters: N images; M objects of the batch; L levels; R locations of one image over all levels; K
classes. Boxes are (x0, y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from detectron2.config import CfgNode
from torch import Tensor, nn

from ..assignment.coverage import LocationCounts
from ..assignment.grid import Grid
from ..assignment.objects import Objects
from ..inference.candidates import Candidates
from .contract import LossTerm, Traits

LocationCounter = Callable[[Objects, Grid, int], LocationCounts]
# The kinds of branches by the names that MODEL.BRANCHES gives them.
BRANCHES: dict[str, type[Branch]] = {}


class Branch(nn.Module, abc.ABC):
    """Layers behind the towers, the losses of what they say, and how that becomes boxes.

    A kind of branch is registered by :func:`register_branch`. Its constructor takes a config and
    the shapes of the levels, as detectron2's ``configurable`` makes it, beside explicit arguments.

    Attributes:
        loss_names: of the losses that it has, as training logs them.
        step_keys: config keys that count steps of training.
        clips_candidates: whether images in which it finds something have all boxes clipped before
            they are suppressed; RetinaNet clips behind that.
        counted: what the last call of :meth:`losses` has counted, for the log: by name, scalars, or
            (L,) numbers of the levels.
    """

    loss_names: tuple[str, ...] = ()
    step_keys: tuple[str, ...] = ()
    clips_candidates = True

    def __init__(self) -> None:
        super().__init__()
        self.counted: dict[str, Tensor] = {}

    @abc.abstractmethod
    def forward(self, class_features: list[Tensor], box_features: list[Tensor]) -> NamedTuple:
        """Predict.

        Args:
            class_features, box_features: of the towers, (N, C, H, W) of each level, finest first.

        Returns:
            a NamedTuple of lists of tensors, one tensor for each level.
        """

    @abc.abstractmethod
    def losses(self, predictions: NamedTuple, objects: Objects, grid: Grid) -> dict[str, LossTerm]:
        """Compute the losses of this process, without waiting for a GPU.

        Args:
            predictions: of :meth:`forward`, in float32.
            objects: of the batch, on the CPU.
            grid: of the levels, on the CPU.
        """

    @abc.abstractmethod
    def decode(self, predictions: NamedTuple, grid: Grid) -> list[Candidates]:
        """Decode each level, see :func:`fsaf_d2.inference.decode.decode_level`.

        Args:
            predictions: of :meth:`forward`.
            grid: of the levels, on the CPU.
        """

    def divisors(
        self, terms: Mapping[str, LossTerm], counts: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """What the losses of a training step are divided by.

        Args:
            terms: of :meth:`losses`.
            counts: of all processes together.
        """
        return {name: counts[name].clamp(min=term.least) for name, term in terms.items()}

    def at_step(self, step: int) -> None:
        """Take note that a step of training begins."""

    @classmethod
    def add_config(cls, cfg: CfgNode) -> None:
        """Add the keys that this kind of branch reads beside RetinaNet's."""

    @classmethod
    def location_counter(cls, cfg: CfgNode) -> LocationCounter | None:
        """What counts the locations of objects before anything is trained, if that can be."""
        return None

    @classmethod
    def notes(cls, cfg: CfgNode) -> list[str]:
        """Sentences on what a config, as it is, will not do."""
        return []


def register_branch(name: str) -> Callable[[type[Branch]], type[Branch]]:
    """Make a kind of branch known to ``MODEL.BRANCHES``.

    Raises:
        ValueError: the name is taken by another class.
    """

    def register(kind: type[Branch]) -> type[Branch]:
        other = BRANCHES.setdefault(name, kind)
        if (other.__module__, other.__qualname__) != (kind.__module__, kind.__qualname__):
            raise ValueError(f"There is a branch {name!r} already: {other.__qualname__}.")
        BRANCHES[name] = kind
        return kind

    return register


def kinds_of_branches(names: Sequence[str]) -> dict[str, type[Branch]]:
    """The registered kinds of some names.

    Raises:
        ValueError: there are no names, one is unknown, or one is given twice.
    """
    known = ", ".join(sorted(BRANCHES))
    if not names:
        raise ValueError(f"MODEL.BRANCHES is empty: name one or more of {known}.")
    for name in names:
        if name not in BRANCHES:
            raise ValueError(
                f"MODEL.BRANCHES has {name!r}, which is unknown: there are {known}. The file of a "
                "branch of your own is imported first: DETECTOR_BRANCHES, docs/design.md."
            )
    if len(set(names)) < len(names):
        raise ValueError(f"MODEL.BRANCHES {list(names)} names a branch twice.")
    return {name: BRANCHES[name] for name in names}


def traits_of_branches(
    num_classes: int,
    score_thresh: float,
    level_names: Sequence[str],
    branches: Mapping[str, Branch | type[Branch]],
    cfg: CfgNode | None = None,
) -> Traits:
    """What is known of a detector with such branches.

    Args:
        num_classes: K.
        score_thresh: below which nothing is given.
        level_names: of the levels, finest first.
        branches: by name, built or their classes.
        cfg: of the detector; without it, what follows from a config alone is left out.
    """
    kinds = branches.values()
    return Traits(
        num_classes=num_classes,
        class_keys=("MODEL.RETINANET.NUM_CLASSES",),
        score_threshold=score_thresh,
        level_names=tuple(level_names),
        branch_names=tuple(branches),
        loss_names=tuple(name for kind in kinds for name in kind.loss_names),
        section="MODEL.RETINANET",
        step_keys=tuple(key for kind in kinds for key in kind.step_keys),
        notes=tuple(note for kind in kinds for note in kind.notes(cfg)) if cfg else (),
        count_locations=next(filter(None, (x.location_counter(cfg) for x in kinds)), None)
        if cfg
        else None,
    )


def require_named_terms(
    branch: str, terms: Mapping[str, LossTerm], loss_names: Sequence[str]
) -> None:
    """Make sure that a branch's losses are those that it says it has.

    Raises:
        ValueError: they have other names, or are no :class:`LossTerm`.
    """
    if set(terms) != set(loss_names):
        raise ValueError(
            f"Branch {branch!r} gives the losses {list(terms)}, but its loss_names are "
            f"{list(loss_names)}: they must be the same, and those of no other branch."
        )
    for name, term in terms.items():
        if not isinstance(term, LossTerm) or not isinstance(term.count, Tensor):
            raise ValueError(
                f"Branch {branch!r} gives {name!r} as {type(term).__name__}: it must be a "
                "LossTerm(total, count) of two tensors."
            )


def require(condition: bool, key: str, allowed: str, value: object) -> None:
    """Make sure that the value of a config key is in its range.

    Raises:
        ValueError: it is not.
    """
    if not condition:
        raise ValueError(f"{key} must be {allowed}, not {value}.")


def require_positive(key: str, value: float) -> None:
    """Make sure that a value is more than 0 and finite."""
    require(0 < value < math.inf, key, "more than 0 and finite", value)


def require_weight(key: str, value: float) -> None:
    """Make sure that the weight of a loss is at least 0 and finite."""
    require(0 <= value < math.inf, key, "at least 0 and finite", value)


def in_float32(predictions: tuple) -> tuple:
    """What a branch predicts, as its losses are computed.

    Raises:
        ValueError: it is no NamedTuple.
    """
    if not hasattr(predictions, "_fields"):
        raise ValueError(
            "A branch's forward gives a NamedTuple of lists, a tensor a level in each, not a "
            f"{type(predictions).__name__}."
        )
    return type(predictions)(*([x.float() for x in levels] for levels in predictions))
