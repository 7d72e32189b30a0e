"""What a detector gets right and wrong at the score threshold that suits each class best.

A detection is right if it overlaps an object of its class, which no better one has found, with an
IoU of 0.5 at the least. A crowd makes detections neither right nor wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .average_precision import BoxEvaluation, box_ious, match
from .ground_truth import Detections, GroundTruth

IOU = 0.5
# Of a class for which no threshold can be better than another.
DEFAULT_THRESHOLD = 0.5


class OperatingPoint(NamedTuple):
    """A score threshold, and what detections of this score or more are worth."""

    threshold: float
    precision: float  # percent
    recall: float  # percent
    f1: float  # percent


class Outcome(NamedTuple):
    """What every detection and every object came to, whatever the score."""

    detection: np.ndarray  # (D',) indices of the detections that are right or wrong
    is_right: np.ndarray  # (D',) bool
    best_score: np.ndarray  # (M,) of the detection that found the object, 0 where none did


def outcome(evaluation: BoxEvaluation, detections: Detections, truth: GroundTruth) -> Outcome:
    """Read the matches at IoU 0.5 from an evaluation whose first threshold and size these are."""
    counts = ~evaluation.ignored[0, 0]
    detection, found = evaluation.order[counts], evaluation.matches[0, 0, counts]
    best_score = np.zeros(len(truth.boxes))
    best_score[found[found >= 0]] = detections.scores[detection[found >= 0]]
    return Outcome(detection, found >= 0, best_score)


def best_point(scores: np.ndarray, is_right: np.ndarray, num_objects: int) -> OperatingPoint | None:
    """Find the threshold of highest F1, from the detections themselves, nothing interpolated.

    Args:
        scores, is_right: (D,) of the detections of a class.
        num_objects: that are to be found.

    Returns:
        the highest of equally good thresholds; DEFAULT_THRESHOLD where nothing is right, and None
        without objects.
    """
    if num_objects == 0:
        return None
    if not is_right.any():
        return OperatingPoint(DEFAULT_THRESHOLD, 0.0, 0.0, 0.0)
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], is_right[order].cumsum()
    accepted = np.arange(1, len(scores) + 1)
    f1 = 2 * right / (accepted + num_objects)
    # A threshold takes all detections of a score, or none.
    f1[:-1][scores[1:] == scores[:-1]] = -1
    best = f1.argmax()
    figures = right[best] / accepted[best], right[best] / num_objects, f1[best]
    return OperatingPoint(float(scores[best]), *(float(100 * figure) for figure in figures))


def confusion_matrix(
    truth: GroundTruth, detections: Detections, thresholds: np.ndarray
) -> np.ndarray:
    """Count which class was found for which.

    Detections, best first and of all classes together, take the object of any class that each
    overlaps most, with an IoU of 0.5 at the least.

    Args:
        thresholds: (K,) score that a detection of each class needs.

    Returns:
        (K + 1, K + 1) objects by their class and by the class found; the last row is for false
        alarms, the last column for misses.
    """
    num_classes = len(truth.class_names)
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    classes = truth.classes_of(detections.category_ids)
    shown = np.flatnonzero((classes >= 0) & (detections.scores >= thresholds[classes]))
    shown = shown[np.lexsort((-detections.scores[shown], detections.image_index[shown]))]
    objects = np.argsort(truth.image_index, kind="stable")
    images = np.arange(len(truth.image_ids) + 1)
    found_at = np.searchsorted(detections.image_index[shown], images)
    objects_at = np.searchsorted(truth.image_index[objects], images)
    for image in images[:-1]:
        found = shown[found_at[image] : found_at[image + 1]]
        there = objects[objects_at[image] : objects_at[image + 1]]
        best = _match_any_class(truth, there, detections.boxes[found], classes[found])
        matched = best >= 0
        is_crowd = np.zeros(len(found), dtype=bool)
        is_crowd[matched] = truth.crowd[there[best[matched]]]
        right = matched & ~is_crowd
        np.add.at(matrix, (truth.class_index[there[best[right]]], classes[found[right]]), 1)
        np.add.at(matrix[-1], classes[found[~matched]], 1)
        missed = ~truth.crowd[there]
        missed[best[right]] = False
        np.add.at(matrix[:, -1], truth.class_index[there[missed]], 1)
    return matrix


def _match_any_class(
    truth: GroundTruth, objects: np.ndarray, boxes: np.ndarray, classes: np.ndarray
) -> np.ndarray:
    """The place in ``objects`` that each box of an image, best first, finds; -1 for none."""
    if not (len(objects) and len(boxes)):
        return np.full(len(boxes), -1)
    crowd = truth.crowd[objects]
    ious = box_ious(boxes, truth.boxes[objects], crowd)
    # Of two objects in one place a detection finds that of its own class.
    same = classes[:, None] == truth.class_index[objects]
    ious = np.where(ious >= IOU, ious + 1e-9 * same, 0)
    return match(ious, np.array([IOU]), crowd[None], crowd)[0][0, 0]


def worst_misses(
    truth: GroundTruth, best_score: np.ndarray, thresholds: np.ndarray, count: int
) -> np.ndarray:
    """Indices of objects not found at the thresholds: the lowest score, then the largest, first."""
    missed = np.flatnonzero(~truth.crowd & (best_score < thresholds[truth.class_index]))
    return missed[np.lexsort((-truth.areas[missed], best_score[missed]))][:count]


def worst_false_alarms(
    truth: GroundTruth,
    detections: Detections,
    outcome: Outcome,
    thresholds: np.ndarray,
    count: int,
) -> np.ndarray:
    """Indices of wrong detections that pass the thresholds, the highest score first."""
    wrong = outcome.detection[~outcome.is_right]
    classes = truth.classes_of(detections.category_ids[wrong])
    wrong = wrong[detections.scores[wrong] >= thresholds[classes]]
    return wrong[np.argsort(-detections.scores[wrong], kind="stable")][:count]
