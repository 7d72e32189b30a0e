"""The names of what an evaluation logs, of which ``TEST.BEST_METRIC`` is one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from ..detectors.contract import ALL_BRANCHES, Traits

_SIZES_AND_OVERLAPS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# Behind a slash: any name.
_ANY = "*"


def metric_names(traits: Traits, class_names: Sequence[str], *, losses: bool = True) -> list[str]:
    """What this project's evaluation logs of a data set.

    Args:
        traits: of the detector.
        class_names: of the data.
        losses: whether those of training are computed, too.

    Returns:
        the names; ``validation/*`` for a detector that does not tell its losses beforehand.
    """
    names = [f"bbox/{name}" for name in _SIZES_AND_OVERLAPS]
    # detectron2 leaves them out where a class would be all there is.
    if len(class_names) > 1:
        names += [f"bbox/AP-{name}" for name in class_names]
    alone = [part for part in traits.parts if part != ALL_BRANCHES]
    names += [f"{part}/{name}" for part in alone for name in _SIZES_AND_OVERLAPS]
    if losses:
        known = traits.loss_names or (_ANY,)
        names += [f"validation/{name}" for name in (*known, "total_loss")]
    return names


def of_datasets(names: Iterable[str], datasets: Sequence[str]) -> list[str]:
    """What may be given as the metric: of several data sets also with the data set's name."""
    prefixes = [f"{name}/" for name in datasets] if len(datasets) > 1 else []
    return [prefix + name for prefix in ("", *prefixes) for name in names]


def may_be(metric: str, known: Iterable[str]) -> bool:
    """Whether a metric is one of those that are known, or of a kind whose names are not."""
    return any(
        metric == name or (name.endswith(f"/{_ANY}") and metric.startswith(name[:-1]))
        for name in known
    )


def unknown_metric(metric: str, known: Sequence[str]) -> str:
    """Say that there is no such metric, and which there are."""
    near = difflib.get_close_matches(metric, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"TEST.BEST_METRIC {metric!r} is unknown.{hint} There are: {', '.join(known)}."


def lower_is_better(metric: str) -> bool:
    """Whether a metric is a loss, by its name."""
    return "loss" in metric.rpartition("/")[2]
