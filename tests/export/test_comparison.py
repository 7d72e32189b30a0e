"""What counts as the same detections."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from fsaf_d2.export.comparison import compare_detections

BOX = [10.0, 20.0, 30.0, 60.0]


def detections(rows) -> Instances:
    """Of (score, shift of the box, class), and level and branch where these are not 0."""
    rows = [(*row, 0, 0)[:5] for row in rows]
    result = Instances((100, 100))
    result.pred_boxes = Boxes(
        torch.tensor([[x + shift for x in BOX] for _, shift, *_ in rows]).reshape(-1, 4)
    )
    result.scores = torch.tensor([score for score, *_ in rows])
    result.pred_classes = torch.tensor([kind for _, _, kind, *_ in rows], dtype=torch.int64)
    result.pred_levels = torch.tensor([level for *_, level, _ in rows], dtype=torch.int64)
    result.pred_branches = torch.tensor([bool(branch) for *_, branch in rows])
    return result


def failures(expected, found, limit=100) -> tuple[str, ...]:
    one, other = detections(expected), detections(found)
    return compare_detections(one, other, "a.jpg", lowest=0.05, limit=limit).failures


ROWS = [(0.9, 0.0, 1), (0.6, 10.0, 0), (0.3, 20.0, 1)]


def test_rounding_is_no_difference():
    found = [(0.90001, 0.0005, 1), (0.59999, 10.0005, 0), (0.3, 20.0, 1)]
    one, other = detections(ROWS), detections(found)
    result = compare_detections(one, other, "a.jpg", lowest=0.05, limit=100)
    assert result.failures == () and result.num_detections == 3
    assert result.box_difference == pytest.approx(5e-4, rel=0.1)
    assert result.score_difference == pytest.approx(1e-5, rel=0.1)


@pytest.mark.parametrize(
    "found",
    [
        [(0.9, 0.006, 1), *ROWS[1:]],
        [(0.9003, 0.0, 1), *ROWS[1:]],
        [(0.9, 0.0, 0), *ROWS[1:]],
        [(0.9, 0.0, 1, 2, 0), *ROWS[1:]],
        [(0.9, 0.0, 1, 0, 1), *ROWS[1:]],
        ROWS[1:],
        [*ROWS, (0.2, 40.0, 1)],
        [(0.9, 10.0, 0), (0.6, 0.0, 1), ROWS[2]],
        [ROWS[0], ROWS[0], *ROWS[1:]],
    ],
)
def test_differences(found):
    (sentence,) = failures(ROWS, found)
    assert sentence.startswith("a.jpg: ") and "box (" in sentence
    assert failures(found, ROWS)


def test_equal_scores_may_change_places():
    rows = [(0.5, 0.0, 1), (0.5, 10.0, 1)]
    assert not failures(rows, rows[::-1])
    assert failures([(0.5, 0.0, 1), (0.52, 10.0, 1)], [(0.52, 0.0, 1), (0.5, 10.0, 1)])


def test_rounding_may_decide_at_the_threshold_and_at_the_end_of_a_full_list():
    assert not failures([*ROWS, (0.05001, 40.0, 1)], ROWS)
    assert failures([*ROWS, (0.06, 40.0, 1)], ROWS)
    last = [(0.29999, 40.0, 1)], [(0.3, 40.0, 1)]
    assert not failures([*ROWS[:2], ROWS[2]], [*ROWS[:2], last[1][0]], limit=3)
    assert failures(ROWS, [*ROWS[:2], last[1][0]], limit=4)


def test_nothing_in_both():
    assert failures([], []) == ()
    assert failures([], ROWS) and failures(ROWS, [])


def test_the_tolerance_is_in_pixels_of_the_networks_input():
    """In an image that was made ten times smaller, rounding is ten times as large."""
    one, other = detections(ROWS), detections([(0.9, 0.008, 1), *ROWS[1:]])
    for scale, count in ((1.0, 1), (10.0, 0)):
        result = compare_detections(one, other, "a.jpg", lowest=0.05, limit=100, scale=scale)
        assert len(result.failures) == count
