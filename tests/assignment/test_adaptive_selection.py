"""Who answers for an object by ATSS, by hand: points of stride 8 lie at 4, 12, 20, 28."""

import math

import pytest
import torch
from models import SIZES, STRIDES, grid_of, instances, random_instances
from reference import atss as reference
from reference.fsaf import Level, Object

from fsaf_d2.assignment import adaptive_selection
from fsaf_d2.assignment.adaptive_selection import assign_atss, nearest_cells
from fsaf_d2.assignment.anchors import AnchorKinds
from fsaf_d2.assignment.grid import Cells, Grid
from fsaf_d2.assignment.objects import Objects

ONE_LEVEL = Grid.of([8], [(4, 4)], torch.device("cpu"))


def squares(*sides: float) -> AnchorKinds:
    """Anchors of such sides in every cell of one level."""
    half = torch.tensor(sides)[:, None] / 2
    return AnchorKinds(torch.cat([-half, -half, half, half], dim=1), len(sides), 0.5)


def positives(*boxes, sides=(16.0,), top_k=1, offset=0.5) -> list[tuple[int, int]]:
    """(anchor, object) in one image of one level."""
    objects = Objects.of([instances(boxes, torch.arange(len(boxes)))])
    kinds = squares(*sides)._replace(offset=offset)
    found = assign_atss(kinds, objects, ONE_LEVEL, num_images=1, top_k=top_k)
    assert (found.labels == 1).all() and (found.image_index == 0).all()
    return list(zip(found.anchor_index.tolist(), found.object_index.tolist()))


def test_the_threshold_is_mean_plus_deviation():
    """Cells 5, 1 and 4: IoUs 1, 1/3, 1/3; 5/9 + sqrt(4/27) = 0.94. With cell 6 it is 0.83."""
    assert positives((4, 4, 20, 20), top_k=3) == [(5, 0)]
    assert positives((4, 4, 20, 20), top_k=4) == [(5, 0)]


def test_the_deviation_is_that_of_a_sample():
    """IoUs 1 and 1/3: 2/3 + sqrt(2)/3 is more than 1, while 2/3 + 1/3 would not be."""
    assert positives((4, 4, 20, 20), top_k=2) == []


def test_candidates_as_good_as_all_others_are_positive():
    """Nine anchors within an object: none is above the mean, and there is no deviation."""
    assert len(positives((-100, -100, 207, 207), top_k=9)) == 9
    assert len(positives((-100, -100, 207, 207), top_k=99)) == 16


@pytest.mark.parametrize("side", [50, 61, 77, 99, 123, 150, 181])
def test_rounding_the_mean_of_equal_ious_takes_no_candidate(side):
    assert len(positives((16 - side, 16 - side, 16 + side, 16 + side), top_k=9)) == 9


def test_points_may_lie_on_the_corners_of_cells():
    """Points at 0, 8, 16, 24: cell 5's is (8, 8), and (8, 16) of cell 9 is as near as (8, 8)."""
    assert positives((0, 0, 16, 16), offset=0.0) == [(5, 0)]
    assert positives((0, 4, 16, 20), offset=0.0) == [(5, 0)]


def test_centres_on_the_border_are_not_inside():
    """Cells 4 and 5, about x = 4 and 12, overlap equally, and so are at the threshold."""
    assert positives((4, 8, 12, 16), top_k=2) == []
    assert positives((8, 4, 16, 12), top_k=2) == []
    assert positives((3.5, 8, 12.5, 16), top_k=2) == [(4, 0), (5, 0)]


def test_centres_are_the_points_whatever_the_side():
    """The corners of anchors of such sides are no numbers of float32."""
    for side in torch.linspace(20, 64, 50).tolist():
        assert positives((4, 8, 12, 16), sides=(side,), top_k=2) == []
        assert positives((20, 8, 28, 16), sides=(side,), top_k=2) == []


def test_an_anchor_answers_for_the_object_of_highest_iou():
    """IoUs with (4, 4, 20, 20): 1 - 1/16 and 1 - 2/16."""
    near, far = (4, 4, 20, 19), (4, 4, 20, 18)
    assert positives(near, far) == [(5, 0)]
    assert positives(far, near) == [(5, 1)]


def test_of_equal_ious_the_smallest_object_comes_first():
    """Half of the anchor, or twice the anchor: an IoU of 1/2 with either."""
    small, large = (4, 8, 20, 16), (4, -4, 20, 28)
    assert positives(small, large) == [(5, 0)]
    assert positives(large, small) == [(5, 1)]


def test_all_anchors_of_a_cell_are_candidates():
    """IoUs 1, 1/4, 1/4 in cell 5: 1/2 + sqrt(3)/4 = 0.93."""
    assert positives((4, 4, 20, 20), sides=(16.0, 32.0, 32.0)) == [(15, 0)]
    assert positives((4, 4, 20, 20), sides=(32.0, 32.0, 16.0)) == [(17, 0)]


@pytest.mark.parametrize(
    "box",
    [
        *((12, 4, 12, 20), (4, 12, 20, 12), (12, 12, 12, 12), (20, 20, 4, 4)),
        *((-90, -90, -60, -60), (900, 0, 990, 32), (math.nan, 4, 20, 20)),
        *((-math.inf, 4, math.inf, 20), (4, 4, math.inf, math.inf)),
    ],
)
@pytest.mark.parametrize("top_k", [1, 9])
def test_odd_boxes_have_no_anchor_and_take_none(box, top_k):
    assert positives(box, top_k=top_k) == []
    alone = positives((4, 4, 20, 20), top_k=top_k)
    assert positives((4, 4, 20, 20), box, top_k=top_k) == alone != []


