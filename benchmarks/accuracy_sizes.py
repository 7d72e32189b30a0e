"""AP by the size of the objects, finer than COCO's three."""

from __future__ import annotations

import contextlib
import io
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from accuracy_rows import ROWS
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate


def ap_by_side(annotations: Path, predictions: Path, edges: Sequence[float]) -> list[float]:
    """COCO AP of the objects between each two edges and those beyond, by pycocotools.

    Args:
        annotations: a JSON file in COCO format.
        predictions: COCO results.
        edges: rising, of the root of an object's area, in pixels of the file's images.

    Returns:
        one more than there are edges, in percent; NaN where there are no objects.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(predictions)), "bbox")
        limits = [0.0, *(edge**2 for edge in edges), 1e10]
        # COCO counts both ends of a range.
        ranges = [[low, np.nextafter(high, 0)] for low, high in itertools.pairwise(limits)]
        evaluation.params.areaRng = ranges
        evaluation.params.areaRngLbl = [str(i) for i in range(len(ranges))]
        evaluation.evaluate()
        evaluation.accumulate()
    # (T, R, K, S): the last is the most detections an image.
    precision = evaluation.eval["precision"][..., -1]
    of_sizes = [precision[:, :, :, i] for i in range(len(ranges))]
    return [100 * float(x[x > -1].mean()) if (x > -1).any() else float("nan") for x in of_sizes]


def table_by_side(
    found: Mapping[tuple[str, int], Sequence[float]], rows: Sequence[str], edges: Sequence[float]
) -> str:
    """Means over the seeds, in GitHub's format.

    Args:
        found: row and seed to what :func:`ap_by_side` gives.
        rows: in the order of the table; those that are not found are left out.
        edges: see there.
    """
    names = [f"{edge:g}" for edge in edges]
    between = [f"{low} to {high}" for low, high in itertools.pairwise(names)]
    header = [f"< {names[0]}", *between, f">= {names[-1]}"]
    lines = []
    for row in rows:
        runs = [values for (name, _), values in found.items() if name == row]
        if runs:
            lines.append([ROWS[row].about, *(f"{statistics.fmean(x):.1f}" for x in zip(*runs))])
    return tabulate(lines, headers=["row", *header], tablefmt="github", disable_numparse=True)
