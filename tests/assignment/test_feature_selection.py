import itertools
import math

import pytest
import torch
from models import dense_targets
from reference import fsaf as reference

from fsaf_d2.assignment.feature_selection import (
    assign_points,
    level_costs,
    point_box_transform,
    select_levels_by_size,
    select_levels_online,
)
from fsaf_d2.assignment.grid import Grid
from fsaf_d2.assignment.objects import Objects
from fsaf_d2.assignment.regions import region_cells
from fsaf_d2.losses import background_loss_sums

STRIDES = (8, 16, 32, 64, 128)
K = 4

# The image of METHODS' vectors: 1344 x 800 pixels.
LARGE = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
SMALL = [(13, 17), (7, 9), (4, 5), (2, 3), (1, 2)]


def grid(sizes=SMALL) -> Grid:
    return Grid.of(STRIDES, sizes, torch.device("cpu"))


def levels(sizes=SMALL) -> list[reference.Level]:
    return [reference.Level(stride, *size) for stride, size in zip(STRIDES, sizes)]


def pack(objects: list[reference.Object]) -> Objects:
    return Objects(
        torch.tensor([obj.box for obj in objects], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([obj.label for obj in objects], dtype=torch.int64),
        torch.tensor([obj.image for obj in objects], dtype=torch.int64),
    )


def points(sizes=SMALL) -> torch.Tensor:
    """Square boxes of 4 strides about the cells' centres, level after level."""
    boxes = []
    for level in levels(sizes):
        half = 2 * level.stride
        for y, x in itertools.product(range(level.height), range(level.width)):
            px, py = reference.location(level, y, x)
            boxes.append((px - half, py - half, px + half, py + half))
    return torch.tensor(boxes)


def nested(flat: torch.Tensor, sizes=SMALL) -> list:
    """(N, R, C) -> [image][level][y][x][channel], as the reference reads predictions."""
    parts = flat.split([height * width for height, width in sizes], dim=1)
    return [
        [part[i].view(*size, -1).tolist() for part, size in zip(parts, sizes)]
        for i in range(len(flat))
    ]


def random_objects(generator: torch.Generator, count: int, num_images: int):
    """Boxes tiny and huge, nested, of the same class, and partly or wholly off the image."""
    objects = []
    for _ in range(count):
        center = torch.rand(2, generator=generator) * torch.tensor([180.0, 140.0]) - 20
        half = 2 ** (torch.rand(2, generator=generator) * 9 - 1.5)
        corners = torch.cat([center - half, center + half]).tolist()
        image, label = torch.randint(100, (2,), generator=generator).tolist()
        objects.append(reference.Object(image % num_images, tuple(corners), label % K))
    outer = objects[0]
    x0, y0, x1, y1 = outer.box
    quarter_w, quarter_h = (x1 - x0) / 4, (y1 - y0) / 4
    inner = (x0 + quarter_w, y0 + quarter_h, x1 - quarter_w, y1 - quarter_h)
    return [
        *objects,
        outer._replace(box=inner),
        outer._replace(box=inner, label=(outer.label + 1) % K),
    ]


def predictions(generator: torch.Generator, num_images: int):
    num_locations = len(points())
    logits = torch.randn(num_images, num_locations, K, generator=generator)
    deltas = torch.randn(num_images, num_locations, 4, generator=generator).relu()
    return logits, deltas


def costs_of(objects: Objects, logits, deltas, sizes=SMALL) -> torch.Tensor:
    cells = region_cells(objects.boxes, reference.EFFECTIVE, grid(sizes))
    return level_costs(
        logits,
        deltas,
        points(sizes),
        objects,
        cells,
        grid(sizes),
        background_losses=background_loss_sums(
            logits.transpose(1, 2), alpha=reference.ALPHA, gamma=reference.GAMMA
        ),
        focal_loss_alpha=reference.ALPHA,
        focal_loss_gamma=reference.GAMMA,
    )


def targets_of(objects: Objects, selected: torch.Tensor, num_images: int, sizes=SMALL):
    targets = assign_points(
        selected,
        region_cells(objects.boxes, reference.EFFECTIVE, grid(sizes)),
        region_cells(objects.boxes, reference.IGNORE, grid(sizes)),
        objects,
        grid(sizes),
        num_images=num_images,
        num_classes=K,
    )
    return dense_targets(targets, objects, K)


# Box (100, 60, 300, 220): its centre is (200, 140), its effective region 180-220 x 124-156, its
# ignoring region 150-250 x 100-180 pixels; the cells touched at each stride:
@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (0.2, [(22, 15, 28, 20), (11, 7, 14, 10), (5, 3, 7, 5), (2, 1, 4, 3), (1, 0, 2, 2)]),
        (0.5, [(18, 12, 32, 23), (9, 6, 16, 12), (4, 3, 8, 6), (2, 1, 4, 3), (1, 0, 2, 2)]),
    ],
)
def test_regions_computed_by_hand(scale, expected):
    cells = region_cells(torch.tensor([[100.0, 60, 300, 220]]), scale, grid(LARGE))
    assert [tuple(level) for level in cells[0].tolist()] == expected


