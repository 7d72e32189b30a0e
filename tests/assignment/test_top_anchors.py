"""The best anchors of every object, against all pairs written out."""

import pytest
import torch
from models import ANCHORS_ONLY, SIZES, grid_of, instances, random_instances, tiny_model

from fsaf_d2.assignment import top_anchors
from fsaf_d2.assignment.anchor_matching import paired_iou
from fsaf_d2.assignment.anchors import AnchorKinds
from fsaf_d2.assignment.objects import Objects, smallest_first
from fsaf_d2.assignment.top_anchors import assign_top_anchors

ODD_SIZES = [(13, 17), (7, 9), (4, 5), (2, 3), (1, 2)]
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def kinds() -> AnchorKinds:
    return tiny_model(*ANCHORS_ONLY).branches.anchor.kinds


def found(kinds, ground_truths, count, sizes=SIZES) -> list[tuple]:
    """(anchor, image, object) of what was assigned."""
    args = {"num_images": len(ground_truths), "count": count}
    matches = assign_top_anchors(kinds, Objects.of(ground_truths), grid_of(sizes), **args)
    assert (matches.labels == 1).all()
    fields = (matches.anchor_index, matches.image_index, matches.object_index)
    return list(zip(*(field.tolist() for field in fields)))


def expected(kinds, ground_truths, count, sizes=SIZES) -> list[tuple]:
    objects, grid = Objects.of(ground_truths), grid_of(sizes)
    kinds = kinds._replace(cell_anchors=kinds.cell_anchors.double())
    anchors = kinds.boxes(torch.arange(grid.num_locations * kinds.num_per_location), grid)
    iou = paired_iou(objects.boxes[:, None].double(), anchors).float()
    rank = smallest_first(objects).argsort()
    result = set()
    for image, row in zip(objects.image_index, iou):
        same = (objects.image_index == image).nonzero().squeeze(1)
        for anchor in row.argsort(descending=True, stable=True)[:count].tolist():
            if row[anchor] > 0:
                best = same[iou[same, anchor] == iou[same, anchor].max()]
                owner = best[rank[best].argmin()].item()
                result.add((anchor, image.item(), owner))
    return sorted(result)


@pytest.mark.parametrize("sizes", [SIZES, ODD_SIZES])
@pytest.mark.parametrize("count", [1, 7, 30, 60])
def test_they_are_the_best_of_all_pairs(kinds, count, sizes):
    torch.manual_seed(count)
    truth = [random_instances(x) for x in (5, 0, 40, 1)]
    assert found(kinds, truth, count, sizes) == expected(kinds, truth, count, sizes)


def test_where_many_ious_tie(kinds):
    """Boxes of whole strides: an object has several best anchors, and an anchor several objects."""
    torch.manual_seed(0)
    corners = torch.randint(0, 8, (40, 2)) * 16
    sizes = 2 ** torch.randint(0, 4, (40, 2)) * 16
    gt = instances(torch.cat([corners, corners + sizes], dim=1), torch.arange(40) % 7)
    assert found(kinds, [gt], 30) == expected(kinds, [gt], 30)


@pytest.mark.parametrize(
    "boxes",
    [
        [(0, 0, 3, 3), (156, 124, 160, 128), (50, 50, 50.5, 90)],
        [(0, 0, 160, 128), (-300, -300, 700, 700), (0, 50, 160, 51)],
        [(150, 50, 280, 90), (-60, -60, 2, 2), (-200, -200, -120, -120)],
    ],
    ids=["tiny", "huge", "over the border"],
)
def test_odd_boxes_have_the_best_of_all_pairs(kinds, boxes):
    gt = instances(boxes, range(len(boxes)))
    assert found(kinds, [gt], 30) == expected(kinds, [gt], 30)


def test_more_than_there_are_gives_all_that_overlap(kinds):
    gt = instances([(-20, -20, 4, 4)], [0])
    sizes = [(1, 1)] * 5
    overlapping = found(kinds, [gt], 1000, sizes)
    assert overlapping == expected(kinds, [gt], 1000, sizes) and 0 < len(overlapping) <= 45
    far = instances([(3000, 3000, 3010, 3010)], [0])
    assert found(kinds, [far], 30) == []


