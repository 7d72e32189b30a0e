import pytest
import torch
from detectron2.structures import Boxes
from models import RETINANET, instances, random_instances, tiny_model

from fsaf_d2.assignment import anchor_matching
from fsaf_d2.assignment.anchor_matching import match_anchors
from fsaf_d2.assignment.anchors import AnchorKinds
from fsaf_d2.assignment.grid import Grid
from fsaf_d2.assignment.objects import Objects

SIZES = [(40, 50), (20, 25), (10, 13), (5, 7), (3, 4)]
IMAGE = (320, 400)


@pytest.fixture(scope="module")
def model():
    """detectron2's own, whose labels are asked for."""
    return tiny_model(*RETINANET)


def labels_of(model, ground_truths, sizes=SIZES) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense labels (N, R * A) as RetinaNet's, and the boxes of those that are positive."""
    generator = model.anchor_generator
    anchors = Boxes.cat(generator([torch.zeros(1, 1, *size) for size in sizes])).tensor
    objects = Objects.of(ground_truths)
    matches = match_anchors(
        kinds(model),
        objects,
        Grid.of(generator.strides, sizes, torch.device("cpu")),
        num_images=len(ground_truths),
        thresholds=[0.4, 0.5],
        labels=[0, -1, 1],
    )
    dense = torch.full((len(ground_truths), len(anchors)), model.num_classes)
    boxes = torch.zeros(len(ground_truths), len(anchors), 4)
    classes = torch.where(matches.labels == 1, objects.classes[matches.object_index], -1)
    dense[matches.image_index, matches.anchor_index] = classes
    boxes[matches.image_index, matches.anchor_index] = objects.boxes[matches.object_index]
    return dense, boxes


def assert_same_as_retinanet(model, ground_truths, sizes=SIZES):
    anchors = model.anchor_generator([torch.zeros(1, 1, *size) for size in sizes])
    expected = [torch.stack(x) for x in model.label_anchors(anchors, ground_truths)]
    labels, boxes = labels_of(model, ground_truths, sizes)
    assert torch.equal(labels, expected[0])
    positive = (labels >= 0) & (labels != model.num_classes)
    assert torch.equal(boxes[positive], expected[1][positive])


@pytest.mark.parametrize("trial", range(6))
def test_labels_are_retinanets(model, trial):
    torch.manual_seed(trial)
    counts = [1, 0, 25, 3]
    assert_same_as_retinanet(model, [random_instances(count, IMAGE) for count in counts])


@pytest.mark.parametrize("trial", range(3))
def test_labels_are_retinanets_in_a_crowd(model, trial):
    torch.manual_seed(trial)
    assert_same_as_retinanet(model, [random_instances(400, IMAGE)])


def test_labels_are_retinanets_on_the_grid_where_many_ious_tie(model):
    """Boxes of whole strides: objects have several best anchors, and anchors several objects."""
    corners = torch.randint(0, 20, (60, 2)) * 16
    sizes = 2 ** torch.randint(0, 5, (60, 2)) * 16
    gt = instances(torch.cat([corners, corners + sizes], dim=1), torch.arange(60) % 7, IMAGE)
    assert_same_as_retinanet(model, [gt, gt[torch.randperm(60)]])


@pytest.mark.parametrize(
    "boxes",
    [
        [(0, 0, 3, 3), (396, 316, 400, 320), (100, 100, 101, 140)],
        [(0, 0, 400, 320), (-300, -300, 700, 700), (0, 150, 400, 151)],
        [(390, 100, 520, 230), (-60, -60, 2, 2)],
        [(8, 8, 24, 24)] * 5,
    ],
    ids=["tiny", "huge", "over the border", "equal"],
)
def test_labels_are_retinanets_for_odd_boxes(model, boxes):
    assert_same_as_retinanet(model, [instances(boxes, range(len(boxes)), IMAGE)])


def test_a_map_of_one_cell(model):
    assert_same_as_retinanet(model, [random_instances(10, (60, 60))], [(1, 1)] * 5)


def test_an_object_that_no_anchor_overlaps_matches_none(model):
    """RetinaNet makes every anchor an object's then, all having the best IoU, which is 0."""
    boxes = [(50, 50, 50, 90), (-9000, -9000, -8000, -8000)]
    labels, _ = labels_of(model, [instances(boxes, [1, 2], IMAGE)])
    assert (labels == model.num_classes).all()


def test_other_thresholds(model):
    anchors = model.anchor_generator([torch.zeros(1, 1, *size) for size in SIZES])
    ground_truths = [random_instances(30, IMAGE)]
    other = tiny_model(*RETINANET, "MODEL.RETINANET.IOU_THRESHOLDS", "[0.3, 0.6]")
    dense, _ = other.label_anchors(anchors, ground_truths)
    inputs = (kinds(model), Objects.of(ground_truths))
    matches = match_anchors(
        *inputs,
        Grid.of(model.anchor_generator.strides, SIZES, torch.device("cpu")),
        num_images=1,
        thresholds=[0.3, 0.6],
        labels=[0, -1, 1],
    )
    assert (dense[0] == -1).sum() == (matches.labels == -1).sum()
    assert ((dense[0] >= 0) & (dense[0] != 7)).sum() == (matches.labels == 1).sum()


def test_best_anchors_are_kept_on_request(model):
    """A box of 3 pixels reaches no threshold."""
    objects = Objects.of([instances([(50, 50, 53, 53)], [0])])
    inputs = (kinds(model), objects)
    grid = Grid.of(model.anchor_generator.strides, SIZES, torch.device("cpu"))
    counts = [
        len(
            match_anchors(
                *inputs,
                grid,
                num_images=1,
                thresholds=[0.4, 0.5],
                labels=[0, -1, 1],
                keep_best=keep_best,
            ).labels
        )
        for keep_best in (False, True)
    ]
    assert counts[0] == 0 and counts[1] > 0


def kinds(model) -> AnchorKinds:
    return AnchorKinds.of_generator(model.anchor_generator)


@pytest.mark.parametrize("offset", ["0.0", "0.5", "0.3"])
def test_boxes_are_the_generators(offset):
    model = tiny_model(*RETINANET, "MODEL.ANCHOR_GENERATOR.OFFSET", offset)
    anchors = model.anchor_generator([torch.zeros(1, 1, *size) for size in SIZES])
    expected = Boxes.cat(anchors).tensor
    grid = Grid.of(model.anchor_generator.strides, SIZES, torch.device("cpu"))
    assert torch.equal(kinds(model).boxes(torch.arange(len(expected)), grid), expected)


def test_far_pairs_are_not_computed(model):
    boxes = Objects.of([random_instances(100, IMAGE)]).boxes
    grid = Grid.of(model.anchor_generator.strides, SIZES, torch.device("cpu"))
    pairs, _ = anchor_matching.near_pairs(kinds(model), boxes, grid, 0.4)
    num_anchors = 9 * sum(height * width for height, width in SIZES)
    assert len(pairs) < 0.05 * 100 * num_anchors


def test_chunks_change_nothing(model, monkeypatch):
    ground_truths = [random_instances(120, IMAGE)]
    expected = labels_of(model, ground_truths)
    monkeypatch.setattr(anchor_matching, "MAX_PAIRS", 50)
    for one, other in zip(labels_of(model, ground_truths), expected):
        assert torch.equal(one, other)
