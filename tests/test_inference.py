import torch
from detectron2.layers import batched_nms

from fsaf_d2.inference import (
    Candidates,
    _nms_within_parts,
    best_rows,
    clip_to_image,
    decode_points,
    merge,
)

inf, nan = float("inf"), float("nan")


def decode(logits, deltas, *, score_thresh=0.05, topk_candidates=1000) -> Candidates:
    """Decode one level whose points are all at the origin."""
    (found,) = decode_points(
        [torch.tensor(logits)],
        [torch.tensor(deltas)],
        [torch.zeros(len(logits), 4)],
        lambda deltas, boxes: boxes + deltas,
        score_thresh=score_thresh,
        topk_candidates=topk_candidates,
    )
    return found


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
    points = torch.rand(50, 4) * 1300
    results = []
    for cast in (torch.Tensor.float, torch.Tensor.bfloat16):
        (found,) = decode_points(
            [cast(logits)],
            [cast(deltas)],
            [points],
            lambda deltas, boxes: boxes.to(deltas.dtype) + deltas,
            score_thresh=0.05,
            topk_candidates=100,
        )
        results.append(found)
    for one, other in zip(*results):
        assert torch.equal(one, other)


def test_every_level_is_decoded_on_its_own_points():
    parts = decode_points(
        [torch.tensor([[1.0]]), torch.tensor([[2.0]])],
        [torch.ones(1, 4), torch.ones(1, 4)],
        [torch.zeros(1, 4), torch.full((1, 4), 10.0)],
        lambda deltas, boxes: boxes + deltas,
        score_thresh=0.05,
        topk_candidates=10,
    )
    assert [part.boxes[0, 0].item() for part in parts] == [1, 11]
    assert [part.levels.tolist() for part in parts] == [[0], [1]]
    assert all(part.anchor_free.all() for part in parts)


def test_predictions_stay_as_they_are():
    logits = torch.randn(5, 3)
    before = logits.clone()
    decode_points(
        [logits],
        [torch.zeros(5, 4)],
        [torch.zeros(5, 4)],
        lambda deltas, boxes: boxes,
        score_thresh=0.05,
        topk_candidates=10,
    )
    assert torch.equal(logits, before)


def test_best_rows_hold_the_best_pairs():
    for logits in (torch.randn(300, 5), torch.randint(-2, 3, (300, 5)).float()):
        rows = best_rows(logits, 40)
        assert (rows[1:] > rows[:-1]).all()
        cut = logits.flatten().topk(40).values[-1]
        pairs = (logits >= cut).any(dim=1).nonzero().squeeze(1)
        assert set(pairs.tolist()) <= set(rows.tolist())


def test_best_rows_are_those_of_the_scores_where_scores_saturate():
    logits = torch.tensor([[40.0], [30.0], [35.0], [-1.0]])
    assert best_rows(logits, 1).tolist() == [0, 1, 2]


def test_best_rows_are_found_beside_rows_that_are_no_numbers():
    logits = torch.tensor([[nan, 3.0], [nan, nan], [nan, 1.0], [2.0, 0.0], [-inf, nan]])
    assert best_rows(logits, 2).tolist() == [0, 3]


def part(boxes, scores, level, anchor_free, classes=None) -> Candidates:
    count = len(boxes)
    return Candidates(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores),
        torch.tensor(classes or [0] * count, dtype=torch.int64),
        torch.full((count,), level),
        torch.full((count,), anchor_free),
    )


def test_clipping_drops_what_lies_off_the_image():
    boxes = [(-5, -5, 8, 8), (90, 0, 99, 9), (3, 3, 3, 9), (0, 50, 10, 60), (70, 30, 90, 60)]
    clipped = clip_to_image(part(boxes, [0.9, 0.8, 0.7, 0.6, 0.5], 1, True), (50, 80))
    assert clipped.boxes.tolist() == [[0, 0, 8, 8], [70, 30, 80, 50]]
    assert clipped.scores.tolist() == torch.tensor([0.9, 0.5]).tolist()


def merged(parts, *, nms_per_level, max_detections=100):
    return merge(parts, nms_thresh=0.5, max_detections=max_detections, nms_per_level=nms_per_level)


