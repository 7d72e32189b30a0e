import dataclasses
import json
import math

import numpy as np
import pytest
from toy_sets import coco_set, detections_of, perfect, prediction, random_set, truth_of

from fsaf_d2.evaluation.average_precision import METRICS
from fsaf_d2.evaluation.summary import metrics_of, summarize

A, B, LARGE = (0, 0, 20, 20), (50, 0, 20, 20), (60, 0, 100, 100)


def summary(data, predictions, tmp_path, *, levels=None, **options) -> dict:
    truth = truth_of(data, tmp_path)
    found = detections_of(predictions, truth)
    if levels is not None:
        found = dataclasses.replace(
            found, levels=np.array(levels), branches=np.zeros(len(levels), dtype=int)
        )
    options = {"max_detections": 100, **options}
    evaluation = summarize("toy", truth, {"joint": found}, **options)
    assert json.loads(json.dumps(evaluation, allow_nan=False)) == evaluation
    return evaluation


def test_a_perfect_detector(tmp_path):
    data, _ = random_set(crowds=0)
    evaluation = summary(data, perfect(data), tmp_path)
    figures = [evaluation["overall"]["joint"], *evaluation["per_class"]]
    values = [x[name] for x in figures for name in METRICS]
    assert values == [None if x is None else pytest.approx(100) for x in values]
    assert values[:6] == [pytest.approx(100)] * 6
    for x in evaluation["per_class"]:
        assert x["best_f1"]["f1"] == pytest.approx(100)
    matrix = np.array(evaluation["confusion"]["matrix"])
    assert (matrix == np.diag([*(x["num_objects"] for x in evaluation["per_class"]), 0])).all()
    assert evaluation["misses"] == evaluation["false_alarms"] == []
    assert evaluation["diagnosis"] is None


def test_what_is_not_there_has_no_figures(tmp_path):
    """One small object of class 1; class 2 has none, but a false alarm; an image is empty."""
    found = [prediction(1, 1, A, 0.9), prediction(2, 2, B, 0.8), prediction(2, 2, B, 0.3)]
    evaluation = summary(coco_set([(1, 1, A)]), found, tmp_path)
    one, two = evaluation["per_class"]
    assert two["num_objects"] == 0 and two["best_f1"] is None
    assert all(two[name] is None for name in METRICS)
    assert evaluation["overall"]["joint"] == {
        name: pytest.approx(100) if name in ("AP", "AP50", "AP75", "APs") else None
        for name in METRICS
    }
    assert one["num_objects_by_size"] == {"small": 1, "medium": 0, "large": 0}
    assert evaluation["precision_recall"]["precision"]["class 2"] is None
    # Without objects a class needs a score of 0.5.
    assert evaluation["confusion"]["thresholds"]["class 2"] == 0.5
    assert evaluation["confusion"]["matrix"] == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert [x["score"] for x in evaluation["false_alarms"]] == pytest.approx([0.8])


def test_no_objects_at_all(tmp_path):
    evaluation = summary(coco_set([]), [prediction(1, 1, A, 0.9)], tmp_path)
    assert set(evaluation["overall"]["joint"].values()) == {None}
    assert evaluation["num_objects"] == 0 and "no objects" in evaluation["diagnosis"]


def test_no_images_have_objects_or_detections(tmp_path):
    evaluation = summary(coco_set([]), [], tmp_path)
    assert evaluation["max_score"] == 0 and evaluation["false_alarms"] == []


def test_crowds_are_no_objects(tmp_path):
    data = coco_set([(1, 1, A), (1, 1, LARGE, {"iscrowd": 1})])
    evaluation = summary(data, [prediction(1, 1, A, 0.9)], tmp_path)
    assert evaluation["num_objects"] == 1
    assert evaluation["num_objects_by_size"] == {"small": 1, "medium": 0, "large": 0}


def test_an_area_on_the_limit_belongs_to_both_sizes_as_in_coco(tmp_path):
    found = [prediction(1, 1, (0, 0, 32, 32), 0.9)]
    evaluation = summary(coco_set([(1, 1, (0, 0, 32, 32))]), found, tmp_path)
    assert evaluation["num_objects_by_size"] == {"small": 1, "medium": 1, "large": 0}
    figures = evaluation["overall"]["joint"]
    assert figures["APs"] == figures["APm"] == pytest.approx(100)


def test_each_level_is_judged_by_its_own_detections_against_all_objects(tmp_path):
    """Level 0 finds one of two objects, level 1 the other, level 2 nothing."""
    data = coco_set([(1, 1, A), (1, 1, B)])
    found = [prediction(1, 1, A, 0.9), prediction(1, 1, B, 0.8)]
    evaluation = summary(data, found, tmp_path, levels=[0, 1], level_names=["p3", "p4", "p5"])
    half = pytest.approx(100 * 51 / 101)
    assert evaluation["levels"] == [
        {"name": "p3", "num_detections": 1, "AP": half, "AP50": half},
        {"name": "p4", "num_detections": 1, "AP": half, "AP50": half},
        {"name": "p5", "num_detections": 0, "AP": 0, "AP50": 0},
    ]
    assert evaluation["overall"]["joint"]["AP"] == pytest.approx(100)


def test_branches_and_the_evaluators_keys(tmp_path):
    data, predictions = random_set()
    truth = truth_of(data, tmp_path)
    found = detections_of(predictions, truth)
    parts = {"joint": found, "anchor_branch": found[::2], "point_branch": found[:0]}
    evaluation = summarize("toy", truth, parts, max_detections=100)
    results = metrics_of(evaluation, parts)
    assert list(results) == ["bbox", "anchor_branch", "point_branch"]
    assert list(results["bbox"]) == [*METRICS, *(f"AP-class {i}" for i in (3, 5, 9))]
    assert list(results["anchor_branch"]) == list(METRICS)
    # As detectron2 gives it for no detections; the file has what COCO's rules give.
    assert all(math.isnan(x) for x in results["point_branch"].values())
    assert evaluation["overall"]["point_branch"]["AP"] == 0


def test_missing_areas_and_crowd_marks_are_filled_in(tmp_path):
    data = coco_set([(1, 1, A), (1, 1, LARGE)])
    found = perfect(data)
    for annotation in data["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    evaluation = summary(data, found, tmp_path)
    assert evaluation["num_objects_by_size"] == {"small": 1, "medium": 0, "large": 1}
    assert evaluation["overall"]["joint"]["AP"] == pytest.approx(100)


def test_unusable_annotations_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no categories"):
        truth_of(coco_set([], category_ids=()), tmp_path)
    with pytest.raises(ValueError, match="64 bits"):
        truth_of(coco_set([], category_ids=(1, 2**70)), tmp_path)
