import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, Instances

from fsaf_d2.visualization.beside import LONGER_SIDE, comparison_grid, draw_beside

NAMES = ["cat", "dog"]
IMAGE = np.full((100, 200, 3), 90, np.uint8)


def found(*scores: float) -> Instances:
    """Dogs, each in a box of its own."""
    count = len(scores)
    boxes = [[10.0 + 60 * i, 20, 60 + 60 * i, 60] for i in range(count)]
    return Instances(
        (100, 200),
        pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)),
        scores=torch.tensor(scores),
        pred_classes=torch.ones(count, dtype=torch.int64),
        pred_levels=torch.zeros(count, dtype=torch.int64),
        pred_branches=torch.zeros(count, dtype=torch.bool),
    )


def record(*boxes, **values) -> dict:
    annotation = {"bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, **values}
    return {"annotations": [{**annotation, "bbox": list(box)} for box in boxes]}


def drawn(annotated: dict, detections: Instances, thresholds=None) -> tuple:
    """The two halves."""
    pair = draw_beside(
        IMAGE,
        annotated,
        detections,
        class_names=NAMES,
        thresholds=thresholds or {},
    )
    assert pair.shape == (LONGER_SIDE // 2, 2 * LONGER_SIDE + 4, 3)
    return pair[:, :LONGER_SIDE], pair[:, -LONGER_SIDE:]


def is_empty(half: np.ndarray) -> bool:
    return bool((half == 90).all())


def test_annotations_are_on_the_left_and_detections_on_the_right():
    left, right = drawn(record((40, 40, 50, 30)), found())
    # The box's left side, at twice the size.
    assert left[120, 78:82].max() > 180 and (left[120, 90:170] == 90).all() and is_empty(right)
    left, right = drawn(record(), found(0.9))
    assert is_empty(left) and not is_empty(right)


def test_boxes_of_crowds_are_not_drawn_as_objects():
    left, _ = drawn(record((40, 40, 50, 30), iscrowd=1), found())
    assert is_empty(left)


def test_an_image_without_annotations_can_be_drawn():
    assert is_empty(drawn({}, found())[0])


def test_detections_below_their_classes_threshold_are_left_out():
    two = drawn({}, found(0.5, 0.3), {"dog": 0.2})[1]
    one = drawn({}, found(0.5, 0.3))[1]
    assert not np.array_equal(two, one)
    np.testing.assert_array_equal(one, drawn({}, found(0.5))[1])
    assert is_empty(drawn({}, found(0.5), {"dog": 0.6, "cat": 0.1})[1])
    # The threshold itself is reached.
    assert not is_empty(one) and not is_empty(drawn({}, found(0.7), {"dog": 0.7})[1])


def test_only_the_surest_are_drawn(monkeypatch):
    monkeypatch.setattr("fsaf_d2.visualization.beside.MAX_BOXES", 1)
    np.testing.assert_array_equal(
        drawn({}, found(0.5, 0.9))[1][:, :100],
        IMAGE[:1, :1] * np.ones((LONGER_SIDE // 2, 100, 1), np.uint8),
    )


def test_pairs_are_laid_out_below_a_title():
    pair = draw_beside(IMAGE, record(), found(), class_names=NAMES, thresholds={})
    grids = [comparison_grid([pair] * 3, text) for text in ("One", "Two")]
    assert grids[0].shape[1] > 2 * pair.shape[1]
    different = np.abs(grids[0].astype(int) - grids[1]).max(axis=(1, 2)) > 0
    assert different[:28].any() and not different[28:].any()