def test_without_objects_there_are_none():
    assert positives() == []


def test_images_have_their_own():
    """In the order of anchor and image; a single candidate is at its own IoU."""
    boxes = torch.tensor([[4.0, 4, 20, 20], [12, 4, 28, 20], [4, 4, 20, 20]])
    objects = Objects(boxes, torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]))
    found = assign_atss(squares(16.0), objects, ONE_LEVEL, num_images=3, top_k=1)
    expected = [[0, 2, 1], [5, 5, 6], [0, 2, 1], [1, 1, 1]]
    assert [field.tolist() for field in found] == expected


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_nearest_cells_are_those_of_a_search(offset, count):
    """Among all, also for centres off the map and on borders of cells; 1 x 2 cells are few."""
    sizes = [(7, 13), (4, 7), (2, 4), (1, 2), (1, 1)]
    grid = grid_of(sizes)
    centers = torch.rand(40, 2) * torch.tensor([104.0, 56.0])
    centers[10:20] = (centers[10:20] / 8).round() * 8
    centers[20:30] = (centers[20:30] / 4).round() * 4
    centers[30:] = centers[30:] * 9 - 200
    boxes = torch.cat([centers - 3, centers + 3], dim=1).double()
    found = nearest_cells(boxes, grid, count, offset)
    for (x, y), row in zip(((boxes[:, :2] + boxes[:, 2:]) / 2).tolist(), found.tolist()):
        expected = []
        for stride, (height, width), start in zip(STRIDES, sizes, grid.starts.tolist()):
            cells = [
                (((i + offset) * stride - x) ** 2 + ((j + offset) * stride - y) ** 2, j * width + i)
                for j in range(height)
                for i in range(width)
            ]
            expected += [start + cell for _, cell in sorted(cells)[:count]]
        assert row == expected


def test_the_nearest_cells_of_no_place_at_all_are_on_the_map():
    nan, inf = math.nan, math.inf
    boxes = torch.tensor([[nan, nan, nan, nan], [-inf, -inf, 8, 8], [8, -inf, inf, inf]]).double()
    for cells in nearest_cells(boxes, ONE_LEVEL, 3, 0.5).tolist():
        assert len(set(cells)) == 3 and min(cells) >= 0 and max(cells) < 16


def matches(ground_truths, kinds=None):
    """The class and the box of what each anchor answers for."""
    kinds = kinds or AnchorKinds.of_points(STRIDES, 8.0, 0.5)
    objects = Objects.of(ground_truths)
    found = assign_atss(kinds, objects, grid_of(), num_images=len(ground_truths))
    owner = found.object_index
    return *found[:2], objects.classes[owner], objects.boxes[owner]


def test_the_order_of_objects_changes_nothing():
    gt = random_instances(60)
    gt.gt_boxes.tensor[30:] = gt.gt_boxes.tensor[:30]
    order = torch.randperm(60)
    for one, other in zip(matches([gt]), matches([gt[order]])):
        assert torch.equal(one, other)


def test_pieces_change_nothing(monkeypatch):
    ground_truths = [random_instances(25), random_instances(0), random_instances(9)]
    expected = matches(ground_truths)
    monkeypatch.setattr(adaptive_selection, "MAX_LISTED", 100)
    assert all(map(torch.equal, expected, matches(ground_truths)))
    assert len(expected[0]) > 50


@pytest.mark.parametrize("sizes", [SIZES, [(11, 13), (6, 7), (3, 4), (2, 2), (1, 1)]])
@pytest.mark.parametrize(("offset", "top_k"), [(0.5, 9), (0.0, 9), (0.25, 4)])
def test_positives_equal_the_reference(sizes, offset, top_k):
    """Random boxes, boxes of whole cells (whose distances tie), the same ones again, and odd ones.

    They may lie partly or wholly off the map.
    """
    ground_truths = [random_instances(count) for count in (14, 0, 8)]
    whole = (ground_truths[0].gt_boxes.tensor[:6] / 8).round() * 8
    again = torch.cat([whole, whole[:2], whole[2:4] + 200, torch.tensor([[8.0, 8, 8, 40]])])
    ground_truths.append(instances(again, torch.arange(len(again)) % 7))
    listed = [
        Object(image, tuple(box), label)
        for image, gt in enumerate(ground_truths)
        for box, label in zip(gt.gt_boxes.tensor.tolist(), gt.gt_classes.tolist())
    ]
    levels = [Level(stride, *size) for stride, size in zip(STRIDES, sizes)]
    expected = reference.assign(listed, levels, offset, top_k)
    kinds, grid = AnchorKinds.of_points(STRIDES, 8.0, offset), grid_of(sizes)
    objects = Objects.of(ground_truths)
    matched = assign_atss(kinds, objects, grid, num_images=4, top_k=top_k)
    cells = Cells.at(matched.anchor_index, grid)
    places = torch.stack([matched.image_index, cells.level, cells.y, cells.x], dim=1).tolist()
    found = {tuple(place): listed[index] for place, index in zip(places, matched.object_index)}
    assert found == expected and len(found) > 20
    order = matched.anchor_index * 4 + matched.image_index
    assert (order[1:] > order[:-1]).all()
