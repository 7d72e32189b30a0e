"""Files of predictions and of evaluations; a file of predictions against one of annotations."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..commands.calls import call
from ..data.checking.checks import check_annotations
from ..plain_json import load_json
from .figure_tables import write_csv
from .ground_truth import Detections, GroundTruth, read_ground_truth
from .plots import plot_confusion, plot_precision_recall
from .summary import source, summarize

# As in COCO's own evaluation.
MAX_DETECTIONS = 100


def write_predictions(
    path: str | os.PathLike[str],
    truth: GroundTruth,
    detections: Detections,
    level_names: Sequence[str] = (),
    branch_names: Sequence[str] = (),
) -> None:
    """Write detections as COCO results, with "level" and "branch" where these are known."""
    columns = zip(
        detections.image_index.tolist(),
        detections.category_ids.tolist(),
        detections.boxes.tolist(),
        detections.scores.tolist(),
    )
    entries = []
    for i, (image, category_id, box, score) in enumerate(columns):
        entry = {"image_id": truth.image_ids[image], "category_id": category_id}
        entry.update(bbox=box, score=score)
        known = source(detections, i, level_names, branch_names)
        entry.update((key, value) for key, value in known.items() if value is not None)
        entries.append(entry)
    Path(path).write_text(json.dumps(entries), encoding="utf-8")


def write_evaluation(evaluation: Mapping, folder: str | os.PathLike[str]) -> None:
    """Write ``evaluation.json``, the tables as .csv, ``pr_curves.png`` and ``confusion.png``.

    Args:
        evaluation: what :func:`.summary.summarize` gives.
        folder: an existing one.
    """
    folder = Path(folder)
    text = json.dumps(evaluation, allow_nan=False)
    (folder / "evaluation.json").write_text(text, encoding="utf-8")
    write_csv(evaluation, folder)
    plot_precision_recall(evaluation, folder / "pr_curves.png")
    plot_confusion(evaluation, folder / "confusion.png")


def evaluate_predictions(
    annotations: str | os.PathLike[str],
    predictions: str | os.PathLike[str],
    *,
    output_dir: str | os.PathLike[str] | None = None,
    max_detections: int | None = None,
) -> dict:
    """Compute all figures of a file of predictions.

    Args:
        annotations: a JSON file in COCO format, with objects.
        predictions: COCO results, a JSON list of ``image_id``, ``category_id``, ``bbox`` and
            ``score``.
        output_dir: where the figures are written; None for nowhere.
        max_detections: how many of a class in an image count; by default 100, or the most objects
            that a class has in an image.

    Returns:
        the figures, as in ``evaluation.json``; of categories that the annotations lack,
        "unknown_category_ids" has the number of predictions of each.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: a file is not in its format, or they do not belong together.
    """
    # No image is read, so their names may lead anywhere.
    check_annotations(annotations, "/", encoding="utf-8-sig")
    truth = read_ground_truth(annotations)
    if not truth.labelled:
        raise ValueError(f"'{annotations}' has no 'annotations': there is nothing to compare with.")
    detections = read_predictions(predictions, truth)
    if max_detections is None:
        groups = truth.class_index * len(truth.image_ids) + truth.image_index
        most = max(Counter(groups[~truth.crowd].tolist()).values(), default=0)
        max_detections = max(MAX_DETECTIONS, most)
    evaluation = summarize(
        Path(predictions).stem, truth, {"joint": detections}, max_detections=max_detections
    )
    known = truth.classes_of(detections.category_ids) >= 0
    unknown = Counter(detections.category_ids[~known].tolist())
    evaluation["unknown_category_ids"] = {str(x): unknown[x] for x in sorted(unknown)}
    if output_dir is not None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        write_evaluation(evaluation, output_dir)
    return evaluation


def read_predictions(path: str | os.PathLike[str], truth: GroundTruth) -> Detections:
    """Read COCO results; boxes may be of any form, and categories unknown.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a list of predictions, a value is not as it should be, or an image is
            not one of the annotations'. The message names the entry.
    """
    here = f"'{os.fspath(path)}'"
    try:
        entries = load_json(path)
    except ValueError as error:
        raise ValueError(f"{here} is not JSON ({type(error).__name__}: {error}).") from error
    if isinstance(entries, dict) and "annotations" in entries:
        raise ValueError(
            f"{here} is a data set in COCO format, such as '{call('predict')}' writes of any "
            f"images, whose image ids are its own. Evaluate a detector by '{call('evaluate')}', "
            "which writes results with the ids of its data set "
            "(inference/NAME/predictions.json)."
        )
    if not isinstance(entries, list):
        raise ValueError(
            f"{here} must be a list of predictions, as COCO's results are: "
            '[{"image_id": 1, "category_id": 1, "bbox": [x, y, width, height], "score": 0.9}, ...].'
        )
    places = {image_id: i for i, image_id in enumerate(truth.image_ids)}
    strangers = Counter()
    for i, entry in enumerate(entries):
        problem = _problem(entry)
        if problem:
            raise ValueError(f"{here}: entry {i} {problem}.")
        if entry["image_id"] not in places:
            strangers[entry["image_id"]] += 1
    if strangers:
        raise ValueError(
            f"{here}: {sum(strangers.values())} of {len(entries)} predictions are of images that "
            f"the annotations lack, such as image_id {', '.join(map(str, sorted(strangers)[:3]))} "
            f"(they have {len(places)} images, from {min(places, default='none')} to "
            f"{max(places, default='none')}). Give the annotation file of the same images."
        )
    return Detections(
        image_index=np.array([places[x["image_id"]] for x in entries], dtype=np.int64),
        category_ids=np.array([x["category_id"] for x in entries], dtype=np.int64),
        boxes=np.array([x["bbox"] for x in entries], dtype=float).reshape(-1, 4),
        scores=np.array([x["score"] for x in entries], dtype=float),
    )


def _problem(entry: object) -> str:
    """What is wrong with a prediction; nothing if it can be evaluated."""
    if not isinstance(entry, dict):
        return "is not a mapping with image_id, category_id, bbox and score"
    for key in ("image_id", "category_id", "bbox", "score"):
        if key not in entry:
            return f"has no '{key}'"
    for key in ("image_id", "category_id"):
        value = entry[key]
        if type(value) is not int or abs(value) >= 2**62:
            return f"has the {key} {value!r:.99}, which must be a whole number"
    box = entry["bbox"]
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))):
        return f"has the bbox {box!r:.99}, which must be four finite numbers"
    if not _is_finite(entry["score"]):
        return f"has the score {entry['score']!r:.99}, which must be a finite number"
    return ""


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e100 and math.isfinite(value)
