"""Tables and an image of what accuracy.py found."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from accuracy_resampling import interval_over_images
from accuracy_rows import ROWS
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import t as student_t
from tabulate import tabulate

OVERALL = ("AP", "AP50", "AP75", "APs", "APm", "APl")
BRANCHES = {"anchor_branch": "anchor branch", "point_branch": "anchor-free branch"}


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The mean of a sample and the confidence interval of the mean, by Student's t.

    Args:
        values: independent, roughly normal.
        confidence: that the interval holds the true mean, in (0, 1).

    Returns:
        mean, lower and upper end; the ends are infinite for a single value.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, -math.inf, math.inf
    quantile = student_t.ppf((1 + confidence) / 2, len(values) - 1)
    half = float(quantile) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def paired_differences(
    records: Iterable[dict], row: str, baseline: str, metric: str, task: str = "bbox"
) -> list[float]:
    """The differences of a row to the baseline, one for each seed that both have."""
    of_row, of_baseline = (_by_seed(records, name, metric, task) for name in (row, baseline))
    return [of_row[seed] - of_baseline[seed] for seed in of_row if seed in of_baseline]


def _by_seed(records: Iterable[dict], row: str, metric: str, task: str) -> dict[int, float]:
    """Seed to metric, for runs that have it."""
    values = {
        record["seed"]: record["metrics"].get(task, {}).get(metric)
        for record in records
        if record["row"] == row
    }
    return {seed: value for seed, value in sorted(values.items()) if value is not None}


def report(
    records: Sequence[dict],
    rows: Sequence[str],
    baseline: str,
    resampled: Mapping[tuple[str, int], np.ndarray] | None = None,
) -> str:
    """All tables, in GitHub's format.

    Args:
        records: of the results file, one for each run.
        rows: in the order of the tables; those without a run are left out.
        baseline: the row that the others are compared with.
        resampled: row and seed to AP of resampled test images, see
            :func:`accuracy_resampling.resampled_ap`, where the differences are to have their
            interval over images too.
    """
    rows = [row for row in rows if any(record["row"] == row for record in records)]
    metrics = records[0]["metrics"]["bbox"]
    classes = [name for name in metrics if name.startswith("AP-")]
    parts = [
        _settings(records),
        "AP by row: mean ± standard deviation over the seeds. In brackets: the paper's AP "
        "(COCO, R-50).\n\n" + _means(records, rows),
    ]
    if baseline in rows and len(rows) > 1:
        parts.append(
            f"Difference to {ROWS[baseline].about} with the same seed: mean [95 % confidence "
            "interval, Student's t]; in the last column the interval of the mean of these seeds "
            "over test images (bootstrap).\n\n"
            + _differences(records, rows, baseline, resampled or {})
        )
    if 1 < len(classes) <= 10:
        parts.append("AP by class, mean over the seeds.\n\n" + _classes(records, rows, classes))
    if branches := _branches(records, rows):
        parts.append("AP of each branch alone, mean ± standard deviation.\n\n" + branches)
    if levels := _levels(records, rows):
        parts.append(
            "Level that objects selected in the last fifth of training, % of the objects of the "
            "logged batches.\n\n" + levels
        )
    if flips := _flips(records, rows):
        parts.append(
            "Objects that select another level than at the evaluation before, % in the last fifth "
            "of training, mean ± standard deviation.\n\n" + flips
        )
    return "\n\n".join(parts)


def _settings(records: Sequence[dict]) -> str:
    def all_of(key: str) -> str:
        return ", ".join(sorted({str(record[key]) for record in records}))

    return (
        f"{all_of('data')}: {all_of('steps')} steps of {all_of('batch')} images, "
        f"{all_of('threads')} thread(s) a run, {all_of('device')}, torch {all_of('torch')}, "
        f"commit {all_of('commit')}, {all_of('date')}"
    )


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return tabulate(lines, headers=header, tablefmt="github", disable_numparse=True)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _means(records: Sequence[dict], rows: Sequence[str]) -> str:
    lines = []
    for row in rows:
        runs = [record for record in records if record["row"] == row]
        paper = f" [{ROWS[row].paper}]" if ROWS[row].paper else ""
        values = [
            _spread(list(_by_seed(records, row, metric, "bbox").values())) for metric in OVERALL
        ]
        minutes = [run["minutes"] for run in runs if run["minutes"] is not None]
        spent = f"{statistics.fmean(minutes):.1f}" if minutes else "-"
        lines.append([ROWS[row].about + paper, str(len(runs)), *values, spent])
    return _table(["row", "seeds", *OVERALL, "minutes"], lines)


def _differences(
    records: Sequence[dict],
    rows: Sequence[str],
    baseline: str,
    resampled: Mapping[tuple[str, int], np.ndarray],
) -> str:
    lines = []
    for row in rows:
        if row == baseline:
            continue
        cells, pairs = [], 0
        for metric in OVERALL:
            values = paired_differences(records, row, baseline, metric)
            pairs = max(pairs, len(values))
            cells.append(_with_interval(values))
        seeds = [set(_by_seed(records, name, "AP", "bbox")) for name in (row, baseline)]
        over_images = interval_over_images(resampled, row, baseline, set.intersection(*seeds))
        cells.append("[{:+.1f}, {:+.1f}]".format(*over_images) if over_images else "-")
        lines.append([ROWS[row].about, str(pairs), *cells])
    return _table(["row", "pairs", *OVERALL, "AP over images"], lines)


def _with_interval(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean, low, high = interval(values)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" if math.isfinite(low) else f"{mean:+.1f}"


def _classes(records: Sequence[dict], rows: Sequence[str], classes: Sequence[str]) -> str:
    lines = []
    for row in rows:
        values = [list(_by_seed(records, row, name, "bbox").values()) for name in classes]
        lines.append(
            [ROWS[row].about, *(f"{statistics.fmean(v):.1f}" if v else "-" for v in values)]
        )
    return _table(["row", *(name.removeprefix("AP-") for name in classes)], lines)


def _branches(records: Sequence[dict], rows: Sequence[str]) -> str:
    lines = [
        [f"{ROWS[row].about}: {name}", *(_spread(cell) for cell in cells)]
        for row in rows
        for task, name in BRANCHES.items()
        if any(cells := [list(_by_seed(records, row, m, task).values()) for m in OVERALL])
    ]
    return _table(["row", *OVERALL], lines) if lines else ""


def _levels(records: Sequence[dict], rows: Sequence[str]) -> str:
    lines, names = [], []
    for row in rows:
        runs = [record for record in records if record["row"] == row]
        totals: dict[str, int] = {}
        for run in runs:
            for name, objects in run["late_levels"].items():
                totals[name] = totals.get(name, 0) + objects
        if objects := sum(totals.values()):
            names = list(totals)
            shares = [f"{100 * value / objects:.1f}" for value in totals.values()]
            lines.append([ROWS[row].about, str(objects), *shares])
    return _table(["row", "objects", *(name.upper() for name in names)], lines) if lines else ""


def _flips(records: Sequence[dict], rows: Sequence[str]) -> str:
    rates: dict[str, list[float]] = {row: [] for row in rows}
    for record in records:
        if "flip_rate" in record.get("late_lens", {}):
            rates[record["row"]].append(100 * record["late_lens"]["flip_rate"])
    lines = [[ROWS[row].about, _spread(values)] for row, values in rates.items() if values]
    return _table(["row", "changed"], lines) if lines else ""


def draw(records: Sequence[dict], rows: Sequence[str], baseline: str, path: Path) -> None:
    """Draw AP and AP50 of every run, and the paired differences with their intervals.

    Args:
        records: of the results file, one for each run.
        rows: from top to bottom.
        baseline: the row that the others are compared with.
        path: of the image.
    """
    rows = [row for row in rows if any(record["row"] == row for record in records)]
    figure = Figure(figsize=(11, 1.3 + 0.5 * len(rows)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3, sharey=True)
    for axis, metric in zip(axes, ("AP", "AP50")):
        _draw_runs(axis, records, rows, metric)
    _draw_differences(axes[2], records, rows, baseline)
    axes[0].set_yticks(range(len(rows)), [ROWS[row].about for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    for axis in axes:
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)
        axis.locator_params(axis="x", nbins=5)
    figure.supxlabel(_settings(records), fontsize=8, color="0.35")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_runs(axis: Axes, records: Sequence[dict], rows: Sequence[str], metric: str) -> None:
    for place, row in enumerate(rows):
        values = list(_by_seed(records, row, metric, "bbox").values())
        if values:
            axis.plot(values, [place] * len(values), "o", color="#56B4E9", markersize=5)
            axis.plot(statistics.fmean(values), place, "|", color="black", ms=14, mew=2)
    axis.set_title(f"{metric}: runs and mean", fontsize=10)


def _draw_differences(
    axis: Axes, records: Sequence[dict], rows: Sequence[str], baseline: str
) -> None:
    axis.axvline(0, color="black", linewidth=1)
    for place, row in enumerate(rows):
        values = paired_differences(records, row, baseline, "AP")
        if row == baseline or not values:
            continue
        mean, low, high = interval(values)
        axis.plot(values, [place] * len(values), "o", color="#56B4E9", markersize=5)
        if math.isfinite(low):
            axis.errorbar(
                mean, place, xerr=[[mean - low], [high - mean]], fmt="|", color="black",
                ms=10, capsize=4,
            )  # fmt: skip
    axis.set_title(f"AP less that of {ROWS[baseline].about}:\nruns, mean, 95 %", fontsize=10)
