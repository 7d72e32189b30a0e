"""One sentence on what to do next, where a training has not led far."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from detectron2.utils import comm

from ..commands.calls import call
from ..visualization.training_curves import read_metrics
from .run_settings import RunSettings

FILE = "advice.txt"
# Below either of them there is something to say; AP in percent.
LOW_SCORE, LOW_AP = 0.3, 10.0
# Fewer passes over the data than this are few, and as many are advised at least.
FEW_EPOCHS, ENOUGH_EPOCHS = 3, 12
FEW_LOSSES = 10
# Of a diagnosis that has found what would restore AP, which no number of steps will.
MISTAKE = "it would be"
# The loss falls if the mean of its last fifth is so much below that of the fifth before.
FALLS_BY = 0.05
# The validation loss rises if its last value is so much above its least one.
RISES_BY = 0.15


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a run that has ended."""

    steps: int
    steps_per_epoch: float
    max_score: float | None = None
    """The highest score of the last evaluation, 0 to 1."""
    ap: float | None = None
    """AP of the last evaluation, in percent."""
    losses: Sequence[float] = ()
    """The total loss over the run, in equal distances."""
    validation_losses: Sequence[tuple[int, float]] = ()
    """Steps and total losses of the evaluations."""
    diagnosis: str | None = None
    """What the last evaluation says of an AP that is close to 0."""


def advise(facts: Facts) -> str | None:
    """Say what to do next.

    Returns:
        a sentence or two; None if scores and losses are as they should be.
    """
    low = _low(facts)
    fall = _fall(facts.losses)
    # Of a few values one cannot say that they no longer fall.
    few = facts.steps < FEW_EPOCHS * facts.steps_per_epoch or len(facts.losses) < FEW_LOSSES
    steps = f"{facts.steps:,} steps"
    short = few or fall > FALLS_BY
    if facts.diagnosis and (MISTAKE in facts.diagnosis or not (low and short)):
        return facts.diagnosis
    if low and short:
        still = f", and the loss still falls ({100 * fall:.0f} % lately)" if fall > FALLS_BY else ""
        enough = max(2 * facts.steps, ENOUGH_EPOCHS * facts.steps_per_epoch)
        return (
            f"{low} after {steps}: under-trained{still}; one epoch is "
            f"{_count(facts.steps_per_epoch)}. Train longer: SOLVER.MAX_ITER {_round_up(enough)}."
        )
    if rise := _rise(facts.validation_losses):
        step, share = rise
        return (
            f"The validation loss has risen by {100 * share:.0f} % since step {step:,} of "
            f"{facts.steps:,}: over-fitted. Take model_best.pth, and train on more images or for "
            "fewer steps."
        )
    if low:
        epochs = facts.steps / facts.steps_per_epoch
        return (
            f"{low} after {steps} ({epochs:.0f} epochs), and the loss no longer falls: more steps "
            f"will not help. Check the annotations ({call('check')}), then try another "
            "SOLVER.BASE_LR or a larger INPUT.MIN_SIZE_TRAIN."
        )
    return None


def _low(facts: Facts) -> str:
    """What is low, "" if nothing is."""
    if facts.max_score is not None and facts.max_score < LOW_SCORE:
        return f"Highest score {facts.max_score:.2f}"
    if facts.ap is not None and facts.ap < LOW_AP:
        return f"AP {facts.ap:.1f}"
    return ""


def _fall(losses: Sequence[float]) -> float:
    """By which share of it the loss has fallen in the last fifth of the run."""
    fifth = len(losses) // 5
    if fifth < 1:
        return 0.0
    before, last = fmean(losses[-2 * fifth : -fifth]), fmean(losses[-fifth:])
    return 1 - last / before if before > 0 else 0.0


def _rise(points: Sequence[tuple[int, float]]) -> tuple[int, float] | None:
    """Since when and by which share the validation loss has risen, if it clearly has.

    Three evaluations at least are needed, the least loss two or more before the last.
    """
    points = [point for point in points if math.isfinite(point[1])]
    if len(points) < 3:
        return None
    place = min(range(len(points)), key=lambda i: points[i][1])
    least, last = points[place][1], points[-1][1]
    if len(points) - place < 3 or least <= 0 or last < least * (1 + RISES_BY):
        return None
    return points[place][0], last / least - 1


def _count(steps: float) -> str:
    return f"{steps:,.0f} steps" if steps >= 10 else f"{steps:.1f} steps"


def _round_up(steps: float) -> int:
    """Two digits that count."""
    unit = 10 ** max(math.floor(math.log10(max(steps, 1))) - 1, 0)
    return math.ceil(steps / unit) * unit


def read_facts(settings: RunSettings, *, steps: int, num_images: int) -> Facts:
    """Collect the facts from the files of a run.

    Args:
        settings: of the run.
        steps: that were done.
        num_images: of an epoch.
    """
    datasets, folder = settings.datasets, Path(settings.output_dir)
    report: dict = {}
    if datasets and settings.reports[0].is_file():
        report = json.loads(settings.reports[0].read_text(encoding="utf-8"))
    try:
        records = read_metrics(folder / "metrics.json")
    except FileNotFoundError:
        records = []
    prefix = f"{datasets[0]}/" if len(datasets) > 1 else ""
    validation, ap = f"{prefix}validation/total_loss", f"{prefix}bbox/AP"
    logged = [record[ap] for record in records if ap in record]
    return Facts(
        steps=steps,
        steps_per_epoch=num_images / settings.batch_size,
        max_score=report.get("max_score"),
        # NaN is detectron2's AP where nothing is found.
        ap=None if not logged else 0.0 if math.isnan(logged[-1]) else logged[-1],
        losses=[x["total_loss"] for x in records if "total_loss" in x],
        # The last evaluation is logged one iteration later than the last step.
        validation_losses=[
            (min(x["iteration"] + 1, steps), x[validation]) for x in records if validation in x
        ],
        diagnosis=report.get("diagnosis"),
    )


def write_advice(settings: RunSettings, *, steps: int, num_images: int) -> str | None:
    """Write what to do next to ``OUTPUT_DIR/advice.txt``, and return it, in the main process.

    Where there is nothing to say, the file of a former run is removed. For the arguments see
    :func:`read_facts`.
    """
    if not comm.is_main_process():
        return None
    advice = advise(read_facts(settings, steps=steps, num_images=num_images))
    file = Path(settings.output_dir) / FILE
    if advice is None:
        file.unlink(missing_ok=True)
    else:
        file.write_text(f"{settings.in_its_words(advice)}\n", encoding="utf-8")
    return advice
