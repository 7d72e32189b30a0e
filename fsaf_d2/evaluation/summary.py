"""All figures of an evaluation, in the form in which they are saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .average_precision import METRICS, BoxEvaluation
from .diagnosis import diagnose
from .ground_truth import Detections, GroundTruth
from .operating_points import (
    DEFAULT_THRESHOLD,
    IOU,
    Outcome,
    best_point,
    confusion_matrix,
    outcome,
    worst_false_alarms,
    worst_misses,
)

# So many misses and false alarms are listed.
NUM_WORST = 24


def summarize(
    dataset: str,
    truth: GroundTruth,
    found: Mapping[str, Detections],
    *,
    max_detections: int,
    level_names: Sequence[str] = (),
    branch_names: Sequence[str] = (),
    score_thresh: float | None = None,
    input_sizes: np.ndarray | None = None,
) -> dict:
    """Compute every figure of ``evaluation.json``.

    Figures are in percent, None where there are no objects of that kind; scores and thresholds
    are from 0 to 1.

    Args:
        dataset: its name.
        truth: its objects.
        found: "joint", and for a detector of several branches what each of them finds alone, under
            its name and "_branch".
        max_detections: how many of a class in an image count.
        level_names, branch_names: of the pyramid's levels, finest first, and of the branches.
        score_thresh, input_sizes: for :func:`.diagnosis.diagnose`.

    Returns:
        what can be written as JSON.
    """
    joint = found["joint"]
    evaluation = BoxEvaluation(truth, joint, max_detections=max_detections)
    result = outcome(evaluation, joint, truth)
    overall = {"joint": evaluation.metrics()}
    overall |= {
        name: BoxEvaluation(truth, alone, max_detections=max_detections).metrics()
        for name, alone in found.items()
        if name != "joint"
    }
    per_class = _figures_of_classes(truth, joint, evaluation, result)
    points = [figures["best_f1"] for figures in per_class]
    thresholds = np.array([x["threshold"] if x else DEFAULT_THRESHOLD for x in points])
    return {
        **_facts(dataset, truth),
        "overall": overall,
        "per_class": per_class,
        "levels": _levels(truth, joint, max_detections, level_names),
        "precision_recall": _curves(truth, evaluation),
        "confusion": _confusion(truth, joint, thresholds),
        **_mistakes(truth, joint, result, thresholds, level_names, branch_names),
        "max_score": float(joint.scores.max(initial=0.0)),
        "diagnosis": diagnose(
            truth,
            joint,
            overall["joint"]["AP"],
            max_detections=max_detections,
            score_thresh=score_thresh,
            input_sizes=input_sizes,
        ),
    }


def _facts(dataset: str, truth: GroundTruth) -> dict:
    return {
        "dataset": dataset,
        "num_images": len(truth.image_ids),
        "num_objects": truth.count(),
        "num_objects_by_size": truth.count_by_size(),
        "class_names": truth.class_names,
    }


def _figures_of_classes(
    truth: GroundTruth, joint: Detections, evaluation: BoxEvaluation, result: Outcome
) -> list[dict]:
    classes = truth.classes_of(joint.category_ids[result.detection])
    return [
        _figures_of_class(k, truth, joint, evaluation, result, classes == k)
        for k in range(len(truth.class_names))
    ]


def _figures_of_class(
    k: int,
    truth: GroundTruth,
    joint: Detections,
    evaluation: BoxEvaluation,
    result: Outcome,
    chosen: np.ndarray,
) -> dict:
    """The figures of class k, to which the ``chosen`` ones of ``result`` belong."""
    scores = joint.scores[result.detection[chosen]]
    point = best_point(scores, result.is_right[chosen], truth.count(k))
    return {
        "name": truth.class_names[k],
        "num_objects": truth.count(k),
        "num_objects_by_size": truth.count_by_size(k),
        **evaluation.metrics(k),
        "best_f1": point._asdict() if point else None,
    }


def _levels(
    truth: GroundTruth, joint: Detections, max_detections: int, names: Sequence[str]
) -> list[dict]:
    """AP of each level's detections alone, against all objects."""
    if joint.levels is None:
        return []
    levels = []
    for index, name in enumerate(names):
        detections = joint[joint.levels == index]
        evaluation = BoxEvaluation(truth, detections, max_detections=max_detections, sizes=("all",))
        figures = evaluation.metrics()
        levels.append(
            {"name": name, "num_detections": len(detections)}
            | {metric: figures[metric] for metric in ("AP", "AP50")}
        )
    return levels