def test_side_on_a_cell_border_does_not_touch_the_next_cell():
    # Region 16-24 in x and y: cell 2 at stride 8.
    cells = region_cells(torch.tensor([[0.0, 0, 40, 40]]), 0.2, grid())
    assert cells[0, 0].tolist() == [2, 2, 3, 3]
    # Region 16-46 in x: from cell 2. In float32, 0.3 * 100 is 30.000002, and 31 - 15.000001 < 16.
    cells = region_cells(torch.tensor([[-19.0, 0, 81, 40]]), 0.3, grid())
    assert cells[0, 0, 0].item() == 2


@pytest.mark.parametrize(
    "box",
    [(3, 3, 6, 6), (8, 8, 8, 8), (-50, -50, -20, -20), (500, 500, 900, 900), (0, 0, 136, 104)],
)
def test_every_object_owns_a_location_on_every_level(box):
    cells = region_cells(torch.tensor([box], dtype=torch.float32), 0.2, grid())[0]
    for (x0, y0, x1, y1), (height, width) in zip(cells.tolist(), SMALL):
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height


def test_regions_equal_the_reference():
    objects = random_objects(torch.Generator().manual_seed(1), 60, 1)
    for scale in (reference.EFFECTIVE, reference.IGNORE, 1.0):
        cells = region_cells(pack(objects).boxes, scale, grid()).tolist()
        for obj, ranges in zip(objects, cells):
            box = [torch.tensor(side).item() for side in obj.box]  # as float32
            for (x0, y0, x1, y1), level in zip(ranges, levels()):
                expected = reference.region(box, scale, level)
                assert [(y, x) for y in range(y0, y1) for x in range(x0, x1)] == expected


# Mean IoU loss of the box over its effective regions when every distance is b; with equal logits
# everywhere the focal part is the same on all levels: 1.128382 + 79 * 7.5e-7 at the prior.
@pytest.mark.parametrize(
    ("b", "iou_losses", "best"),
    [
        (0.1, [6.660895, 5.274601, 3.888306, 2.502012, 1.659275], 4),
        (1.0, [2.055725, 0.685305, 0.716864, 2.103158, 3.489452], 1),
    ],
)
def test_level_costs_computed_by_hand(b, iou_losses, best):
    num_classes = 80
    num_locations = len(points(LARGE))
    logits = torch.full((1, num_locations, num_classes), -math.log(99))
    deltas = torch.full((1, num_locations, 4), b)
    objects = pack([reference.Object(0, (100, 60, 300, 220), 17)])
    costs = costs_of(objects, logits, deltas, LARGE)
    assert costs[0].tolist() == pytest.approx([1.128441 + loss for loss in iou_losses], abs=2e-5)
    assert select_levels_online(costs).tolist() == [best]


@pytest.mark.parametrize("trial", range(5))
def test_costs_and_levels_equal_the_reference(trial):
    generator = torch.Generator().manual_seed(trial)
    objects = random_objects(generator, 20, num_images=2)
    logits, deltas = predictions(generator, num_images=2)
    costs = costs_of(pack(objects), logits, deltas)
    state = levels(), nested(logits), nested(deltas)
    for obj, row in zip(objects, costs.tolist()):
        expected = [reference.level_cost(obj, index, *state) for index in range(len(STRIDES))]
        assert row == pytest.approx(expected, rel=1e-4)
    assert select_levels_online(costs).tolist() == [
        reference.select_level(obj, *state) for obj in objects
    ]


