"""Which locations lie in a box is checked against a loop over all of them."""

import pytest
import torch
from models import NUM_CLASSES, SIZES, STRIDES, grid_of, random_instances

from fsaf_d2.assignment import inside_boxes
from fsaf_d2.assignment.inside_boxes import fill_bags, inside_cells, points_of
from fsaf_d2.assignment.objects import Objects

CPU = torch.device("cpu")


def places_of(pairs_of, bags) -> list[tuple[int, int]]:
    """(bag, location) of all pairs."""
    return [
        (bag + pairs.bags.start, location)
        for pairs in pairs_of()
        for bag, location in zip(pairs.bag.tolist(), pairs.location.tolist())
    ]


def written_out(boxes, offset) -> list[tuple[int, int]]:
    found = []
    for index, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        location = 0
        for stride, (height, width) in zip(STRIDES, SIZES):
            for y in range(height):
                for x in range(width):
                    inside = x0 < (x + offset) * stride < x1 and y0 < (y + offset) * stride < y1
                    found += [(index, location)] if inside else []
                    location += 1
    return found


def bags_of(boxes, offset=0.5):
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    count = len(boxes)
    objects = Objects(boxes, torch.arange(count) % NUM_CLASSES, torch.zeros(count).long())
    return fill_bags(objects, grid_of(), point_offset=offset)


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_all_locations_inside_on_all_levels(offset):
    boxes = random_instances(20).gt_boxes.tensor
    boxes[::2] = (boxes[::2] / 4).round() * 4  # sides on points
    bags = bags_of(boxes, offset)
    expected = written_out(boxes, offset)
    held = sorted({index for index, _ in expected})
    assert torch.equal(bags.objects.boxes, boxes[held])
    found = places_of(bags.pairs(grid_of(), CPU), bags)
    assert [(held[bag], location) for bag, location in found] == expected


def test_a_location_on_a_side_is_not_inside():
    """Points of stride 8 are 4, 12, 20, ...; of stride 16 they are 8, 24; of stride 32, 16."""
    cells = inside_cells(torch.tensor([[4.0, 4, 20, 21]]), grid_of())[0]
    assert cells[:3].tolist() == [[1, 1, 2, 3], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert bags_of([(4, 4, 12, 40)]).cells[0, 0].tolist() == [1, 1, 1, 5]


def test_objects_that_hold_no_location_have_no_bag():
    nan, inf = float("nan"), float("inf")
    nothing = [(9, 9, 11.9, 11.9), (30, 30, 30, 60), (900, 900, 960, 960), (-90, -90, -9, -9)]
    odd = [(nan, 0, 50, 50), (0, 0, 50, nan), (-inf, 0, inf, 60), (0, 0, inf, 60), (60, 60, 20, 20)]
    bags = bags_of([*nothing, (0, 0, 50, 50), *odd])
    assert bags.objects.boxes.tolist() == [[0, 0, 50, 50]]


def test_boxes_over_the_border_hold_the_locations_of_the_map():
    bags = bags_of([(-1e9, -50, 1e9, 3000)])
    assert bags.cells[0].tolist() == [[0, 0, width, height] for height, width in SIZES]


def test_pieces_hold_whole_bags_and_all_pairs(monkeypatch):
    bags = bags_of(random_instances(30).gt_boxes.tensor)
    whole = places_of(bags.pairs(grid_of(), CPU), bags)
    (one,) = bags.pairs(grid_of(), CPU)()
    monkeypatch.setitem(inside_boxes.MAX_PAIRS, "cpu", 20)
    for kept in (1 << 20, 0):
        monkeypatch.setattr(inside_boxes, "MAX_KEPT", kept)
        list_pairs = bags.pairs(grid_of(), CPU)
        for _ in range(2):  # each time the same
            pieces = list(list_pairs())
            assert len(pieces) > 5
            assert places_of(list_pairs, bags) == whole
            assert torch.equal(torch.cat([piece.region for piece in pieces]), one.region)
            assert sum(piece.num_bags for piece in pieces) == len(bags.cells)


def test_regions_are_bags_and_levels():
    bags = bags_of([(0, 0, 40, 40), (20, 20, 90, 90)])
    (pairs,) = bags.pairs(grid_of(), CPU)()
    level = torch.bucketize(pairs.location, grid_of().starts, right=True) - 1
    assert torch.equal(pairs.region, pairs.bag * 5 + level)


def test_points_and_centres_are_in_strides_of_their_level():
    points = points_of(grid_of(), CPU, 0.25)
    second = int(grid_of().starts[1]) + 10 + 3  # stride 16, y 1, x 3
    assert points[:, second].tolist() == [3.25, 1.25]
    centers = bags_of([(0, 0, 40, 80)]).centers(grid_of())
    assert centers[:, 0, 1].tolist() == [20 / 16, 40 / 16]
