import pytest
import torch
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K

from fsaf_d2.inference.candidates import NONE, Candidates, stable_topk
from fsaf_d2.inference.decode import best_rows, decode_level

inf, nan = float("inf"), float("nan")


def decode(logits, deltas, *, score_thresh=0.05, topk_candidates=1000) -> Candidates:
    """Decode a level of locations in one row, with (R, K) logits and (R, 4) deltas from (0, 0)."""
    found = decode_level(
        torch.as_tensor(logits).T[None, :, None],
        torch.as_tensor(deltas).T[None, :, None],
        lambda index: torch.zeros(*index.shape, 4),
        lambda deltas, boxes: boxes + deltas,
        num_classes=len(logits[0]),
        score_thresh=score_thresh,
        topk_candidates=topk_candidates,
        level=0,
    )
    return only(found)


def only(candidates: Candidates) -> Candidates:
    """The candidates of the one image."""
    found = candidates.scores[0] != NONE
    return Candidates(*(field[0][found] for field in candidates))


def test_keeps_the_best_pairs_of_location_and_class():
    # sigmoid(0) = 0.5, sigmoid(2) = 0.88, sigmoid(-4) = 0.018 is below the threshold
    found = decode([[0.0, -4.0], [2.0, 1.0]], [[1.0] * 4, [2.0] * 4])
    assert found.classes.tolist() == [0, 1, 0]
    assert found.boxes[:, 0].tolist() == [2, 2, 1]
    torch.testing.assert_close(found.scores, torch.tensor([2.0, 1.0, 0.0]).sigmoid())


def test_topk_counts_pairs():
    found = decode([[0.0, 1.0], [2.0, 3.0]], [[1.0] * 4] * 2, topk_candidates=3)
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0, 1.0]).sigmoid())


def test_threshold_is_exclusive():
    assert len(decode([[0.0]], [[1.0] * 4], score_thresh=0.5).scores) == 0


def test_what_is_not_finite_is_left_out():
    logits = [[nan], [inf], [-inf], [1.0], [2.0], [3.0]]
    deltas = [[1.0] * 4, [1.0] * 4, [1.0] * 4, [1.0, nan, 1, 1], [1.0, 1, inf, 1], [1.0] * 4]
    found = decode(logits, deltas)
    assert found.scores.tolist() == [1.0, torch.tensor(3.0).sigmoid().item()]
    assert torch.isfinite(found.boxes).all()


def test_half_precision_is_decoded_in_float32():
    logits, deltas = torch.randn(50, 3).bfloat16(), (torch.rand(50, 4) * 9).bfloat16()
    one, other = (decode(cast(logits), cast(deltas)) for cast in (torch.Tensor.float, lambda x: x))
    for field, same in zip(one, other):
        assert torch.equal(field, same)


def level_of(num_anchors: int, num_classes: int, size=(6, 5)):
    """Predictions of two images with their boxes, and (N, H * W * A, K) scores as in RetinaNet."""
    logits = torch.randn(2, num_anchors * num_classes, *size)
    deltas = torch.randn(2, num_anchors * 4, *size)
    boxes = torch.rand(num_anchors * size[0] * size[1], 4)
    scores = permute_to_N_HWA_K(logits, num_classes).contiguous().sigmoid()
    return logits, deltas, boxes, scores