BOX = (0, 0, 10, 10)
SHIFTED = (0, 0, 10, 7)  # IoU 0.7 with BOX
FURTHER = (0, 3, 10, 7)  # IoU 0.4 with BOX, 4/7 = 0.57 with SHIFTED


def test_branches_and_levels_suppress_each_other():
    parts = [part([BOX], [0.9], 0, False), part([SHIFTED], [0.8], 1, True)]
    detections = merged(parts, nms_per_level=False)
    assert detections.scores.tolist() == torch.tensor([0.9]).tolist()
    assert detections.levels.tolist() == [0] and detections.anchor_free.tolist() == [False]


def test_classes_do_not_suppress_each_other():
    parts = [part([BOX, BOX], [0.9, 0.8], 0, False, classes=[0, 1])]
    assert len(merged(parts, nms_per_level=False).scores) == 2


def test_per_level_suppression_comes_first():
    # Over all levels: BOX removes SHIFTED, so FURTHER stays. Level 1 by itself: SHIFTED removes
    # FURTHER before BOX removes SHIFTED.
    parts = [part([BOX], [0.9], 0, False), part([SHIFTED, FURTHER], [0.8, 0.7], 1, False)]
    assert len(merged(parts, nms_per_level=False).scores) == 2
    assert len(merged(parts, nms_per_level=True).scores) == 1


def test_per_level_suppression_keeps_levels_branches_and_classes_apart():
    # SHIFTED would remove FURTHER, but each pair differs in level, branch or class.
    for other in [(2, False, 0), (1, True, 0), (1, False, 1)]:
        level, anchor_free, label = other
        parts = [
            part([BOX], [0.9], 0, False),
            part([SHIFTED], [0.8], 1, False),
            part([FURTHER], [0.7], level, anchor_free, classes=[label]),
        ]
        assert len(merged(parts, nms_per_level=True).scores) == 2, other


def test_per_level_suppression_is_exact_far_from_the_origin():
    # IoU 0.502 and 0.498: rounding a shift of the groups to 1/16 px would turn these about.
    parts = []
    for level in range(5):
        for anchor_free in (False, True):
            boxes = [
                (1300, 1300, 1310, 1310),
                (1300, 1300, 1310, 1305.02),
                (1300, 1300, 1310, 1304.98),
            ]
            parts.append(
                part([boxes[0], boxes[1]], [0.9, 0.8], level, anchor_free, classes=[79, 79])
            )
            parts.append(
                part([boxes[0], boxes[2]], [0.9, 0.8], level, anchor_free, classes=[78, 78])
            )
    all_parts = Candidates(*(torch.cat(field) for field in zip(*parts)))
    kept = _nms_within_parts(all_parts, 0.5)
    assert (all_parts.classes[kept] == 79).sum() == 10
    assert (all_parts.classes[kept] == 78).sum() == 20


def test_best_first_and_no_more_than_asked_for():
    boxes = [(20 * i, 0, 20 * i + 10, 10) for i in range(8)]
    scores = [0.3, 0.9, 0.5, 0.7, 0.2, 0.8, 0.4, 0.6]
    detections = merged([part(boxes, scores, 0, True)], nms_per_level=True, max_detections=3)
    torch.testing.assert_close(detections.scores, torch.tensor([0.9, 0.8, 0.7]))


def test_nothing_in_nothing_out():
    for nms_per_level in (False, True):
        assert len(merged([part([], [], 0, False)], nms_per_level=nms_per_level).scores) == 0


def test_without_per_level_suppression_it_is_one_batched_nms():
    boxes = torch.rand(300, 2) * 50
    boxes = torch.cat([boxes, boxes + 1 + torch.rand(300, 2) * 30], dim=1)
    scores, classes = torch.rand(300), torch.randint(5, (300,))
    levels, branch = torch.randint(5, (300,)), torch.rand(300) > 0.5
    keep = batched_nms(boxes, scores, classes, 0.5)[:100]
    detections = merged([Candidates(boxes, scores, classes, levels, branch)], nms_per_level=False)
    assert torch.equal(detections.boxes, boxes[keep])
    assert torch.equal(detections.levels, levels[keep])
