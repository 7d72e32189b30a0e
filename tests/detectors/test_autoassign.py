"""AutoAssign's losses, worked out by hand where few locations answer, and what they promise."""

import math

import pytest
import torch
from detectron2.structures import Instances
from models import (
    NUM_CLASSES,
    SIZES,
    STRIDES,
    batch,
    detections_given,
    grid_of,
    instances,
    losses_given,
    predictions_of,
    random_instances,
    tiny_model,
)
from reference import autoassign as reference
from reference.fsaf import Level, Object

from fsaf_d2.assignment import inside_boxes
from fsaf_d2.assignment.grid import Grid
from fsaf_d2.assignment.inside_boxes import fill_bags, points_of
from fsaf_d2.assignment.objects import Objects
from fsaf_d2.detectors.autoassign import AutoAssignPredictions
from fsaf_d2.losses.autoassign_loss import BagTables, prior_table, shares_of_planes, sum_bags

ALONE = ["MODEL.META_ARCHITECTURE", "OneStageDetector", "MODEL.BRANCHES", "['autoassign']"]
AUTOASSIGN = [*ALONE, "MODEL.RETINANET.NORM", "GN"]
POSITIVE, NEGATIVE, PRIOR = (f"loss_autoassign_{x}" for x in ("positive", "negative", "prior"))
SILENT = -50.0
WEIGHTS = reference.POSITIVE, reference.NEGATIVE, reference.CENTER


def randomised(*overrides: str):
    """A model whose boxes, scores and priors vary."""
    model = tiny_model(*AUTOASSIGN, *overrides)
    branch = model.branches.autoassign
    for layer in (branch.cls_score, branch.bbox_pred, branch.objectness):
        torch.nn.init.normal_(layer.weight, std=0.05)
    torch.nn.init.normal_(branch.center_prior.mean, std=0.3)
    torch.nn.init.uniform_(branch.center_prior.sigma, 0.7, 2)
    return model.train()


def predictions(num_images=1, logit=SILENT, objectness=0.0, distance=1.0):
    """The same everywhere."""
    values = (NUM_CLASSES, logit), (4, distance), (1, objectness)
    return AutoAssignPredictions(
        *(
            [torch.full((num_images, channels, *size), value) for size in SIZES]
            for channels, value in values
        )
    )


def losses_of(model, said, *truths) -> dict[str, float]:
    given = losses_given(model, {"autoassign": said}, grid_of(), truths)
    return {name: loss.item() for name, loss in given.items()}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_parameters_at_the_start():
    branch = tiny_model(*AUTOASSIGN).branches.autoassign
    assert (branch.bbox_pred.bias == 4).all() and (branch.objectness.bias == 0).all()
    torch.testing.assert_close(branch.cls_score.bias.sigmoid(), torch.full((NUM_CLASSES,), 0.02))
    assert (branch.center_prior.mean == 0).all() and (branch.center_prior.sigma == 1).all()
    assert branch.center_prior.mean.shape == branch.center_prior.sigma.shape == (NUM_CLASSES, 2)


def test_a_bag_of_one_location():
    """The box (0, 2, 8, 7) holds the point (4, 4) of P3 alone.

    The predicted box, 4 px each way, is (0, 0, 8, 8): IoU 40 / 64, and no hull around both. The
    weight of the only location is 1: -ln P. Its share is 1: its class has no loss there, and
    everything else is silent. The centre (4, 4.5) is (0, 1/16) strides away.
    """
    said = predictions(distance=0.5)
    said.autoassign_logits[0][0, 3, 0, 0] = 1.0
    said.autoassign_objectness[0][0, 0, 0, 0] = 2.0
    losses = losses_of(tiny_model(*AUTOASSIGN), said, instances([(0, 2, 8, 7)], [3]))
    p = sigmoid(1) * sigmoid(2) * math.exp(-5 * (1 - 40 / 64))
    assert losses[POSITIVE] == pytest.approx(-0.25 * math.log(p), rel=1e-5)
    assert losses[NEGATIVE] == pytest.approx(0, abs=1e-9)
    g = math.exp(-(1 / 16**2) / 2)
    assert losses[PRIOR] == pytest.approx(0.75 / g, rel=1e-5)


