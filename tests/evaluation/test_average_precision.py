import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from toy_sets import coco_set, detections_of, perfect, prediction, random_set, truth_of

from fsaf_d2.evaluation.average_precision import BoxEvaluation, box_ious


def cocoeval(data: dict, predictions: list[dict], max_detections: int, folder) -> COCOeval:
    """pycocotools' own."""
    file = folder / "coco.json"
    file.write_text(json.dumps(data))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        evaluation = COCOeval(truth, truth.loadRes([dict(x) for x in predictions]), "bbox")
        evaluation.params.maxDets = [1, 10, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


@pytest.mark.parametrize("max_detections", [11, 100])
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"category_ids": (7,), "crowds": 0.3},
        {"category_ids": (1,), "most": 120, "num_images": 3},
        {"crowds": 1.0},
        {"category_ids": tuple(range(1, 30)), "most": 8},
    ],
)
def test_equals_cocoeval_to_the_last_bit(case, max_detections, tmp_path):
    for seed in range(2):
        data, predictions = random_set(seed, **case)
        truth = truth_of(data, tmp_path)
        found = detections_of(predictions, truth)
        ours = BoxEvaluation(truth, found, max_detections=max_detections)
        theirs = cocoeval(data, predictions, max_detections, tmp_path)
        assert np.array_equal(ours.precision, theirs.eval["precision"][..., -1])
        assert np.array_equal(ours.eval["recall"][..., -1], theirs.eval["recall"][..., -1])
        assert np.array_equal(ours.eval["scores"][..., -1], theirs.eval["scores"][..., -1])
        assert (ours.precision > 0).any() or case.get("crowds") == 1


def test_matches_are_those_of_cocoeval(tmp_path):
    """Ids of detections are 1 behind their place, those of objects likewise."""
    data, predictions = random_set(5)
    truth = truth_of(data, tmp_path)
    ours = BoxEvaluation(truth, detections_of(predictions, truth), max_detections=100)
    matched = {}
    for record in filter(None, cocoeval(data, predictions, 100, tmp_path).evalImgs):
        size = [list(x) for x in ours.params.areaRng].index(list(record["aRng"]))
        for t, row in enumerate(record["dtMatches"]):
            for key, object_id in zip(record["dtIds"], row):
                matched[size, t, key - 1] = int(object_id) - 1
    assert len(matched) == ours.matches.size
    for (size, t, place), found in np.ndenumerate(ours.matches):
        assert matched[size, t, ours.order[place]] == found


def test_order_of_the_detections_plays_no_part_but_for_ties(tmp_path):
    data, predictions = random_set(1)
    for i, entry in enumerate(predictions):
        entry["score"] = i / len(predictions)
    truth = truth_of(data, tmp_path)
    found = detections_of(predictions, truth)
    shuffled = found[np.random.default_rng(0).permutation(len(found))]
    one, other = (BoxEvaluation(truth, x, max_detections=100) for x in (found, shuffled))
    assert np.array_equal(one.precision, other.precision)


def test_metrics_by_hand(tmp_path):
    """Two objects of class 1: one found exactly, one with IoU 0.6, a false alarm between them.

    At IoU 0.5, 0.55, 0.6: precision 1 up to recall 0.5 (51 of 101 recalls), then 2/3. At the seven
    others: precision 1 up to recall 0.5, then 0.
    """
    objects = [(1, 1, (0, 0, 50, 10)), (2, 1, (0, 0, 50, 10))]
    truth = truth_of(coco_set(objects), tmp_path)
    found = [
        prediction(1, 1, (0, 0, 50, 10), 0.9),
        prediction(1, 1, (100, 0, 50, 10), 0.8),
        prediction(2, 1, (0, 0, 30, 10), 0.7),
    ]
    figures = BoxEvaluation(truth, detections_of(found, truth), max_detections=100).metrics()
    at_50 = 100 * (51 + 50 * 2 / 3) / 101
    assert figures["AP50"] == pytest.approx(at_50)
    assert figures["AP75"] == pytest.approx(100 * 51 / 101)
    assert figures["AP"] == pytest.approx((3 * at_50 + 7 * 100 * 51 / 101) / 10)
    # 500 square pixels are small.
    assert figures["APs"] == pytest.approx(figures["AP"])
    assert figures["APm"] is None and figures["APl"] is None


def test_classes_and_sizes_without_objects_have_no_figures(tmp_path):
    truth = truth_of(coco_set([(1, 2, (0, 0, 10, 10))]), tmp_path)
    found = [prediction(1, 1, (0, 0, 10, 10), 0.9), prediction(1, 2, (0, 0, 10, 10), 0.9)]
    evaluation = BoxEvaluation(truth, detections_of(found, truth), max_detections=100)
    assert set(evaluation.metrics(0).values()) == {None}
    assert evaluation.metrics(1)["AP"] == evaluation.metrics()["AP"] == pytest.approx(100)


def test_nothing_found_is_zero_and_nothing_there_is_none(tmp_path):
    nothing = detections_of([], truth := truth_of(coco_set([(1, 1, (0, 0, 9, 9))]), tmp_path))
    assert BoxEvaluation(truth, nothing, max_detections=100).metrics()["AP"] == 0
    truth = truth_of(coco_set([]), tmp_path)
    assert BoxEvaluation(truth, nothing, max_detections=100).metrics()["AP"] is None


def test_unknown_categories_are_left_out(tmp_path):
    data, predictions = random_set(2)
    truth = truth_of(data, tmp_path)
    strangers = [{**x, "category_id": 4, "score": 1.0} for x in predictions]
    one, other = (
        BoxEvaluation(truth, detections_of(x, truth), max_detections=100)
        for x in (predictions, [*strangers, *predictions])
    )
    assert np.array_equal(one.precision, other.precision)


def test_an_object_with_the_id_0_can_be_found(tmp_path):
    """COCOeval takes 0 for no match."""
    data = coco_set([(1, 1, (0, 0, 10, 10), {"id": 0})])
    truth = truth_of(data, tmp_path)
    found = detections_of(perfect(data), truth)
    assert BoxEvaluation(truth, found, max_detections=100).metrics()["AP"] == pytest.approx(100)


def test_375_objects_of_a_class_in_an_image(tmp_path):
    objects = [(1, 1, (8 * (i % 25), 6 * (i // 25), 7, 5)) for i in range(375)]
    data = coco_set(objects)
    truth = truth_of(data, tmp_path)
    found = detections_of(perfect(data), truth)
    by_limit = {
        limit: BoxEvaluation(truth, found, max_detections=limit).metrics()["AP"]
        for limit in (100, 375)
    }
    # 100 of 375 objects: precision 1 up to recall 0.266, that is at 0, 0.01, ... 0.26.
    assert by_limit == {100: pytest.approx(100 * 27 / 101), 375: pytest.approx(100)}


def test_boxes_may_lie_in_memory_by_columns():
    rng = np.random.default_rng(0)
    boxes, objects = rng.uniform(1, 20, (9, 4)), rng.uniform(1, 20, (5, 4))
    crowd = np.zeros(5, dtype=bool)
    by_columns = box_ious(np.asfortranarray(boxes), np.asfortranarray(objects), crowd)
    assert np.array_equal(by_columns, box_ious(boxes, objects, crowd))
