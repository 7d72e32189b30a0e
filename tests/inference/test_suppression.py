import pytest
import torch
from detectron2.layers import batched_nms
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from fsaf_d2.inference.candidates import NONE, Candidates, clip_to_images, of_each_image, resized
from fsaf_d2.inference.suppression import Suppression, _nms_within_parts, part_of


def only(candidates: Candidates) -> Candidates:
    """The candidates of the one image."""
    (found,) = of_each_image(candidates)
    return found


def part(boxes, scores, level, branch, classes=None) -> Candidates:
    """Candidates of one image."""
    count = len(boxes)
    return Candidates(
        torch.tensor(boxes, dtype=torch.float32).reshape(1, -1, 4),
        torch.tensor(scores)[None],
        torch.tensor(classes or [0] * count, dtype=torch.int64)[None],
        torch.full((1, count), level),
        torch.full((1, count), int(branch)),
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


def both_ways(suppression: Suppression, candidates: Candidates) -> tuple[list, list]:
    """Merge as on a CPU and as on a GPU."""
    merges = suppression._merge_each, suppression._merge_jointly
    return tuple(of_each_image(merge(candidates)) for merge in merges)


def merged(parts, *, nms_per_level, max_detections=100) -> Candidates:
    """Merge one image both ways, which must agree."""
    candidates = Candidates(*(torch.cat(field, dim=1) for field in zip(*parts)))
    (one,), (other,) = both_ways(Suppression(0.5, max_detections, nms_per_level), candidates)
    assert all(torch.equal(x, y) for x, y in zip(one, other))
    return one


BOX = (0, 0, 10, 10)
SHIFTED = (0, 0, 10, 7)  # IoU 0.7 with BOX
FURTHER = (0, 3, 10, 7)  # IoU 0.4 with BOX, 4/7 = 0.57 with SHIFTED


def test_branches_and_levels_suppress_each_other():
    parts = [part([BOX], [0.9], 0, False), part([SHIFTED], [0.8], 1, True)]
    detections = merged(parts, nms_per_level=False)
    assert detections.scores.tolist() == torch.tensor([0.9]).tolist()
    assert detections.levels.tolist() == [0] and detections.branches.tolist() == [0]


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
    for other in [(2, 0, 0), (1, 1, 0), (1, 0, 1)]:
        level, branch, label = other
        parts = [
            part([BOX], [0.9], 0, False),
            part([SHIFTED], [0.8], 1, False),
            part([FURTHER], [0.7], level, branch, classes=[label]),
        ]
        assert len(merged(parts, nms_per_level=True).scores) == 2, other


def test_per_level_suppression_is_exact_far_from_the_origin():
    # IoU 0.502 and 0.498: rounding a shift of the groups to 1/16 px, or 2 px, would turn these
    # about.
    parts = []
    for level in range(5):
        for branch in (0, 1):
            boxes = [
                (1301, 1301, 1311, 1311),
                (1301, 1301, 1311, 1306.02),
                (1301, 1301, 1311, 1305.98),
            ]
            parts.append(part([boxes[0], boxes[1]], [0.9, 0.8], level, branch, classes=[79, 79]))
            parts.append(part([boxes[0], boxes[2]], [0.9, 0.8], level, branch, classes=[78, 78]))
    all_parts = Candidates(*(torch.cat(field, dim=1)[0] for field in zip(*parts)))
    groups = all_parts.classes * 256 + part_of(all_parts.levels, all_parts.branches)
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
    levels, branch = torch.randint(5, (300,)), torch.randint(3, (300,))
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
        torch.randint(3, shape),
    )


@pytest.mark.parametrize("nms_per_level", [False, True])
@pytest.mark.parametrize("side", [40.0, 1300.0])
def test_images_are_merged_jointly_as_one_by_one(nms_per_level, side):
    """Also where the best 1024 leave too few: on 40 x 40 pixels with one class nearly all go."""
    candidates = crowd(4, 3000, 1 if side < 100 else 80, side)
    each, jointly = both_ways(Suppression(0.5, 100, nms_per_level), candidates)
    assert [len(image.scores) for image in each] == [len(image.scores) for image in jointly]
    assert len(each[0].scores) == 0 and len(each[1].scores) > 10
    for one, other in zip(each, jointly):
        assert all(torch.equal(x, y) for x, y in zip(one, other))


@pytest.mark.parametrize("nms_per_level", [False, True])
def test_all_candidates_are_looked_at_where_the_best_leave_too_few(nms_per_level):
    """The best 1500 of an image lie upon each other; only behind them there are other boxes."""
    boxes = torch.tensor(BOX, dtype=torch.float32).repeat(2, 2000, 1)
    boxes[1, 1500:] += 20 * torch.arange(1, 501)[:, None]
    fields = torch.zeros(2, 2000, dtype=torch.int64)
    scores = torch.linspace(0.9, 0.1, 2000).repeat(2, 1)
    candidates = Candidates(boxes, scores, fields, fields, fields)
    (_, each), (first, jointly) = both_ways(Suppression(0.5, 100, nms_per_level), candidates)
    assert len(first.scores) == 1 and len(jointly.scores) == 100
    assert torch.equal(jointly.boxes[1:], boxes[1, 1500:1599])
    assert all(torch.equal(x, y) for x, y in zip(each, jointly))


def test_many_classes_on_a_large_image_lose_no_digits():
    """IoU 0.502 and 0.498, which float32 cannot tell where classes are shifted far apart."""
    corner, count = 30_000.0, 1200
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 5.02], [0, 0, 10, 10], [0, 0, 10, 4.98]])
    boxes = (boxes + corner).repeat(count // 2, 1)[None]
    # As far as boxes reach, classes are shifted apart.
    boxes[0, 0] = torch.tensor([0, 0, 10, 10])
    classes = torch.arange(count).repeat_interleave(2)[None]
    scores, zeros = torch.tensor([0.9, 0.8]).repeat(1, count), torch.zeros_like(classes)
    candidates = Candidates(boxes, scores, classes, zeros, zeros)
    (found,) = of_each_image(Suppression(0.5, 3 * count)._merge_jointly(candidates))
    counts = found.classes.bincount(minlength=count)
    assert counts[0] == 2 and counts[2:].view(-1, 2).unique(dim=0).tolist() == [[1, 2]]


def test_batches_are_resized_as_detectron2_resizes_each_image():
    found = crowd(3, 60, 5, 90.0)
    sizes, wanted = [(80, 90), (64, 70), (90, 30)], [(333, 400), (32, 35), (90, 30)]
    for image, given, asked, batched in zip(
        of_each_image(found),
        sizes,
        wanted,
        of_each_image(resized(found, torch.tensor(sizes), torch.tensor(wanted))),
    ):
        one = Instances(given, pred_boxes=Boxes(image.boxes), scores=image.scores)
        expected = detector_postprocess(one, *asked)
        assert torch.equal(batched.boxes, expected.pred_boxes.tensor)
        assert torch.equal(batched.scores, expected.scores)


def test_a_batch_is_waited_for_four_times_at_most(monkeypatch):
    """What reads values: suppression once or twice, the end of the search, and the last counts."""
    waits = []
    for name in ("tolist", "item", "nonzero", "__bool__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, original=original, name=name, **kwargs):
            waits.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    found = Suppression()._merge_jointly(crowd(16, 500, 80, 1300.0))
    sizes = torch.full((16, 2), 1400)
    of_each_image(resized(found, sizes, sizes))
    # Beside these, torchvision's NMS waits for itself.
    assert len(waits) <= 3