def negative(p: float) -> float:
    return 0.75 * p**2 * -math.log(1 - p)


def test_scores_of_other_classes_and_outside_of_boxes_are_background():
    """One bag of one location, centred: the sum of priors is 1."""
    truth = instances([(1, 1, 7, 7)], [3])
    model = tiny_model(*AUTOASSIGN)
    for level, k, y, x in ((0, 2, 0, 0), (0, 3, 0, 1), (2, 3, 3, 4)):
        said = predictions()
        said.autoassign_logits[level][0, k, y, x] = 1.0
        expected = negative(0.5 * sigmoid(1))
        assert losses_of(model, said, truth)[NEGATIVE] == pytest.approx(expected, rel=1e-5)


def two_locations():
    """Points (4, 4) and (12, 4) of P3 in the box (0, 1, 16, 7); the first predicts it better.

    First: 4 px to the left, 12 to the right, 3 up and down: the box itself. Second: (4, 1, 20, 7):
    intersection 12 * 6, union 20 * 6. 1 / (1 - IoU) is 1e12 and 2.5: shares 1 and 0 (all but).
    """
    said = predictions()
    said.autoassign_deltas[0][0, :, 0, 0] = torch.tensor([0.5, 0.375, 1.5, 0.375])
    said.autoassign_deltas[0][0, :, 0, 1] = torch.tensor([1.0, 0.375, 1.0, 0.375])
    said.autoassign_logits[0][0, 3, 0, :2] = torch.tensor([0.5, 1.0])
    return said


def test_a_bag_of_two_locations():
    """Centre (8, 4): half a stride away on either side; the priors are alike and cancel."""
    losses = losses_of(tiny_model(*AUTOASSIGN), two_locations(), instances([(0, 1, 16, 7)], [3]))
    p = 0.5 * sigmoid(0.5), 0.5 * sigmoid(1) * math.exp(-5 * (1 - 0.6))
    weights = [math.exp(3 * x) for x in p]
    bag = sum(w * x for w, x in zip(weights, p)) / sum(weights)
    assert losses[POSITIVE] == pytest.approx(-0.25 * math.log(bag), rel=1e-5)
    g = 2 * math.exp(-(0.5**2) / 2)
    assert losses[PRIOR] == pytest.approx(0.75 / g, rel=1e-5)
    # A count of less than 1 would be 1.
    assert losses[NEGATIVE] == pytest.approx(negative(0.5 * sigmoid(1)) / g, rel=1e-4)


def test_a_location_counts_by_the_best_box():
    """A second object, of another class, is what the second location predicts: share 1 for both.

    1 / (1 - IoU) is then 1e12 at both locations: each has all of the bag's.
    """
    boxes = [(0, 1, 16, 7), (4, 1, 20, 7)]
    alone = losses_of(tiny_model(*AUTOASSIGN), two_locations(), instances(boxes[:1], [3]))
    both = losses_of(tiny_model(*AUTOASSIGN), two_locations(), instances(boxes, [3, 5]))
    assert alone[NEGATIVE] > 1e-3 and both[NEGATIVE] < 1e-6


def test_a_location_counts_by_the_best_box_whether_or_not_it_lies_in_it():
    """As before, but the second object does not hold the second location: it has y 1 to 4.

    The second location predicts it exactly: (4, 1, 20, 4).
    """
    said = two_locations()
    said.autoassign_deltas[0][0, :, 0, 1] = torch.tensor([1.0, 0.375, 1.0, 0.0])
    boxes = [(0, 1, 16, 7), (4, 1, 20, 4)]
    alone = losses_of(tiny_model(*AUTOASSIGN), said, instances(boxes[:1], [3]))
    both = losses_of(tiny_model(*AUTOASSIGN), said, instances(boxes, [3, 5]))
    assert alone[NEGATIVE] > 1e-3 and both[NEGATIVE] < 1e-6