def _curves(truth: GroundTruth, evaluation: BoxEvaluation) -> dict:
    precision = evaluation.precision[0, :, :, 0]
    return {
        "iou": IOU,
        "recall": evaluation.params.recThrs.tolist(),
        "precision": {
            name: precision[:, k].tolist() if truth.count(k) else None
            for k, name in enumerate(truth.class_names)
        },
    }


def _confusion(truth: GroundTruth, joint: Detections, thresholds: np.ndarray) -> dict:
    return {
        "iou": IOU,
        "thresholds": dict(zip(truth.class_names, thresholds.tolist())),
        "labels": [*truth.class_names, "background"],
        "matrix": confusion_matrix(truth, joint, thresholds).tolist(),
    }


def _place(truth: GroundTruth, image: int, class_index: int, box: np.ndarray) -> dict:
    return {
        "image_id": truth.image_ids[image],
        "file_name": truth.file_names[image],
        "category": truth.class_names[class_index],
        "bbox": box.tolist(),
    }


def _mistakes(
    truth: GroundTruth,
    joint: Detections,
    result: Outcome,
    thresholds: np.ndarray,
    level_names: Sequence[str],
    branch_names: Sequence[str],
) -> dict[str, list[dict]]:
    return {
        "misses": [
            _miss(truth, result, i)
            for i in worst_misses(truth, result.best_score, thresholds, NUM_WORST)
        ],
        "false_alarms": [
            _false_alarm(truth, joint, i, level_names, branch_names)
            for i in worst_false_alarms(truth, joint, result, thresholds, NUM_WORST)
        ],
    }


def _miss(truth: GroundTruth, result: Outcome, i: int) -> dict:
    return {
        **_place(truth, truth.image_index[i], truth.class_index[i], truth.boxes[i]),
        "best_score": float(result.best_score[i]),
    }


def _false_alarm(
    truth: GroundTruth,
    joint: Detections,
    i: int,
    level_names: Sequence[str],
    branch_names: Sequence[str],
) -> dict:
    (class_index,) = truth.classes_of(joint.category_ids[[i]])
    return {
        **_place(truth, joint.image_index[i], class_index, joint.boxes[i]),
        "score": float(joint.scores[i]),
        **source(joint, i, level_names, branch_names),
    }


def source(
    detections: Detections, i: int, level_names: Sequence[str], branch_names: Sequence[str]
) -> dict:
    """Which level and branch gave a detection, by name; None for each where that is not known."""
    return {
        "level": _name(detections.levels, i, level_names),
        "branch": _name(detections.branches, i, branch_names),
    }


def _name(numbers: np.ndarray | None, i: int, names: Sequence[str]) -> str | None:
    return None if numbers is None or numbers[i] >= len(names) else names[numbers[i]]


def metrics_of(evaluation: Mapping, found: Mapping[str, Detections]) -> dict[str, dict[str, float]]:
    """What an evaluator returns: the keys and values that detectron2's would, NaN for None.

    Args:
        evaluation: what :func:`summarize` gives.
        found: of which it was computed; without any detection detectron2's figures are all NaN.
    """
    results = {}
    for name, figures in evaluation["overall"].items():
        if not len(found[name]):
            figures = dict.fromkeys(METRICS)
        elif name == "joint" and len(evaluation["class_names"]) > 1:
            of_classes = {f"AP-{x['name']}": x["AP"] for x in evaluation["per_class"]}
            figures = {**figures, **of_classes}
        results["bbox" if name == "joint" else name] = {
            metric: float("nan") if value is None else value for metric, value in figures.items()
        }
    return results
