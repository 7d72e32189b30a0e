"""A plot of the losses and of the selected pyramid levels over a training."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from .detections import level_color

# Of the losses of training in the order of their names in the log; Okabe and Ito's palette.
COLORS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#999999", "#F0E442")
TOTALS = {
    "total_loss": {"color": "black", "linestyle": "solid"},
    "validation/total_loss": {"color": "black", "linestyle": "dotted", "marker": "o"},
}


def loss_names(records: Sequence[dict]) -> list[str]:
    """The losses that a log has: the total of training, its parts, and the total of validation."""
    names = dict.fromkeys(name for record in records for name in record)
    parts = [name for name in names if name.startswith("loss_")]
    total, validation = TOTALS
    return [name for name in (total, *parts, validation) if name in names]


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """Read the `metrics.json` that detectron2 writes, one JSON object a line.

    Where a resumed run repeats iterations, its values replace those of the run before, which is
    dropped from the first repeated iteration on. Lines cut off by an interruption are ignored.

    Args:
        path: the file.

    Returns:
        One record per iteration, in ascending order, each with the key "iteration".

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no metrics at {path}: detectron2 writes them during a training")
    records: dict[int, dict] = {}
    for line in Path(path).read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(record, dict) or "iteration" not in record:
            continue
        iteration = record["iteration"]
        # A value that comes late has a line of its own, without losses.
        if records and iteration < max(records) and "total_loss" in record:
            records = {key: value for key, value in records.items() if key < iteration}
        # One iteration may take two lines: losses first, an evaluation's results later.
        records[iteration] = {**records.get(iteration, {}), **record}
    return [records[iteration] for iteration in sorted(records)]


def plot_training(
    metrics_file: str | os.PathLike,
    output_file: str | os.PathLike,
    *,
    level_names: Sequence[str] = ("p3", "p4", "p5", "p6", "p7"),
    window: int = 10,
) -> None:
    """Plot the losses and, where logged, the share of objects that selected each level.

    The shares come from the scalars `num_objects_p3` and so on, the objects of one batch by
    selected level. The losses panel also marks each evaluation that logged "bbox/AP50".

    Args:
        metrics_file: detectron2's `metrics.json`.
        output_file: the image to write; its suffix gives the format, such as `.png`.
        level_names: the names of the levels, the finest first; none leaves the shares out.
        window: number of records whose objects are counted together for one share.

    Raises:
        FileNotFoundError: there is no metrics file.
        ValueError: the metrics file holds no losses.
    """
    records = read_metrics(metrics_file)
    losses = loss_names(records)
    if not losses:
        raise ValueError(f"{metrics_file} holds no losses: has the training logged a step yet?")
    iterations, shares = level_shares(records, level_names, window)
    panels = 2 if len(iterations) else 1
    figure = Figure(figsize=(8, 0.6 + 3.2 * panels), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    _plot_losses(axes[0], records, losses)
    if panels == 2:
        plot_shares(axes[1], iterations, shares, level_names)
    axes[-1].set_xlabel("iteration")
    Path(output_file).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output_file)


def level_shares(
    records: Sequence[dict], level_names: Sequence[str], window: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute which share of the objects selected each level, in a centred moving window.

    Args:
        records: what `read_metrics` returns.
        level_names: the names of the L levels.
        window: number of records whose objects are counted together.

    Returns:
        The iterations (T,) of the records that count objects, and the shares (L, T) in [0, 1],
        nan where the window holds no objects.
    """
    keys = [f"num_objects_{name}" for name in level_names]
    counted = [record for record in records if keys and all(key in record for key in keys)]
    iterations = np.array([record["iteration"] for record in counted])
    counts = np.array([[record[key] for key in keys] for record in counted], dtype=float)
    counts = counts.reshape(len(counted), len(keys)).T
    cumulative = np.pad(counts.cumsum(axis=1), ((0, 0), (1, 0)))
    places = np.arange(len(counted))
    first = np.maximum(places - (window - 1) // 2, 0)
    last = np.minimum(places + window // 2 + 1, len(counted))
    sums = cumulative[:, last] - cumulative[:, first]
    totals = sums.sum(axis=0)
    return iterations, np.divide(sums, totals, out=np.full_like(sums, np.nan), where=totals > 0)


def _plot_losses(axes: Axes, records: Sequence[dict], losses: Sequence[str]) -> None:
    """Draw the losses on a logarithmic scale, and the AP50 of each evaluation."""
    parts = [name for name in losses if name not in TOTALS]
    styles = {name: {"color": COLORS[i % len(COLORS)]} for i, name in enumerate(parts)} | TOTALS
    for name in losses:
        points = [(record["iteration"], record[name]) for record in records if name in record]
        width = 1.8 if name == "total_loss" else 1.3
        axes.plot(*zip(*points, strict=True), label=name, linewidth=width, **styles[name])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.set_ylabel("loss")
    axes.grid(which="both", alpha=0.2)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False)
    for record in records:
        if "bbox/AP50" in record:
            axes.axvline(record["iteration"], color="gray", linewidth=0.8, linestyle="dotted")
            axes.text(
                record["iteration"],
                0.99,
                f"AP50 {record['bbox/AP50']:.1f} ",
                transform=axes.get_xaxis_transform(),
                rotation=90,
                fontsize=7,
                horizontalalignment="right",
                verticalalignment="top",
            )


def plot_shares(
    axes: Axes, iterations: np.ndarray, shares: np.ndarray, level_names: Sequence[str]
) -> None:
    """Draw the shares as stacked areas, the finest level at the bottom."""
    axes.stackplot(
        iterations,
        100 * shares,
        labels=[name.upper() for name in level_names],
        colors=[level_color(i) for i in range(len(level_names))],
    )
    axes.set_ylim(0, 100)
    axes.margins(x=0)
    axes.set_ylabel("objects per selected level (%)")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        labels[::-1],
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        fontsize=8,
        frameon=False,
    )