def test_the_larger_of_two_shares_counts():
    grid = grid_of()
    boxes = torch.tensor([(0.0, 1, 16, 7), (0, 1, 24, 7)])
    ious = torch.zeros(1, grid.num_locations)
    ious[0, :3] = torch.tensor([0.8, 0.6, 0.2])
    q = [1 / (1 - x) for x in (0.8, 0.6, 0.2)]  # 5, 2.5, 1.25
    found = []
    for order in ([0, 1], [1, 0]):
        objects = Objects(boxes[order], torch.tensor([2, 2]), torch.tensor([0, 0]))
        bags = fill_bags(objects, grid)
        device = torch.device("cpu")
        tables = tables_of(bags)
        shares = shares_of_planes(ious, torch.tensor([2]), tables, bags.pairs(grid, device))
        found.append(shares[0, :4].tolist())
    # In the first's bag 1 and 0, in the second's 1, (2.5 - 1.25) / 3.75 and 0.
    expected = [1, (q[1] - q[2]) / (q[0] - q[2]), 0, 0]
    assert found[0] == found[1] == pytest.approx(expected, abs=1e-6)


def tables_of(bags, dtype=torch.float32) -> BagTables:
    image, classes = bags.objects.image_index, bags.objects.classes
    points = points_of(grid_of(), torch.device("cpu"), 0.5)
    boxes = bags.objects.boxes.T
    return BagTables(boxes.to(dtype), image, image * NUM_CLASSES + classes, points.to(dtype))


def test_gradients_of_sums_over_bags_are_those_of_finite_differences():
    grid, device = grid_of(), torch.device("cpu")
    objects = Objects(
        torch.tensor([(2.0, 1, 21, 12), (0, 0, 30, 18), (3, 3, 19, 15)]),
        torch.tensor([1, 4, 1]),
        torch.tensor([0, 1, 1]),
    )
    bags = fill_bags(objects, grid)
    tables = tables_of(bags, torch.float64)
    few = grid.num_locations
    generator = torch.Generator().manual_seed(0)

    def rand(*size):
        return torch.rand(size, dtype=torch.float64, generator=generator)

    used = torch.tensor([0, 1, 2, 20, 21, 22, 320, 321])  # of P3 and P4

    def sums(logits, objectness, sides, mean, sigma):
        maps = logits.new_zeros(2, NUM_CLASSES, few).index_add(2, used, logits)
        objects = logits.new_zeros(2, few).index_add(1, used, objectness)
        points = tables.points.repeat(2, 1)[:, None, :] * 8
        signs = torch.tensor([-1.0, -1, 1, 1]).double()[:, None, None]
        boxes = points + signs * (sides + 1) * 8
        priors = prior_table(bags.centers(grid), mean, sigma, bags.objects.classes)
        found = sum_bags(maps, objects, boxes, priors, tables, bags.pairs(grid, device))
        return found.loss, found.priors

    leaves = (
        rand(2, NUM_CLASSES, 8),
        rand(2, 8),
        rand(4, 2, 1),
        rand(NUM_CLASSES, 2),
        rand(NUM_CLASSES, 2) + 0.7,
    )
    leaves = [x.requires_grad_() for x in leaves]
    assert torch.autograd.gradcheck(sums, leaves)


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_pieces_change_nothing(monkeypatch, kept):
    model = randomised()
    truths = [random_instances(9), random_instances(0), random_instances(5)]
    inputs = batch(*truths)
    results = []
    for limit in (1 << 20, 100):
        monkeypatch.setitem(inside_boxes.MAX_PAIRS, "cpu", limit)
        monkeypatch.setattr(inside_boxes, "MAX_KEPT", kept)
        model.zero_grad()
        losses = model(inputs)
        sum(losses.values()).backward()
        results.append([*losses.values(), *(p.grad for p in model.parameters())])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_priors_learn_from_two_losses_only():
    model = randomised()
    losses = model(batch(random_instances(9)))
    prior = model.branches.autoassign.center_prior
    for name, learns in ((POSITIVE, True), (NEGATIVE, False), (PRIOR, True)):
        gradients = torch.autograd.grad(
            losses[name], [prior.mean, prior.sigma], retain_graph=True, allow_unused=True
        )
        for gradient in gradients:
            assert (gradient is not None and bool((gradient != 0).any())) == learns, name


def test_the_negative_loss_teaches_no_box():
    model = randomised()
    loss = model(batch(random_instances(9)))[NEGATIVE]
    (gradient,) = torch.autograd.grad(
        loss, [model.branches.autoassign.bbox_pred.weight], allow_unused=True
    )
    assert gradient is None or not gradient.any()