def test_equal_levels_tie_exactly_and_the_finer_wins():
    # No distance is ever right: IoU is 0 everywhere, and all levels cost the same.
    num_locations = len(points())
    logits = torch.full((1, num_locations, K), -1.7)
    deltas = torch.zeros(1, num_locations, 4)
    objects = pack(
        [reference.Object(0, (5, 10, 5 + 9 * i, 10 + 7 * i), i % K) for i in range(1, 14)]
    )
    costs = costs_of(objects, logits, deltas)
    assert (costs == costs[:, :1]).all()
    assert (select_levels_online(costs) == 0).all()


# (l, t, r, b) from the first effective location of the same box to its sides, over 4 strides
@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (0, (2.5, 2.0, 3.75, 3.0)),
        (1, (1.3125, 0.9375, 1.8125, 1.5625)),
        (2, (0.59375, 0.40625, 0.96875, 0.84375)),
        (3, (0.234375, 0.140625, 0.546875, 0.484375)),
        (4, (0.1796875, 0.0078125, 0.2109375, 0.3046875)),
    ],
)
def test_target_distances_computed_by_hand(level, expected):
    objects = pack([reference.Object(0, (100, 60, 300, 220), 1)])
    targets = targets_of(objects, torch.tensor([level]), 1, LARGE)
    first = (targets.labels[0] != K).nonzero()[0]
    deltas = point_box_transform.get_deltas(points(LARGE)[first], targets.matched_boxes[0][first])
    assert deltas[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_selection_needs_no_gradient():
    logits, deltas = predictions(torch.Generator().manual_seed(0), 1)
    objects = pack(random_objects(torch.Generator().manual_seed(0), 4, 1))
    assert not costs_of(objects, logits.requires_grad_(), deltas.requires_grad_()).requires_grad


# l0 = 5 (third of the levels), 224 px: sqrt(200 * 160) = 179 -> 4; 447 -> 5; 32 -> 2 and 15 -> 1,
# both clamped to 3; 448 -> 6; 5000 -> 9, clamped to 7
@pytest.mark.parametrize(
    ("width", "height", "level"),
    [(200, 160, 4), (224, 224, 5), (500, 400, 5), (32, 32, 3), (15, 15, 3), (448, 448, 6)]
    + [(5000, 5000, 7), (0, 40, 3), (223.9, 223.9, 4)],
)
def test_heuristic_level_computed_by_hand(width, height, level):
    box = (7.0, 9.0, 7.0 + width, 9.0 + height)
    selected = select_levels_by_size(
        torch.tensor([box]), grid(), canonical_level=5, canonical_box_size=224
    )
    assert selected.tolist() == [level - 3]
    assert reference.heuristic_level(box, levels()) == level - 3


def test_twice_the_size_is_one_level_up():
    boxes = torch.tensor([[0.0, 0, 130, 90], [0, 0, 300, 250]])
    rule = {"canonical_level": 5, "canonical_box_size": 224}
    up = select_levels_by_size(boxes * 2, grid(), **rule)
    assert (up - select_levels_by_size(boxes, grid(), **rule)).tolist() == [1, 1]


@pytest.mark.parametrize("trial", range(8))
def test_targets_equal_the_reference(trial):
    generator = torch.Generator().manual_seed(100 + trial)
    objects = random_objects(generator, 15, num_images=3)
    selected = torch.randint(len(STRIDES), (len(objects),), generator=generator)
    targets = targets_of(pack(objects), selected, num_images=3)
    positive, ignored = reference.assign(objects, selected.tolist(), levels())

    labels = nested(targets.labels[..., None])
    boxes = nested(targets.matched_boxes)
    channels = nested(targets.ignored)
    for image, (index, level) in itertools.product(range(3), enumerate(levels())):
        for y, x in itertools.product(range(level.height), range(level.width)):
            obj = positive.get((image, index, y, x))
            assert labels[image][index][y][x] == [K if obj is None else obj.label]
            if obj is not None:
                assert boxes[image][index][y][x] == pytest.approx(obj.box, rel=1e-5)
            for k in range(K):
                assert channels[image][index][y][x][k] == ((image, index, y, x, k) in ignored)


def test_no_objects_means_background_everywhere():
    targets = targets_of(pack([]), torch.zeros(0, dtype=torch.int64), num_images=2)
    assert (targets.labels == K).all()
    assert not targets.ignored.any()


def test_smaller_object_wins_and_the_larger_ones_class_is_ignored_there():
    # Both centred at (68, 52); at stride 8 the small one's effective region is the cell (8, 6).
    large = reference.Object(0, (28, 12, 108, 92), 1)
    small = reference.Object(0, (60, 44, 76, 60), 2)
    for objects in ([large, small], [small, large]):
        targets = targets_of(pack(objects), torch.zeros(2, dtype=torch.int64), num_images=1)
        cell = 6 * SMALL[0][1] + 8
        assert targets.labels[0, cell] == 2
        assert targets.ignored[0, cell].tolist() == [False, True, False, False]


def test_positive_is_never_ignored_for_another_object_of_its_class():
    inner = reference.Object(0, (60, 44, 76, 60), 1)
    outer = reference.Object(0, (0, 0, 136, 104), 1)
    for outer_level in (0, 1):
        targets = targets_of(pack([inner, outer]), torch.tensor([0, outer_level]), num_images=1)
        positive = targets.labels != K
        assert not targets.ignored[positive][:, 1].any()


def test_ignoring_region_reaches_the_neighbouring_levels_and_no_further():
    objects = pack([reference.Object(0, (10, 10, 130, 100), 3)])
    counts = [height * width for height, width in SMALL]
    for level in range(len(STRIDES)):
        targets = targets_of(objects, torch.tensor([level]), num_images=1)
        per_level = targets.ignored[0].split(counts)
        touched = [part.any().item() for part in per_level]
        near = [abs(index - level) <= 1 for index in range(len(STRIDES))]
        # On coarse levels rounding can leave no ring about the effective region.
        assert all(not yes or allowed for yes, allowed in zip(touched, near))
        assert all(touched[i] for i in range(len(STRIDES)) if abs(i - level) == 1)
        assert not targets.ignored[..., :3].any()


@pytest.mark.parametrize("trial", range(5))
def test_order_of_the_objects_plays_no_part(trial):
    generator = torch.Generator().manual_seed(trial)
    objects = random_objects(generator, 12, num_images=1)
    # The hard cases: equal boxes of two classes, and equal areas of one class that cross.
    objects += [obj._replace(label=(obj.label + 1) % K) for obj in objects[:4]]
    objects += [reference.Object(0, box, 1) for box in ((28, 32, 108, 72), (48, 12, 88, 92))]
    selected = torch.randint(2, (len(objects),), generator=generator)
    selected[-2:] = 0
    expected = targets_of(pack(objects), selected, num_images=1)
    order = torch.randperm(len(objects), generator=generator)
    shuffled = targets_of(pack([objects[i] for i in order]), selected[order], num_images=1)
    for one, other in zip(expected, shuffled):
        assert torch.equal(one, other)


@pytest.mark.parametrize("offset", [0.0, 0.25, 0.5])
def test_regions_lie_about_the_points_of_their_cells(offset):
    """A region's points are half a stride from it at the most, wherever in their cells they are.

    With a point on the corner of its cell, regions were half a cell up and left of their object.
    """
    generator = torch.Generator().manual_seed(0)
    centers = torch.rand(300, 2, generator=generator) * 80 + 10
    sides = torch.rand(300, 2, generator=generator) * 60 + 1
    boxes = torch.cat([centers - sides / 2, centers + sides / 2], dim=1)
    cells = region_cells(boxes, 0.2, grid(), point_offset=offset).double()
    for level, stride in enumerate(STRIDES[:3]):
        first = (cells[:, level, :2] + offset) * stride
        last = (cells[:, level, 2:] - 1 + offset) * stride
        height, width = SMALL[level]
        inside = torch.tensor([width, height]) * stride
        for corner, point, inward in (
            (centers - 0.1 * sides, first, 1),
            (centers + 0.1 * sides, last, -1),
        ):
            # Regions are cut at the border of the map.
            kept = (corner > stride) & (corner < inside - stride)
            assert ((point - corner).abs()[kept] <= stride / 2 + 1e-4).all(), inward


def test_positives_lie_in_their_object_whatever_the_offset():
    """16-pixel objects on P3: 27 % of the points were outside of their box with offset 0."""
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(500, 2, generator=generator) * 100
    boxes = torch.cat([corners, corners + 16], dim=1)
    for offset in (0.0, 0.5):
        cells = region_cells(boxes, 0.2, grid([(30, 30)] * 5), point_offset=offset)[:, 0]
        points = (torch.stack([cells[:, :2], cells[:, 2:] - 1], dim=1) + offset) * 8
        assert (points >= boxes[:, None, :2]).all() and (points <= boxes[:, None, 2:]).all()
