"""A plot of what a data set holds: classes, sizes of boxes and of images, objects per image."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from ..texts import as_line

# Classes with a bar of their own.
MAX_BARS = 25
# Letters.
MAX_TITLE = 100
SIZE_COLORS = {"small": "#D55E00", "medium": "#0072B2", "large": "#009E73"}
# Pixels, the roots of COCO's areas.
BORDERS = (32, 96)


def plot_statistics(statistics: dict, path: str | os.PathLike[str], *, title: str = "") -> None:
    """Plot classes by size of their objects, sides of boxes, and objects per image.

    Args:
        statistics: what :func:`fsaf_d2.data.checking.check_source.statistics` returns.
        path: the image to write; its suffix gives the format, such as ``.png``.
        title: above all.
    """
    num_bars = min(len(statistics["classes"]), MAX_BARS + 1)
    height = 1.2 + 0.24 * max(num_bars, 12)
    figure = Figure(figsize=(13, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    classes, sizes, objects = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    _plot_classes(classes, statistics)
    _plot_sizes(sizes, statistics)
    _plot_objects(objects, statistics)
    # Of a long path its end says most.
    title = as_line(title)
    title = title if len(title) <= MAX_TITLE else f"…{title[1 - MAX_TITLE :]}"
    figure.suptitle(
        f"{title}  {statistics['images']:,} images, {statistics['boxes']:,} boxes".strip(),
        fontsize=11,
        parse_math=False,
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _plot_classes(axes: Axes, statistics: dict) -> None:
    counts = statistics["classes"]
    names = sorted(counts, key=lambda name: -counts[name])
    by_size = {name: statistics["sizes_by_class"][name] for name in names[:MAX_BARS]}
    labels = [as_line(name if len(name) <= 24 else f"{name[:23]}…") for name in by_size]
    if rest := names[MAX_BARS:]:
        sums = {x: sum(statistics["sizes_by_class"][name][x] for name in rest) for x in SIZE_COLORS}
        by_size[f"{len(rest)} others"] = sums
        labels.append(f"{len(rest)} others")
    places, left = np.arange(len(by_size)), np.zeros(len(by_size))
    for size, color in SIZE_COLORS.items():
        widths = np.array([x[size] for x in by_size.values()], dtype=float)
        axes.barh(places, widths, left=left, color=color, label=size)
        left += widths
    for place, total in zip(places, left):
        axes.text(total, place, f" {total:,.0f}", va="center", fontsize=8)
    axes.set_yticks(places, labels, fontsize=8, parse_math=False)
    # A single class does not fill all.
    axes.set_ylim(max(len(by_size), 4) - 0.5, -0.5)
    axes.set_xlim(0, 1.15 * max([1, *(counts[name] for name in names[:1]), left.max(initial=0)]))
    axes.set_xlabel("boxes, by size as in COCO")
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)


def _plot_sizes(axes: Axes, statistics: dict) -> None:
    edges = np.array(statistics["box_size_histogram"]["edges"])
    counts = np.array(statistics["box_size_histogram"]["counts"])
    starts = edges[:-1]
    # A bar that a border cuts has the colour of the side that most of it is on.
    group = np.digitize(np.sqrt(starts * edges[1:]), BORDERS)
    colors = [list(SIZE_COLORS.values())[x] for x in group]
    axes.bar(starts, counts, np.diff(edges), align="edge", color=colors)
    axes.set_xscale("log", base=2)
    filled = np.flatnonzero(counts)
    first, last = (filled[0], filled[-1]) if len(filled) else (0, len(counts) - 1)
    axes.set_xlim(edges[max(first - 1, 0)], edges[min(last + 2, len(edges) - 1)])
    axes.xaxis.set_major_locator(FixedLocator([2**n for n in range(13)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:.0f}")
    for border in BORDERS:
        axes.axvline(border, color="black", linewidth=0.8, linestyle="dotted")
    if statistics["median_box_size"] is not None:
        median = statistics["median_box_size"]
        axes.axvline(median, color="black", linewidth=1, label=f"median {median:.0f}")
        axes.legend(fontsize=8)
    axes.set_xlabel("side of a box, root of its area (pixels)")
    axes.set_ylabel("boxes")


def _plot_objects(axes: Axes, statistics: dict) -> None:
    numbers = {int(x): count for x, count in statistics["objects_per_image"].items()}
    if numbers:
        values, weights = np.array(list(numbers)), np.array(list(numbers.values()))
        width = max(1, -(-int(values.max() + 1) // 40))
        edges = np.arange(0, values.max() + width + 1, width) - 0.5
        axes.hist(values, edges, weights=weights, color="#56B4E9")
    axes.set_xlabel("boxes in an image")
    axes.set_ylabel("images")
