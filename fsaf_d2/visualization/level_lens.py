"""A plot of the pyramid levels that objects select during a training."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from .training_curves import plot_shares

EMPTY = {"horizontalalignment": "center", "verticalalignment": "center", "color": "gray"}


def plot_level_lens(report: dict, output_file: str | os.PathLike) -> None:
    """Plot share of each level over time, level against box size, and how often objects flip.

    Args:
        report: the content of ``level_lens.json``.
        output_file: the image to write; its suffix gives the format.
    """
    figure = Figure(figsize=(8, 9), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    over_time, by_size, flips = figure.subplots(3, 1)
    _plot_training(over_time, report)
    _plot_sizes(by_size, report)
    _plot_flips(flips, report)
    figure.savefig(output_file)


def _plot_training(axes: Axes, report: dict) -> None:
    steps, names = report["training"]["steps"], report["levels"]
    axes.set_title("Training: the level that objects select", fontsize=10)
    if len(steps) < 2:
        axes.text(0.5, 0.5, "not enough steps yet", transform=axes.transAxes, **EMPTY)
        axes.set_axis_off()
        return
    shares = np.array([report["training"]["share"][name] for name in names], dtype=float)
    plot_shares(axes, np.array(steps), shares, names)
    axes.set_xlabel("step")


def _plot_sizes(axes: Axes, report: dict) -> None:
    """Shade each size's objects by level, with the heuristic rule as a line."""
    names, edges = report["levels"], np.array(report["size_edges"])
    counts = np.array(report["objects_by_level_and_size"], dtype=float)
    step = report["evaluations"][-1]["step"]
    title = f"After step {step:,}: level and size of {int(counts.sum()):,} objects"
    axes.set_title(f"{title} of fixed training images", fontsize=10)
    totals = counts.sum(axis=0)
    shares = np.divide(
        100 * counts, totals, out=np.full_like(counts, np.nan), where=totals[None] > 0
    )
    places = np.arange(len(names) + 1) - 0.5
    mesh = axes.pcolormesh(edges, places, shares, cmap="Greys", vmin=0, vmax=100)
    axes.figure.colorbar(mesh, ax=axes, label="objects of this size (%)", pad=0.01)

    borders = report["heuristic_borders"]
    axes.stairs(
        np.arange(len(names)),
        [edges[0], *np.clip(borders, edges[0], edges[-1]), edges[-1]],
        baseline=None,
        color="#D55E00",
        linewidth=2.5,
        label="heuristic rule",
    )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(names)), [name.upper() for name in names])
    axes.set_xlabel("box size, sqrt(width x height), in pixels of the network's input")
    axes.legend(loc="upper left", fontsize=8)


def _plot_flips(axes: Axes, report: dict) -> None:
    axes.set_title("Objects that select another level than one evaluation before", fontsize=10)
    points = [
        (entry["step"], 100 * entry["flipped"] / entry["compared"])
        for entry in report["evaluations"]
        if entry["compared"]
    ]
    if not points:
        text = "two evaluations are needed: TEST.EVAL_PERIOD"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, **EMPTY)
        axes.set_axis_off()
        return
    axes.plot(*zip(*points), color="#0072B2", marker="o", markersize=4)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("flipped (%)")
    axes.set_xlabel("step")
    axes.grid(alpha=0.2)