@pytest.mark.parametrize(
    "box",
    [(5, 5, 5, 40), (30, 30, 30, 30), (NAN, 0, 50, 50), (-INF, 0, 9, 9), (-INF, -INF, INF, INF)],
)
def test_a_box_without_an_area_or_an_end_has_none(kinds, box):
    assert found(kinds, [instances([box], [0])], 30) == []
    other = (20, 20, 60, 70)
    alone = found(kinds, [instances([other], [0])], 30)
    both = found(kinds, [instances([box, other], [0, 0])], 30)
    assert both == [(anchor, image, 1) for anchor, image, _ in alone]


def test_of_equals_the_first_anchors_count():
    """Of four unit cells in a row, a box over all has an IoU of 1/4 with each."""
    kinds = AnchorKinds.of_points([8], side=1.0, offset=0.5)
    grid = grid_of([(1, 4)] + [(1, 1)] * 4)
    grid = type(grid)(*(field[:1] for field in grid))
    objects = Objects.of([instances([(0, 0, 32, 8)], [0])])
    for count in (1, 2, 3):
        matches = assign_top_anchors(kinds, objects, grid, num_images=1, count=count)
        assert matches.anchor_index.tolist() == list(range(count))


def test_anchors_that_only_touch_are_not_chosen():
    kinds = AnchorKinds.of_points([8], side=1.0, offset=0.5)
    grid = type(grid_of())(*(field[:1] for field in grid_of([(1, 4)] * 5)))
    objects = Objects.of([instances([(8, 0, 16, 8)], [0])])
    matches = assign_top_anchors(kinds, objects, grid, num_images=1, count=3)
    assert matches.anchor_index.tolist() == [1]


def test_an_anchor_is_the_object_of_highest_iou_not_the_one_that_chose_it():
    """The cell 8..16 is chosen by a box that has half of it; another box has all of it."""
    kinds = AnchorKinds.of_points([8], side=1.0, offset=0.5)
    grid = type(grid_of())(*(field[:1] for field in grid_of([(1, 4)] * 5)))
    small, whole = (8, 0, 12, 8), (8, 0, 16, 8)
    objects = Objects.of([instances([small, whole], [0, 1])])
    matches = assign_top_anchors(kinds, objects, grid, num_images=1, count=1)
    assert matches.anchor_index.tolist() == [1] and matches.object_index.tolist() == [1]


def test_of_equally_good_objects_the_smallest_has_the_anchor():
    """Boxes of 4 x 8 and 16 x 8 have an IoU of 1/2 with the cell 8..16."""
    kinds = AnchorKinds.of_points([8], side=1.0, offset=0.5)
    grid = type(grid_of())(*(field[:1] for field in grid_of([(1, 4)] * 5)))
    boxes = [(8, 0, 24, 8), (8, 0, 12, 8)]
    for order in ([0, 1], [1, 0]):
        objects = Objects.of([instances([boxes[i] for i in order], order)])
        matches = assign_top_anchors(kinds, objects, grid, num_images=1, count=1)
        assert matches.anchor_index.tolist() == [1]
        assert objects.classes[matches.object_index].tolist() == [1]


def test_the_order_of_objects_changes_nothing(kinds):
    torch.manual_seed(3)
    gt = random_instances(60)
    gt.gt_boxes.tensor[30:35] = gt.gt_boxes.tensor[:5].clone()

    def listed(gt):
        boxes, classes = gt.gt_boxes.tensor.tolist(), gt.gt_classes.tolist()
        return [(anchor, boxes[x], classes[x]) for anchor, _, x in found(kinds, [gt], 30)]

    assert listed(gt) == listed(gt[torch.randperm(60)])


@pytest.mark.parametrize("certain", [0.05, 2.0])
def test_pieces_and_the_second_search_change_nothing(kinds, monkeypatch, certain):
    torch.manual_seed(4)
    truth = [random_instances(50), random_instances(3)]
    whole = found(kinds, truth, 30)
    monkeypatch.setattr(top_anchors, "MAX_PAIRS", 9 * 45 * 7)
    monkeypatch.setattr(top_anchors, "CERTAIN", certain)
    assert found(kinds, truth, 30) == whole


def test_far_pairs_are_not_looked_at(kinds):
    torch.manual_seed(0)
    boxes = random_instances(100).gt_boxes.tensor.double()
    double = kinds._replace(cell_anchors=kinds.cell_anchors.double())
    index, _, _, _ = top_anchors._pairs(double, boxes, grid_of(), 30)
    assert len(index) < 0.05 * 100 * 9 * grid_of().num_locations