def test_the_order_of_objects_changes_nothing():
    model = randomised()
    truth = random_instances(30)
    truth.gt_classes %= 2
    with torch.no_grad():
        said, grid = predictions_of(model, batch(truth))
    expected = losses_given(model, said, grid, [truth])
    found = losses_given(model, said, grid, [truth[torch.randperm(30)]])
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-5, atol=1e-7)


def test_objects_may_come_in_any_order_of_images():
    branch = randomised().branches.autoassign
    boxes = [(10, 10, 70, 60), (40, 30, 150, 120), (5, 9, 60, 90)]
    objects = Objects(torch.tensor(boxes).float(), torch.tensor([1, 2, 1]), torch.tensor([0, 1, 1]))
    said = predictions(2, logit=0.0)
    for levels in said:
        for x in levels:
            x.add_(torch.rand_like(x))
    one, other = (
        branch.losses(said, Objects(*(field[order] for field in objects)), grid_of())
        for order in ([0, 1, 2], [2, 0, 1])
    )
    for name, term in one.items():
        torch.testing.assert_close(other[name].total, term.total)


def test_a_model_in_float64_has_the_same_losses():
    truth, model = random_instances(5), randomised()
    expected = losses_of(model, predictions(logit=0.0), truth)
    assert losses_of(model.double(), predictions(logit=0.0), truth) == pytest.approx(expected)


def test_an_object_that_holds_no_location_has_no_bag_but_is_counted():
    """Two more objects than the two with bags of each image."""
    model = randomised()
    some = instances([(10, 10, 70, 60), (40, 30, 150, 120)], [1, 2])
    more = instances(
        [(10, 10, 70, 60), (5, 5, 7, 7), (40, 30, 150, 120), (9, 9, 9, 50)], [1, 3, 2, 4]
    )
    with torch.no_grad():
        said, grid = predictions_of(model, batch(some, some))
    expected = losses_given(model, said, grid, [some, some])
    found = losses_given(model, said, grid, [more, more])
    for name, factor in ((POSITIVE, 1 / 2), (NEGATIVE, 1), (PRIOR, 2)):
        torch.testing.assert_close(found[name], expected[name] * factor, rtol=1e-3, atol=1e-6)


def test_an_image_without_bags_has_no_loss_of_priors():
    model = tiny_model(*AUTOASSIGN)
    truths = [instances([(1, 1, 7, 7)], [0]), instances([(5, 5, 7, 7)], [3])]
    assert losses_of(model, predictions(2), *truths)[PRIOR] == pytest.approx(0.75 / 2)


def test_the_loss_of_priors_is_a_mean_over_images():
    """Sums of priors: 1 for a box about one point; the second image is empty and counts."""
    truths = [instances([(1, 1, 7, 7)], [0]), instances([], []), instances([(0, 1, 16, 7)], [0])]
    g = 2 * math.exp(-(0.5**2) / 2)
    losses = losses_of(tiny_model(*AUTOASSIGN), predictions(3), *truths)
    assert losses[PRIOR] == pytest.approx(0.75 * (1 + 1 / g) / 3, rel=1e-5)


def test_the_first_loss_is_a_mean_over_objects():
    truths = [instances([(1, 1, 7, 7)], [0]), instances([(1, 1, 7, 7)] * 3, [0, 0, 0])]
    one, two = (
        losses_of(tiny_model(*AUTOASSIGN), predictions(2, logit=0.0), *x)
        for x in (truths, [*truths[:1], instances([], [])])
    )
    assert one[POSITIVE] == pytest.approx(two[POSITIVE], rel=1e-6)


def test_the_log_has_the_sum_of_priors_an_image():
    model = tiny_model(*AUTOASSIGN)
    losses_of(model, predictions(2), instances([(1, 1, 7, 7)] * 3, [0, 0, 1]), instances([], []))
    assert model.counts()["num_pos_autoassign"].item() == pytest.approx(1.5)


