"""An image of what speed.py measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from speed_models import MODELS, Table

# Okabe and Ito's colours, which the colour-blind can tell apart; markers differ as well.
COLORS = dict(zip(MODELS, ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7")))
MARKERS = dict(zip(MODELS, "osD^v"))
RATIOS = {
    "step": "training step",
    "inference": "inference",
    "post-processing": "post-processing",
    "memory": "peak memory\n(training)",
}


def draw(tables: Sequence[Table], about: dict[str, str], path: str) -> bool:
    """Draw the tables that there are, if there is one to draw.

    Args:
        tables: of any measurements; those of switches and of a GPU alone are not drawn.
        about: machine, software, date and network.
        path: of the image.

    Returns:
        whether there is an image.
    """
    kinds: dict[str, list[Table]] = {}
    for table in tables:
        kinds.setdefault(table.measurement, []).append(table)
    panels = [(_draw_objects, kinds["losses"])] if "losses" in kinds else []
    if RATIOS.keys() & kinds.keys():
        panels.append((_draw_ratios, [kinds[kind][0] for kind in RATIOS if kind in kinds]))
    panels += [
        (_draw_sizes, kinds[kind])
        for kind in ("step by size", "inference by size")
        if kind in kinds
    ]
    if not panels:
        return False
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.2 * columns, 4.2 * rows + 1.1), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for (panel, data), axis in zip(panels, axes):
        panel(axis, data)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes)[len(panels) :]:
        axis.axis("off")
    # Every model's mark, whichever panel has it.
    handles = {
        label: handle
        for axis in figure.axes
        for handle, label in zip(*axis.get_legend_handles_labels())
    }
    names = [name for name in MODELS if name in handles]
    figure.legend(
        [handles[name] for name in names],
        names,
        loc="outside upper center",
        ncols=len(names) if columns > 1 else 2,
        frameon=False,
    )
    text = f"{about['machine']}, {about['network']}, {about['date']}\n{about['software']}"
    figure.supxlabel(text, fontsize=9, color="0.35")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return True


def _draw_objects(axis: Axes, tables: list[Table]) -> None:
    """Time of matching and losses against the number of objects."""
    _draw_lines(axis, tables, [table.at["objects"] for table in tables])
    axis.set_title(f"Matching and losses, forward and backward\n{_size(tables[0])}", fontsize=11)
    axis.set_xlabel("objects in an image")


def _draw_sizes(axis: Axes, tables: list[Table]) -> None:
    """Time against the pixels of the batch."""
    tables = sorted(tables, key=_megapixels)
    _draw_lines(axis, tables, [_megapixels(table) for table in tables])
    what = tables[0].title.split(": ")[1].replace(", dense scores", "\ndense scores")
    axis.set_title(what.replace(", 20 objects", "\n20 objects").capitalize(), fontsize=11)
    axis.set_xticks(
        [_megapixels(table) for table in tables],
        [_size(table, short=True) for table in tables],
        rotation=25,
        ha="right",
        rotation_mode="anchor",
        fontsize=8,
    )
    axis.set_xlabel("images × height × width (pixels)")


def _draw_lines(axis: Axes, tables: list[Table], places: list[float]) -> None:
    for name in MODELS:
        points = [
            (place, row.value)
            for place, table in zip(places, tables)
            for row in table.rows
            if row.name == name
        ]
        if points:
            axis.plot(*zip(*points), label=name, color=COLORS[name], marker=MARKERS[name], ms=5)
    axis.set(xscale="log", yscale="log", ylabel="milliseconds (median)")
    axis.xaxis.set_major_locator(FixedLocator(places))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(_plain))
    axis.yaxis.set_major_formatter(FuncFormatter(_plain))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.grid(axis="y", color="0.9")


def _draw_ratios(axis: Axes, tables: list[Table]) -> None:
    """Ratio of each model to RetinaNet, with its quartiles, a group for each measurement."""
    names = [name for name in MODELS if any(row.name == name for row in tables[0].rows)][1:]
    width = 0.8 / max(len(names), 1)
    for group, table in enumerate(tables):
        for row in table.rows:
            if row.name not in names:
                continue
            place = group + (names.index(row.name) - (len(names) - 1) / 2) * width
            axis.bar(place, row.ratio, width * 0.9, color=COLORS[row.name], zorder=2)
            top = row.ratio
            if row.low is not None:
                spread = [[max(row.ratio - row.low, 0)], [max(row.high - row.ratio, 0)]]
                axis.errorbar(
                    place, row.ratio, spread, color="0.2", capsize=2, linewidth=1, zorder=3
                )
                top = row.high
            axis.annotate(
                f"{row.ratio:.2f}",
                (place, top),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                path_effects=[withStroke(linewidth=2, foreground="white")],
                zorder=4,
            )
    axis.axhline(1, color="black", linewidth=1.2)
    axis.set_xticks(range(len(tables)), [RATIOS[table.measurement] for table in tables])
    axis.tick_params(axis="x", length=0)
    axis.set_ylabel("ratio to RetinaNet (less is better)")
    axis.set_title(f"Beside detectron2's RetinaNet (line)\n{_size(tables[0])}", fontsize=11)
    axis.grid(axis="y", color="0.9", zorder=0)


def _plain(value: float, _position: int = 0) -> str:
    return f"{value:g}"


def _megapixels(table: Table) -> float:
    return table.at["batch"] * table.at["height"] * table.at["width"] / 1e6


def _size(table: Table, *, short: bool = False) -> str:
    batch, height, width = (table.at[name] for name in ("batch", "height", "width"))
    if short:
        return f"{batch} × {height} × {width}"
    return f"{batch} image{'s' * (batch > 1)} of {height} × {width} pixels"
