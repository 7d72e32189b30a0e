import pytest
import torch
from detectron2.layers import batched_nms
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K

from fsaf_d2.inference import (
    NONE,
    Candidates,
    _nms_within_parts,
    best_rows,
    clip_to_images,
    decode_level,
    merge_each,
    merge_jointly,
    stable_topk,
)

inf, nan = float("inf"), float("nan")


def decode(logits, deltas, *, score_thresh=0.05, topk_candidates=1000) -> Candidates:
    """Decode a level of locations in one row, with (R, K) logits and (R, 4) deltas from (0, 0)."""
    found, _ = decode_level(
        torch.as_tensor(logits).T[None, :, None],
        torch.as_tensor(deltas).T[None, :, None],
        lambda index: torch.zeros(*index.shape, 4),
        lambda deltas, boxes: boxes + deltas,
        num_classes=len(logits[0]),
        score_thresh=score_thresh,
        topk_candidates=topk_candidates,
        level=0,
        anchor_free=True,
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
    found, shared = decode_level(
        logits.contiguous(memory_format=memory_format),
        deltas.contiguous(memory_format=memory_format),
        lambda index: boxes[index],
        lambda deltas, boxes: boxes + deltas,
        num_classes=4,
        score_thresh=0.6,
        topk_candidates=25,
        level=3,
        anchor_free=False,
    )
    assert (shared == NONE).all()
    for image in range(2):
        best, index = scores[image].flatten().sort(descending=True)
        count = min(int((best > 0.6).sum()), 25)
        index = index[:count]
        expected = boxes[index // 4] + permute_to_N_HWA_K(deltas, 4)[image][index // 4]
        assert torch.equal(found.scores[image, :count], best[:count])
        assert torch.equal(found.boxes[image, :count], expected)
        assert torch.equal(found.classes[image, :count], index % 4)
        assert (found.scores[image, count:] == NONE).all()
    assert (found.levels == 3).all() and not found.anchor_free.any()


@pytest.mark.parametrize(
    ("logits", "shared"),
    [
        ([5.0, 4.0, 3.0, 2.0], None),
        ([5.0, 5.0, 3.0, 3.0], 5.0),
        ([5.0, 4.0, 3.0, 3.0], 3.0),  # taken and left out
        ([5.0, 4.0, 3.0, 2.0, 2.0], None),  # both left out
        ([5.0, -9.0, -9.0], None),  # below the threshold
        ([5.0], None),
    ],
)
def test_says_which_score_is_shared(logits, shared):
    _, found = decode_level(
        torch.tensor(logits)[None, None, None],
        torch.zeros(1, 4, 1, len(logits)),
        lambda index: torch.zeros(*index.shape, 4),
        lambda deltas, boxes: boxes + deltas,
        num_classes=1,
        score_thresh=0.05,
        topk_candidates=3,
        level=0,
        anchor_free=True,
    )
    assert found == (NONE if shared is None else torch.tensor(shared).sigmoid())


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
        anchor_free=True,
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


def part(boxes, scores, level, anchor_free, classes=None) -> Candidates:
    """Candidates of one image."""
    count = len(boxes)
    return Candidates(
        torch.tensor(boxes, dtype=torch.float32).reshape(1, -1, 4),
        torch.tensor(scores)[None],
        torch.tensor(classes or [0] * count, dtype=torch.int64)[None],
        torch.full((1, count), level),
        torch.full((1, count), anchor_free),
    )


def test_clipping_drops_what_lies_off_the_image():
    boxes = [(-5, -5, 8, 8), (90, 0, 99, 9), (3, 3, 3, 9), (0, 50, 10, 60), (70, 30, 90, 60)]
    candidates = part(boxes, [0.9, 0.8, 0.7, 0.6, 0.5], 1, True)
    size = torch.tensor([[50, 80]])
    clipped = only(clip_to_images(candidates, size, torch.tensor([True])))
    assert clipped.boxes.tolist() == [[0, 0, 8, 8], [70, 30, 80, 50]]
    assert clipped.scores.tolist() == torch.tensor([0.9, 0.5]).tolist()
    untouched = clip_to_images(candidates, size, torch.tensor([False]))
    assert all(torch.equal(one, other) for one, other in zip(untouched, candidates))


def merged(parts, *, nms_per_level, max_detections=100) -> Candidates:
    """Merge one image both ways, which must agree."""
    candidates = Candidates(*(torch.cat(field, dim=1) for field in zip(*parts)))
    (one,), (other,) = (
        merge(
            candidates,
            nms_thresh=0.5,
            max_detections=max_detections,
            nms_per_level=nms_per_level,
        )
        for merge in (merge_each, merge_jointly)
    )
    assert all(torch.equal(x, y) for x, y in zip(one, other))
    return one


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
    all_parts = Candidates(*(torch.cat(field, dim=1)[0] for field in zip(*parts)))
    groups = all_parts.classes * 64 + all_parts.levels * 2 + all_parts.anchor_free
    kept = _nms_within_parts(all_parts.boxes, all_parts.scores, groups, 0.5)
    assert (all_parts.classes[kept] == 79).sum() == 10
    assert (all_parts.classes[kept] == 78).sum() == 20


def test_best_first_and_no_more_than_asked_for():
    boxes = [(20 * i, 0, 20 * i + 10, 10) for i in range(8)]
    scores = [0.3, 0.9, 0.5, 0.7, 0.2, 0.8, 0.4, 0.6]
    detections = merged([part(boxes, scores, 0, True)], nms_per_level=True, max_detections=3)
    torch.testing.assert_close(detections.scores, torch.tensor([0.9, 0.8, 0.7]))


def test_nothing_in_nothing_out():
    for nms_per_level in (False, True):
        assert len(merged([part([BOX], [NONE], 0, False)], nms_per_level=nms_per_level).scores) == 0


def test_without_per_level_suppression_it_is_one_batched_nms():
    boxes = torch.rand(300, 2) * 50
    boxes = torch.cat([boxes, boxes + 1 + torch.rand(300, 2) * 30], dim=1)
    scores, classes = torch.rand(300), torch.randint(5, (300,))
    levels, branch = torch.randint(5, (300,)), torch.rand(300) > 0.5
    keep = batched_nms(boxes, scores, classes, 0.5)[:100]
    candidates = Candidates(*(x[None] for x in (boxes, scores, classes, levels, branch)))
    detections = merged([candidates], nms_per_level=False)
    assert torch.equal(detections.boxes, boxes[keep])
    assert torch.equal(detections.levels, levels[keep])


def crowd(num_images: int, count: int, num_classes: int, side: float) -> Candidates:
    """Boxes of a few sizes that overlap, some places of every image empty, one image all empty."""
    corners = torch.rand(num_images, count, 2) * side - 5
    boxes = torch.cat([corners, corners + 4 + torch.rand(num_images, count, 2) * 30], dim=2)
    scores = torch.rand(num_images, count)
    scores[:, ::7] = NONE
    scores[0] = NONE
    shape = (num_images, count)
    return Candidates(
        boxes,
        scores,
        torch.randint(num_classes, shape),
        torch.randint(5, shape),
        torch.rand(shape) > 0.5,
    )


@pytest.mark.parametrize("nms_per_level", [False, True])
@pytest.mark.parametrize("side", [40.0, 1300.0])
def test_images_are_merged_jointly_as_one_by_one(nms_per_level, side):
    """Also where the best 1024 leave too few: on 40 x 40 pixels with one class nearly all go."""
    candidates = crowd(4, 3000, 1 if side < 100 else 80, side)
    args = {"nms_thresh": 0.5, "max_detections": 100, "nms_per_level": nms_per_level}
    each, jointly = (merge(candidates, **args) for merge in (merge_each, merge_jointly))
    assert [len(image.scores) for image in each] == [len(image.scores) for image in jointly]
    assert len(each[0].scores) == 0 and len(each[1].scores) > 10
    for one, other in zip(each, jointly):
        assert all(torch.equal(x, y) for x, y in zip(one, other))
