"""Thresholds, confusions, misses and false alarms, by hand and against plain loops."""

import numpy as np
import pytest
from toy_sets import coco_set, detections_of, prediction, random_set, truth_of

from fsaf_d2.evaluation.average_precision import BoxEvaluation
from fsaf_d2.evaluation.operating_points import (
    OperatingPoint,
    best_point,
    confusion_matrix,
    outcome,
    worst_false_alarms,
    worst_misses,
)

A, B, C = (0, 0, 20, 20), (50, 0, 20, 20), (100, 0, 20, 20)
NOWHERE = (150, 60, 20, 20)


def iou(one, other, *, crowd: bool = False) -> float:
    """Of two (x, y, width, height); of a crowd the share of the first box in it."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    area = one[2] * one[3]
    return shared / (area if crowd else area + other[2] * other[3] - shared)


def match_image(objects: list[dict], found: list[dict], *, by_class: bool) -> list[int | None]:
    """The place of the object that each detection, best first, takes; -1 for a crowd."""
    taken, answers = set(), []
    for entry in found:
        best, highest = None, 0.5
        for place, there in enumerate(objects):
            if by_class and there["category_id"] != entry["category_id"]:
                continue
            if there["iscrowd"] or place in taken:
                continue
            overlap = iou(entry["bbox"], there["bbox"])
            tie = there["category_id"] == entry["category_id"] or by_class
            if overlap > highest or (overlap == highest and (best is None or tie)):
                best, highest = place, overlap
        if best is not None:
            taken.add(best)
        elif any(
            there["iscrowd"]
            and (not by_class or there["category_id"] == entry["category_id"])
            and iou(entry["bbox"], there["bbox"], crowd=True) >= 0.5
            for there in objects
        ):
            best = -1
        answers.append(best)
    return answers


def images(data: dict, predictions: list[dict]):
    """Objects and detections, best first, of each image."""
    for image in sorted(x["id"] for x in data["images"]):
        objects = [x for x in data["annotations"] if x["image_id"] == image]
        found = [x for x in predictions if x["image_id"] == image]
        yield objects, sorted(found, key=lambda x: -x["score"])


def f1_at(data: dict, predictions: list[dict], category: int, threshold: float):
    """(f1, precision, recall) in percent, with only the detections of this score or more."""
    right = wrong = 0
    for objects, found in images(data, predictions):
        found = [x for x in found if x["category_id"] == category and x["score"] >= threshold]
        answers = match_image(objects, found, by_class=True)
        right += sum(answer not in (None, -1) for answer in answers)
        wrong += sum(answer is None for answer in answers)
    count = sum(x["category_id"] == category and not x["iscrowd"] for x in data["annotations"])
    return (
        200 * right / (right + wrong + count),
        100 * right / (right + wrong) if right + wrong else 0,
        100 * right / count,
    )


def points_of(truth, found) -> list[OperatingPoint | None]:
    result = outcome(BoxEvaluation(truth, found, max_detections=1000), found, truth)
    classes = truth.classes_of(found.category_ids[result.detection])
    return [
        best_point(
            found.scores[result.detection[classes == k]],
            result.is_right[classes == k],
            truth.count(k),
        )
        for k in range(len(truth.class_names))
    ]


def test_best_f1_by_hand():
    """Four objects; right, right, wrong, right, wrong by falling score.

    F1 = 2 right / (accepted + objects): 2/5, 4/6, 4/7, 6/8, 6/9.
    """
    scores = np.array([0.5, 0.9, 0.8, 0.6, 0.7])
    is_right = np.array([False, True, True, True, False])
    assert best_point(scores, is_right, 4) == pytest.approx((0.6, 75.0, 75.0, 75.0))


def test_of_equally_good_thresholds_the_highest():
    # Of two objects: 2/3, 2/4, 2/5, 4/6.
    is_right = np.array([True, False, False, True])
    assert best_point(np.array([0.9, 0.8, 0.7, 0.6]), is_right, 2).threshold == 0.9


def test_a_threshold_takes_all_of_a_score_or_none():
    # Right alone would give 2/2; with its equal it is 2/3.
    point = best_point(np.array([0.9, 0.9]), np.array([True, False]), 1)
    assert point == pytest.approx((0.9, 50.0, 100.0, 200 / 3))


def test_without_a_right_one_no_threshold_is_better_and_without_objects_there_is_none():
    nothing = np.zeros(0)
    assert best_point(nothing, nothing.astype(bool), 3) == (0.5, 0, 0, 0)
    assert best_point(np.array([0.7]), np.array([False]), 3) == (0.5, 0, 0, 0)
    assert best_point(np.array([0.7]), np.array([False]), 0) is None


@pytest.mark.parametrize("seed", range(3))
def test_best_f1_is_that_of_trying_every_score(seed, tmp_path):
    data, predictions = random_set(seed)
    truth = truth_of(data, tmp_path)
    points = points_of(truth, detections_of(predictions, truth))
    for category, point in zip(truth.category_ids, points):
        scores = sorted({x["score"] for x in predictions}, reverse=True)
        tried = {score: f1_at(data, predictions, category, score) for score in scores}
        best = max(scores, key=lambda score: (round(tried[score][0], 9), score))
        assert point.threshold == best
        assert (point.f1, point.precision, point.recall) == pytest.approx(tried[best])


def test_confusion_by_hand(tmp_path):
    """A of class 1 is found as 2; B of class 2 twice; C of class 2 below the threshold."""
    data = coco_set([(1, 1, A), (1, 2, B), (1, 2, C)], category_ids=(1, 2, 5))
    truth = truth_of(data, tmp_path)
    found = [
        prediction(1, 2, A, 0.9),
        prediction(1, 1, A, 0.8),  # A is taken
        prediction(1, 2, B, 0.7),
        prediction(1, 2, B, 0.6),
        prediction(1, 2, C, 0.2),
        prediction(2, 5, NOWHERE, 0.9),
        prediction(2, 77, NOWHERE, 0.9),  # of no category
    ]
    matrix = confusion_matrix(truth, detections_of(found, truth), np.array([0.5, 0.5, 0.5]))
    assert matrix.tolist() == [
        [0, 1, 0, 0],
        [0, 1, 0, 1],
        [0, 0, 0, 0],
        [1, 1, 1, 0],
    ]


def test_of_two_objects_in_one_place_each_class_finds_its_own(tmp_path):
    truth = truth_of(coco_set([(1, 1, A), (1, 2, A)]), tmp_path)
    for first, second in ((1, 2), (2, 1)):
        found = [prediction(1, first, A, 0.9), prediction(1, second, A, 0.8)]
        matrix = confusion_matrix(truth, detections_of(found, truth), np.zeros(2))
        assert matrix.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_crowds_are_neither_missed_nor_false_alarms(tmp_path):
    data = coco_set([(1, 1, (0, 0, 100, 100), {"iscrowd": 1})])
    truth = truth_of(data, tmp_path)
    found = detections_of([prediction(1, 1, A, 0.9), prediction(1, 2, B, 0.8)], truth)
    assert confusion_matrix(truth, found, np.zeros(2)).sum() == 0
    result = outcome(BoxEvaluation(truth, found, max_detections=100), found, truth)
    # The other class has no crowd there.
    assert result.detection.tolist() == [1] and result.is_right.tolist() == [False]
    assert len(worst_misses(truth, result.best_score, np.ones(2), 9)) == 0


@pytest.mark.parametrize("seed", range(3))
def test_confusion_is_that_of_plain_loops(seed, tmp_path):
    data, predictions = random_set(seed)
    truth = truth_of(data, tmp_path)
    thresholds = np.array([0.3, 0.5, 0.1])
    places = {category: k for k, category in enumerate(truth.category_ids)}
    expected = np.zeros((4, 4), dtype=int)
    for objects, found in images(data, predictions):
        found = [x for x in found if x["score"] >= thresholds[places[x["category_id"]]]]
        answers = match_image(objects, found, by_class=False)
        for entry, answer in zip(found, answers):
            if answer != -1:
                row = 3 if answer is None else places[objects[answer]["category_id"]]
                expected[row, places[entry["category_id"]]] += 1
        for place, there in enumerate(objects):
            if place not in answers and not there["iscrowd"]:
                expected[places[there["category_id"]], 3] += 1
    matrix = confusion_matrix(truth, detections_of(predictions, truth), thresholds)
    assert matrix.tolist() == expected.tolist()
    assert np.trace(matrix) > 0 and matrix[3, :3].all() and matrix[:3, 3].all()


def test_worst_misses_and_false_alarms_come_first(tmp_path):
    large = (100, 0, 30, 30)
    truth = truth_of(coco_set([(1, 1, A), (1, 1, B), (2, 1, large), (2, 1, A)]), tmp_path)
    found = [
        prediction(1, 1, A, 0.9),
        prediction(1, 1, B, 0.3),  # found, but below the threshold
        prediction(1, 1, NOWHERE, 0.6),
        prediction(2, 1, NOWHERE, 0.8),
        prediction(2, 2, A, 0.7),  # another class
        prediction(2, 1, NOWHERE, 0.2),
    ]
    found = detections_of(found, truth)
    result = outcome(BoxEvaluation(truth, found, max_detections=100), found, truth)
    thresholds = np.array([0.5, 0.5])
    assert worst_misses(truth, result.best_score, thresholds, 9).tolist() == [2, 3, 1]
    assert result.best_score == pytest.approx([0.9, 0.3, 0, 0])
    alarms = worst_false_alarms(truth, found, result, thresholds, 9)
    assert alarms.tolist() == [3, 4, 2]
    # A score equal to the threshold counts.
    thresholds[0] = found.scores[1]
    assert worst_misses(truth, result.best_score, thresholds, 9).tolist() == [2, 3]
    thresholds[0] = found.scores[3]
    assert worst_false_alarms(truth, found, result, thresholds, 9).tolist() == [3, 4]
    matrix = confusion_matrix(truth, found, np.array([found.scores[3], 0.9]))
    assert matrix.sum(axis=1)[-1] == 1 and matrix[0, 0] == 1
    thresholds[0] = 0.5
    assert worst_misses(truth, result.best_score, thresholds, 1).tolist() == [2]
    assert worst_false_alarms(truth, found, result, thresholds, 2).tolist() == [3, 4]