@pytest.mark.parametrize("num_anchors", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_decodes_what_sorting_all_pairs_gives(num_anchors, memory_format):
    logits, deltas, boxes, scores = level_of(num_anchors, 4)
    found = decode_level(
        logits.contiguous(memory_format=memory_format),
        deltas.contiguous(memory_format=memory_format),
        lambda index: boxes[index],
        lambda deltas, boxes: boxes + deltas,
        num_classes=4,
        score_thresh=0.6,
        topk_candidates=25,
        level=3,
    )
    for image in range(2):
        best, index = scores[image].flatten().sort(descending=True)
        count = min(int((best > 0.6).sum()), 25)
        index = index[:count]
        expected = boxes[index // 4] + permute_to_N_HWA_K(deltas, 4)[image][index // 4]
        assert torch.equal(found.scores[image, :count], best[:count])
        assert torch.equal(found.boxes[image, :count], expected)
        assert torch.equal(found.classes[image, :count], index % 4)
        assert (found.scores[image, count:] == NONE).all()
    assert (found.levels == 3).all() and not found.branches.any()


def test_predictions_stay_as_they_are():
    logits, deltas, boxes, _ = level_of(1, 3)
    before = logits.clone(), deltas.clone()
    decode_level(
        logits,
        deltas,
        lambda index: boxes[index],
        lambda deltas, boxes: boxes + deltas,
        num_classes=3,
        score_thresh=0.05,
        topk_candidates=10,
        level=0,
    )
    assert torch.equal(logits, before[0]) and torch.equal(deltas, before[1])


@pytest.mark.parametrize("count", [1, 7, 40, 1000])
def test_topk_takes_the_first_of_equals(count):
    for values in (torch.randn(3, 300), torch.randint(-2, 3, (3, 300)).float()):
        found, index = stable_topk(values, count)
        expected, order = values.sort(dim=1, descending=True, stable=True)
        assert torch.equal(found, expected[:, :count])
        assert torch.equal(index, order[:, :count])


def rows_of(logits: torch.Tensor, count: int) -> list[int]:
    return best_rows(logits.T[None, :, None], count)[0].tolist()


def test_best_rows_hold_the_best_pairs():
    for logits in (torch.randn(300, 5), torch.randint(-2, 3, (300, 5)).float()):
        rows = rows_of(logits, 40)
        assert rows == sorted(set(rows)) and len(rows) == 40
        pairs = logits.flatten().sort(descending=True, stable=True).indices[:40]
        assert set((pairs // 5).tolist()) <= set(rows)


def test_best_rows_are_those_of_the_scores_where_scores_saturate():
    logits = torch.tensor([[-1.0], [40.0], [30.0], [35.0]])
    assert rows_of(logits, 2) == [1, 2]


def test_best_rows_are_found_beside_rows_that_are_no_numbers():
    logits = torch.tensor([[nan, 3.0], [nan, nan], [nan, 1.0], [2.0, 0.0], [-inf, nan]])
    assert rows_of(logits, 2) == [0, 3]


def test_a_quality_is_combined_with_every_class_of_its_location():
    """sqrt(score * quality) for 3 locations of 2 classes, worked out for each pair."""
    logits = torch.tensor([[2.0, 0.0], [1.0, -1.0], [3.0, 3.0]])
    quality = torch.tensor([0.0, 4.0, -6.0])
    found = decode_level(
        logits.T[None, :, None],
        torch.ones(1, 4, 1, 3),
        lambda index: torch.zeros(*index.shape, 4),
        lambda deltas, boxes: boxes + deltas,
        num_classes=2,
        score_thresh=0.05,
        topk_candidates=4,
        level=0,
        quality=quality[None, None, None],
        combine=lambda scores, quality: (scores * quality).sqrt(),
    )
    expected = (logits.sigmoid() * quality.sigmoid()[:, None]).sqrt().flatten()
    values, order = expected.sort(descending=True, stable=True)
    torch.testing.assert_close(found.scores[0], values[:4])
    assert found.classes[0].tolist() == (order[:4] % 2).tolist()


def combined(scores: list[float], quality: list[float], topk_candidates: int) -> list[float]:
    """The scores of locations of one class, with the root of both."""
    found = decode_level(
        torch.tensor(scores).logit()[None, None, None],
        torch.ones(1, 4, 1, len(scores)),
        lambda index: torch.zeros(*index.shape, 4),
        lambda deltas, boxes: boxes + deltas,
        num_classes=1,
        score_thresh=0.05,
        topk_candidates=topk_candidates,
        level=0,
        quality=torch.tensor(quality).logit()[None, None, None],
        combine=lambda scores, quality: (scores * quality).sqrt(),
    )
    return only(found).scores.tolist()


def test_the_threshold_is_of_the_combined_score():
    """Roots of 0.036 and 0.0006: 0.19 and 0.024."""
    assert combined([0.04, 0.06], [0.9, 0.01], 4) == pytest.approx([0.036**0.5])


def test_the_best_locations_are_those_of_the_best_combined_score():
    """Products are 0.095, 0.36 and 0.3."""
    assert combined([0.95, 0.9, 0.5], [0.1, 0.4, 0.6], 1) == pytest.approx([0.6])


def test_a_quality_that_is_no_number_takes_no_place():
    assert combined([0.9, 0.5], [nan, 0.5], 1) == pytest.approx([0.5])


def test_boxes_may_be_described_by_any_number_of_values():
    """One value a box, by which it is moved: what 17 bins a side will need."""
    found = decode_level(
        torch.tensor([1.0, 2.0])[None, None, None],
        torch.tensor([7.0, 9.0])[None, None, None],
        lambda index: torch.zeros(*index.shape, 4),
        lambda deltas, boxes: boxes + deltas,
        num_classes=1,
        score_thresh=0.05,
        topk_candidates=4,
        level=0,
    )
    assert found.boxes[0].tolist() == [[9.0] * 4, [7.0] * 4]