def test_a_score_is_class_score_times_objectness():
    """A location of stride 16 at (2, 3): point (56, 40), distances 1, 2, 1.5, 0.5 strides."""
    model = tiny_model(*AUTOASSIGN).eval()
    said = predictions()
    said.autoassign_logits[1][0, 5, 2, 3] = 1.0
    said.autoassign_objectness[1][0, 0, 2, 3] = 2.0
    said.autoassign_deltas[1][0, :, 2, 3] = torch.tensor([1.0, 2.0, 1.5, 0.5])
    found = detections_given(model, {"autoassign": said}, grid_of())
    assert found.pred_boxes.tensor.tolist() == [[56 - 16, 40 - 32, 56 + 24, 40 + 8]]
    assert found.scores.tolist() == pytest.approx([sigmoid(1) * sigmoid(2)], rel=1e-5)
    assert found.pred_classes.tolist() == [5] and found.pred_levels.tolist() == [1]


def test_distances_are_relu_of_scale_times_output():
    model = tiny_model(*AUTOASSIGN).eval()
    branch = model.branches.autoassign
    torch.nn.init.zeros_(branch.bbox_pred.weight)
    branch.bbox_pred.bias.data = torch.tensor([1.0, -1.0, 2.0, 3.0])
    for index, scale in enumerate(branch.scales.scales):
        torch.nn.init.constant_(scale, index + 1)
    features = [torch.zeros(1, 32, *size) for size in SIZES]
    for index, deltas in enumerate(branch(features, features).autoassign_deltas):
        expected = [index + 1.0, 0.0, 2 * (index + 1.0), 3 * (index + 1.0)]
        assert deltas[0, :, 0, 0].tolist() == expected
    branch.scales.scales[0].data.fill_(-2.0)
    (deltas, *_) = branch(features, features).autoassign_deltas
    assert deltas[0, :, 0, 0].tolist() == [0.0, 2.0, 0.0, 0.0]


def test_objectness_stands_on_the_tower_of_boxes():
    branch = tiny_model(*AUTOASSIGN).branches.autoassign
    classes, boxes = ([torch.randn(1, 32, *size) for size in SIZES] for _ in range(2))
    said = branch(classes, boxes)
    other = branch([x + 1 for x in classes], boxes)
    assert torch.equal(said.autoassign_objectness[0], other.autoassign_objectness[0])
    assert not torch.equal(said.autoassign_logits[0], other.autoassign_logits[0])


def losses_by_key(*overrides: str) -> dict[str, float]:
    plain = randomised()
    model = tiny_model(*AUTOASSIGN, *overrides)
    model.load_state_dict(plain.state_dict())
    truth = instances([(10, 10, 70, 60), (40, 30, 150, 120)], [1, 2])
    return {name: loss.item() for name, loss in model.train()(batch(truth)).items()}


@pytest.mark.parametrize(
    ("key", "value", "factors"),
    [
        ("MODEL.AUTOASSIGN.PRIOR_LOSS_WEIGHT", "1.5", (1, 1, 2)),
        ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", "0.4", (0.4 / 0.25, 0.6 / 0.75, 1)),
        ("MODEL.RETINANET.FOCAL_LOSS_ALPHA", "-1.0", (4, 4 / 3, 1)),
    ],
)
def test_weights_of_the_losses(key, value, factors):
    torch.manual_seed(0)
    expected = losses_by_key()
    torch.manual_seed(0)
    found = losses_by_key(key, value)
    for (name, loss), factor in zip(expected.items(), factors):
        assert found[name] == pytest.approx(factor * loss, rel=1e-4), name


@pytest.mark.parametrize(
    ("key", "value", "changed"),
    [
        ("MODEL.RETINANET.FOCAL_LOSS_GAMMA", "1.0", [NEGATIVE]),
        ("MODEL.AUTOASSIGN.POINT_OFFSET", "0.0", [POSITIVE, NEGATIVE, PRIOR]),
    ],
)
def test_other_keys_are_heeded(key, value, changed):
    torch.manual_seed(0)
    expected = losses_by_key()
    torch.manual_seed(0)
    found = losses_by_key(key, value)
    assert [name for name in expected if abs(found[name] / expected[name] - 1) > 1e-4] == changed


def test_a_location_lies_in_its_cell_where_the_key_says():
    model = tiny_model(*AUTOASSIGN, "MODEL.AUTOASSIGN.POINT_OFFSET", "0.0").eval()
    said = predictions()
    said.autoassign_logits[1][0, 5, 2, 3], said.autoassign_objectness[1][:] = 5.0, 5.0
    found = detections_given(model, {"autoassign": said}, grid_of())
    x, y, stride = 3 * 16, 2 * 16, STRIDES[1]
    assert found.pred_boxes.tensor.tolist() == [[x - stride, y - stride, x + stride, y + stride]]


