"""The figures of an evaluation as text, for people and for spreadsheets."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from ..data.object_sizes import SIZES
from ..detectors.contract import BRANCH_ENDING
from ..texts import as_line, open_table, write_rows
from .average_precision import METRICS

# A longer table of classes is cut down to AP, several classes in a row.
MAX_ROWS = 20
BLOCKS = 3
MAX_NAME = 24
_SIZE_METRICS = {f"AP{size[0]}": size for size in SIZES}


def evaluation_text(evaluation: Mapping) -> str:
    """Every table of an evaluation, with a headline and the diagnosis.

    Args:
        evaluation: what ``evaluation.json`` holds.
    """
    by_size = evaluation["num_objects_by_size"]
    sizes = ", ".join(f"{count} {size}" for size, count in by_size.items())
    parts = [
        f"{shown(evaluation['dataset'])}: {evaluation['num_images']} images, "
        f"{evaluation['num_objects']} objects ({sizes})",
        overall_table(evaluation["overall"], by_size),
        class_table(evaluation["per_class"]),
    ]
    if evaluation["levels"]:
        parts += [
            level_table(evaluation["levels"]),
            "AP of a level: its detections alone, against the objects of all levels.",
        ]
    if evaluation.get("diagnosis"):
        parts.append(evaluation["diagnosis"])
    return "\n\n".join(parts)


def overall_table(
    overall: Mapping[str, Mapping[str, float | None]],
    num_objects_by_size: Mapping[str, int] | None = None,
) -> str:
    """AP of all branches together and of each alone.

    Args:
        overall: METRICS by "joint" and, for each of several branches, its name and "_branch"; None
            or NaN where there is none.
        num_objects_by_size: as in ``evaluation.json``; it explains what is missing.
    """
    missing = {
        metric: f"n/a (0 {size} objects)"
        for metric, size in _SIZE_METRICS.items()
        if num_objects_by_size and num_objects_by_size[size] == 0
    }
    rows = [
        [
            row_name(name, len(overall) - 1),
            *(_percent(figures[metric], missing.get(metric, "n/a")) for metric in METRICS),
        ]
        for name, figures in overall.items()
    ]
    return _table(rows, ["", *METRICS])


def row_name(name: str, num_branches: int) -> str:
    """What a part of an evaluation is called in tables.

    Args:
        name: "joint", or of a branch.
        num_branches: that were evaluated alone.
    """
    if name != "joint":
        return f"{name.removesuffix(BRANCH_ENDING)} branch alone"
    return {0: "all detections", 2: "both branches"}.get(num_branches, "all branches")


def class_table(per_class: Sequence[Mapping]) -> str:
    """A row for each class; for many classes their AP alone, several in a row.

    Args:
        per_class: as in ``evaluation.json``.
    """
    if len(per_class) > MAX_ROWS:
        return _many_classes(per_class)
    headers = ["class", "objects", *METRICS, "best F1", "precision", "recall", "from score"]
    rows = []
    for figures in per_class:
        point = figures["best_f1"]
        values = [_percent(figures[metric], _none_of(figures, metric)) for metric in METRICS]
        values += [_percent(point and point[name]) for name in ("f1", "precision", "recall")]
        threshold = f"{point['threshold']:.2f}" if point else "n/a"
        rows.append([shown(figures["name"]), str(figures["num_objects"]), *values, threshold])
    return _table(rows, headers)


def _many_classes(per_class: Sequence[Mapping]) -> str:
    cells = [
        [
            shown(figures["name"]),
            str(figures["num_objects"]),
            _percent(figures["AP"]),
        ]
        for figures in per_class
    ]
    height = math.ceil(len(cells) / BLOCKS)
    columns = [cells[i * height : (i + 1) * height] for i in range(BLOCKS)]
    rows = [
        [cell for column in columns for cell in (column[i] if i < len(column) else [""] * 3)]
        for i in range(height)
    ]
    return _table(rows, ["class", "objects", "AP"] * BLOCKS)


def level_table(levels: Sequence[Mapping]) -> str:
    """AP of each pyramid level.

    Args:
        levels: as in ``evaluation.json``.
    """
    rows = [
        [x["name"].upper(), str(x["num_detections"]), _percent(x["AP"]), _percent(x["AP50"])]
        for x in levels
    ]
    return _table(rows, ["level", "detections", "AP", "AP50"])


def shown(name: str) -> str:
    """A name of a data file as it can stand in a table: one line, no bars, not too long."""
    name = as_line(name).replace("|", "?")
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


def write_csv(evaluation: Mapping, folder: str | os.PathLike[str]) -> list[str]:
    """Write ``overall.csv``, ``classes.csv``, ``levels.csv`` and ``confusion.csv``.

    Cells are empty where there are no objects.

    Args:
        evaluation: what ``evaluation.json`` holds.
        folder: an existing one.

    Returns:
        the names of the files.
    """
    point_names = ("threshold", "precision", "recall", "f1")
    sizes = [f"num_{size}" for size in SIZES]
    labels = evaluation["confusion"]["labels"]
    files = {
        "overall.csv": [
            ["detections", *METRICS],
            *(
                [name, *map(figures.get, METRICS)]
                for name, figures in evaluation["overall"].items()
            ),
        ],
        "classes.csv": [
            ["class", "num_objects", *sizes, *METRICS, *(f"best_f1_{x}" for x in point_names)],
            *(
                [
                    *(figures["name"], figures["num_objects"]),
                    *figures["num_objects_by_size"].values(),
                    *map(figures.get, METRICS),
                    *map((figures["best_f1"] or {}).get, point_names),
                ]
                for figures in evaluation["per_class"]
            ),
        ],
        "levels.csv": [
            ["level", "num_detections", "AP", "AP50"],
            *(list(level.values()) for level in evaluation["levels"]),
        ],
        "confusion.csv": [
            ["truth / found", *labels],
            *([label, *row] for label, row in zip(labels, evaluation["confusion"]["matrix"])),
        ],
    }
    for name, rows in files.items():
        with open_table(Path(folder) / name) as file:
            write_rows(file, rows)
    return list(files)


def _none_of(figures: Mapping, metric: str) -> str:
    size = _SIZE_METRICS.get(metric)
    if size and figures["num_objects_by_size"][size] == 0:
        return f"n/a (0 {size})"
    return "n/a"


def _percent(value: float | None, otherwise: str = "n/a") -> str:
    return otherwise if value is None or math.isnan(value) else f"{value:.1f}"


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    align = ["left" if name in ("", "class", "level") else "right" for name in headers]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True, colalign=align)
