"""Images of an evaluation: precision-recall curves and the confusion matrix."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from .figure_tables import shown

DPI = 110
# More classes get a panel each, in place of a line in one panel.
MAX_LINES = 10
# Of more classes, those with the most objects are drawn.
MAX_CLASSES = 100
# Up to so many classes the confusion matrix shows numbers.
MAX_NUMBERED = 20
COLOR = "#0072B2"


def plot_precision_recall(evaluation: Mapping, output_file: str | os.PathLike[str]) -> None:
    """Draw the precision-recall curve of every class at IoU 0.5, with its best-F1 point.

    Args:
        evaluation: what ``evaluation.json`` holds.
        output_file: the image to write, such as a .png file.
    """
    classes, left_out = _most_frequent(evaluation)
    classes = [figures for figures in classes if figures["num_objects"]]
    curves = evaluation["precision_recall"]
    draw = _draw_lines if len(classes) <= MAX_LINES else _draw_panels
    title = f"Precision and recall at IoU {curves['iou']:g}{left_out}"
    figure = draw(classes, curves, title)
    FigureCanvasAgg(figure)
    figure.savefig(output_file, bbox_inches="tight")


def _most_frequent(evaluation: Mapping) -> tuple[list[Mapping], str]:
    """The classes to draw, in their order, and what to say of the others."""
    classes = evaluation["per_class"]
    if len(classes) <= MAX_CLASSES:
        return list(classes), ""
    frequent = sorted(range(len(classes)), key=lambda k: -classes[k]["num_objects"])
    chosen = sorted(frequent[:MAX_CLASSES])
    left_out = f", {MAX_CLASSES} of {len(classes)} classes: those with the most objects"
    return [classes[k] for k in chosen], left_out


def _label(figures: Mapping) -> str:
    return f"{shown(figures['name'])}  AP50 {figures['AP50']:.1f}"


def _draw_lines(classes: Sequence[Mapping], curves: Mapping, title: str) -> Figure:
    figure = Figure(figsize=(8, 5), dpi=DPI)
    axes = figure.subplots()
    for k, figures in enumerate(classes):
        color = colormaps["tab10"](k)
        precision = curves["precision"][figures["name"]]
        axes.plot(curves["recall"], precision, color=color, label=_label(figures), linewidth=1.6)
        point = figures["best_f1"]
        axes.plot(point["recall"] / 100, point["precision"] / 100, "o", color=color, markersize=5)
    if len(classes) > 1:
        mean = np.mean([curves["precision"][figures["name"]] for figures in classes], axis=0)
        label = f"mean of the classes  AP50 {100 * mean.mean():.1f}"
        axes.plot(curves["recall"], mean, color="black", label=label, linewidth=2.4)
    if classes:
        axes.plot([], [], "o", color="gray", markersize=5, label="best F1")
        legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
        for text in legend.get_texts():
            text.set_parse_math(False)
    else:
        axes.text(0.5, 0.5, "no objects", horizontalalignment="center")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.01), xlabel="recall", ylabel="precision")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.25)
    return figure


def _draw_panels(classes: Sequence[Mapping], curves: Mapping, title: str) -> Figure:
    """A small panel for each class. All are drawn on one Axes: a hundred of them take minutes."""
    columns = min(10, math.ceil(math.sqrt(1.6 * len(classes))))
    rows = math.ceil(len(classes) / columns)
    figure = Figure(figsize=(1.55 * columns, 1.55 * rows + 0.5), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    width, height = 1.18, 1.36
    recall = np.asarray(curves["recall"])
    frames, lines, areas, points = [], [], [], []
    for k, figures in enumerate(classes):
        x, y = k % columns * width, -(k // columns) * height
        line = np.stack([x + recall, y + np.array(curves["precision"][figures["name"]])], axis=1)
        lines.append(line)
        areas.append([*line, (x + 1, y), (x, y)])
        frames.append([(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1), (x, y)])
        point = figures["best_f1"]
        points.append((x + point["recall"] / 100, y + point["precision"] / 100))
        name, figure_text = _label(figures).split("  AP50 ")
        short = name if len(name) <= 15 else f"{name[:14]}…"
        style = {"fontsize": 7.5, "parse_math": False, "verticalalignment": "bottom"}
        axes.text(x, y + 1.03, short, **style)
        axes.text(x + 1, y + 1.03, figure_text, horizontalalignment="right", **style)
    axes.add_collection(PolyCollection(areas, facecolors=COLOR, alpha=0.2))
    axes.add_collection(LineCollection(frames, colors="#A0A0A0", linewidths=0.6))
    axes.add_collection(LineCollection(lines, colors=COLOR, linewidths=1.3))
    axes.plot(*zip(*points), "o", color="black", markersize=3)
    axes.set(xlim=(-0.06, columns * width - 0.08), ylim=((1 - rows) * height - 0.08, 1.5))
    explained = "AP50 above each; right: recall, up: precision, both 0 to 1; dot: best F1"
    axes.text(0, 1.3, f"{title}. {explained}", fontsize=10)
    return figure


def plot_confusion(evaluation: Mapping, output_file: str | os.PathLike[str]) -> None:
    """Draw the confusion matrix: which share of each class was found as what.

    Args:
        evaluation: what ``evaluation.json`` holds.
        output_file: the image to write, such as a .png file.
    """
    confusion = evaluation["confusion"]
    matrix, labels = np.array(confusion["matrix"]), list(map(shown, confusion["labels"]))
    classes, left_out = _most_frequent(evaluation)
    if left_out:
        names = {id(figures) for figures in classes}
        kept = [k for k, figures in enumerate(evaluation["per_class"]) if id(figures) in names]
        kept.append(len(labels) - 1)
        matrix, labels = matrix[np.ix_(kept, kept)], [labels[k] for k in kept]
    count = len(labels)
    numbered = count - 1 <= MAX_NUMBERED
    side = max(3.2, count * (0.5 if numbered else 0.135))
    figure = Figure(figsize=(side + 2.6, side + 1.8), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    # Without numbers a few mistakes must still be seen.
    norm = PowerNorm(1 if numbered else 0.5, vmin=0, vmax=1)
    image = axes.imshow(shares, cmap="Blues", norm=norm)
    size = 9 if numbered else 6.5
    horizontal = axes.set_xticks(range(count), labels, rotation=90, fontsize=size)
    vertical = axes.set_yticks(range(count), labels, fontsize=size)
    for tick in (*horizontal, *vertical):
        tick.label1.set_parse_math(False)
    if numbered:
        _write_numbers(axes, matrix, shares)
    axes.axhline(count - 1.5, color="gray", linewidth=0.8)
    axes.axvline(count - 1.5, color="gray", linewidth=0.8)
    axes.set_xlabel("found as (background: missed)")
    axes.set_ylabel("in truth (background: false alarm)")
    title = f"Objects by class and by class found\nIoU {confusion['iou']:g}, at the best-F1 scores"
    axes.set_title(title + left_out, fontsize=10)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("share of the row", fontsize=9)
    figure.savefig(output_file, bbox_inches="tight")


def _write_numbers(axes: Axes, matrix: np.ndarray, shares: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(matrix):
        if value:
            axes.text(
                column,
                row,
                str(value),
                fontsize=8 if value < 10_000 else 6,
                color="white" if shares[row, column] > 0.6 else "black",
                horizontalalignment="center",
                verticalalignment="center",
            )