# Odd sizes, few enough to be looped over.
FEW_STRIDES, FEW_SIZES = STRIDES[:3], [(5, 7), (3, 4), (2, 2)]


def few_objects(case: str) -> list[Instances]:
    """In images of 40 x 56 pixels."""
    size = (40, 56)
    some = instances(
        [(3, 2, 30, 25), (3, 2, 30, 25), (20, 9, 22, 11), (8, 0, 56, 40)], [1, 1, 2, 0]
    )
    return {
        "several": [
            random_instances(4, size),
            random_instances(0, size),
            random_instances(3, size),
        ],
        "ties and one without a location": [some],
        "nothing": [instances([], []), instances([], [])],
        "one image of two has a bag": [instances([(20, 9, 22, 11)], [2]), some],
        "sides on points": [instances([(4, 4, 28, 20), (8, 8, 40, 24)], [3, 3])],
    }[case]


def few_predictions(num_images: int, generator: torch.Generator) -> AutoAssignPredictions:
    def rand(channels: int, low: float, high: float) -> list[torch.Tensor]:
        return [
            (
                low
                + (high - low)
                * torch.rand(num_images, channels, *size, generator=generator, dtype=torch.float64)
            ).requires_grad_()
            for size in FEW_SIZES
        ]

    return AutoAssignPredictions(rand(NUM_CLASSES, -3, 1), rand(4, 0.2, 2), rand(1, -1, 2))


CASES = ["several", "ties and one without a location", "nothing", "one image of two has a bag"]


@pytest.mark.parametrize("offset", [0.5, 0.0])
@pytest.mark.parametrize("case", [*CASES, "sides on points"])
def test_losses_and_gradients_are_those_of_the_reference(case, offset):
    torch.manual_seed(0)
    truths = few_objects(case)
    key = ["MODEL.AUTOASSIGN.POINT_OFFSET", str(offset)]
    model = tiny_model(*AUTOASSIGN, *key, "MODEL.RETINANET.IN_FEATURES", "['p3', 'p4', 'p5']")
    branch = model.branches.autoassign.double()
    torch.nn.init.normal_(branch.center_prior.mean, std=0.3)
    torch.nn.init.uniform_(branch.center_prior.sigma, 0.5, 1.5)
    said = few_predictions(len(truths), torch.Generator().manual_seed(1))
    mean, sigma = branch.center_prior.mean, branch.center_prior.sigma
    leaves = [x for levels in said for x in levels] + [mean, sigma]

    grid = Grid.of(FEW_STRIDES, FEW_SIZES, torch.device("cpu"))
    terms = branch.losses(said, Objects.of(truths), grid)
    objects = [
        Object(image, tuple(box), label)
        for image, truth in enumerate(truths)
        for box, label in zip(truth.gt_boxes.tensor.tolist(), truth.gt_classes.tolist())
    ]
    logits, distances, objectness = (
        [[level[image].permute(1, 2, 0) for level in levels] for image in range(len(truths))]
        for levels in said
    )
    objectness = [[level[..., 0] for level in levels] for levels in objectness]
    levels = [Level(stride, *size) for stride, size in zip(FEW_STRIDES, FEW_SIZES)]
    expected = reference.losses(
        objects, levels, logits, objectness, distances, mean, sigma, offset=offset
    )
    for (name, term), (total, count), weight in zip(terms.items(), expected, WEIGHTS):
        assert term.total.dtype == torch.float64
        assert term.total.item() == pytest.approx(total.item(), rel=1e-9), name
        assert float(term.count) == pytest.approx(count, rel=1e-6), name
        assert term.weight == weight and not term.count.requires_grad, name
        if not total.requires_grad:
            continue
        gradients = torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True)
        found = torch.autograd.grad(term.total, leaves, retain_graph=True, allow_unused=True)
        for mine, other in zip(found, gradients):
            mine, other = (torch.zeros(1) if x is None else x for x in (mine, other))
            if mine.any() or other.any():
                torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-10)
