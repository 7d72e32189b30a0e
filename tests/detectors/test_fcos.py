import pytest
import torch
from detectron2.modeling import build_model
from fvcore.nn import giou_loss
from models import (
    NUM_CLASSES,
    ROOT,
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
from reference import fcos as reference
from reference.fsaf import Level, Object

from fsaf_d2 import load_config
from fsaf_d2.assignment.center_sampling import sample_centers
from fsaf_d2.assignment.centerness import centerness
from fsaf_d2.assignment.objects import Objects
from fsaf_d2.detectors.fcos import FCOSBranch, FCOSPredictions
from fsaf_d2.losses import point_giou_loss

FCOS = ["MODEL.META_ARCHITECTURE", "PointFCOS", "MODEL.RETINANET.NORM", "GN"]
LEVELS = [Level(stride, *size) for stride, size in zip(STRIDES, SIZES)]


def randomised(*overrides: str):
    """A model whose boxes have an area and whose centerness varies."""
    model = tiny_model(*FCOS, *overrides)
    branch = model.branches.fcos
    for layer in (branch.cls_score, branch.bbox_pred, branch.centerness):
        torch.nn.init.normal_(layer.weight, std=0.05)
    torch.nn.init.constant_(branch.bbox_pred.bias, 2.0)
    for scale in branch.scales.scales:
        torch.nn.init.uniform_(scale, 0.5, 1.5)
    return model.train()


def listed(ground_truths) -> list[Object]:
    return [
        Object(image, tuple(box), label)
        for image, gt in enumerate(ground_truths)
        for box, label in zip(gt.gt_boxes.tensor.tolist(), gt.gt_classes.tolist())
    ]


# METHODS: towers 4,720,640, group norm 4,096, outputs 184,400 + 9,220 + 2,305, five scales.
@pytest.mark.slow
def test_parameter_counts():
    cfg = load_config(ROOT / "configs/family/fcos_R_50_FPN_1x.yaml", ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    head = [*model.towers.parameters(), *model.branches.parameters()]
    assert sum(p.numel() for p in head) == 4_920_666


@pytest.mark.parametrize("trial", range(3))
def test_losses_equal_the_reference(trial):
    torch.manual_seed(trial)
    model = randomised()
    ground_truths = [random_instances(7), random_instances(0), random_instances(12)]
    with torch.no_grad():
        everything, grid = predictions_of(model, batch(*ground_truths))
        losses = losses_given(model, everything, grid, ground_truths)
    logits, distances, centers = (
        [[level[image].permute(1, 2, 0).tolist() for level in levels] for image in range(3)]
        for levels in everything["fcos"]
    )
    centers = [[[[x[0] for x in row] for row in level] for level in image] for image in centers]
    expected = reference.losses(listed(ground_truths), LEVELS, logits, distances, centers)
    found = [losses[name].item() for name in model.traits.loss_names]
    assert found == pytest.approx(expected, rel=1e-4)


def test_gradients_are_those_of_the_losses_written_out():
    """Autograd through plain torch operations over the reference's positives."""
    model = randomised()
    gt = random_instances(9)
    with torch.no_grad():
        everything, grid = predictions_of(model, batch(gt))
    leaves = FCOSPredictions(
        *([x.detach().clone().requires_grad_() for x in levels] for levels in everything["fcos"])
    )
    sum(losses_given(model, {"fcos": leaves}, grid, [gt]).values()).backward()
    found = [x.grad.clone() for levels in leaves for x in levels]
    for levels in leaves:
        for x in levels:
            x.grad = None
    positive = reference.assign(listed([gt]), LEVELS)
    labels = [torch.zeros_like(x) for x in leaves.fcos_logits]
    giou = entropy = weights = torch.zeros(())
    for (image, index, y, x), (obj, sides) in positive.items():
        labels[index][image, obj.label, y, x] = 1
        target = torch.tensor(sides) / STRIDES[index]
        weight = centerness(target)
        weights = weights + weight
        giou = giou + weight * point_giou_loss(leaves.fcos_deltas[index][image, :, y, x], target)
        logit = leaves.fcos_centerness[index][image, 0, y, x]
        entropy = entropy + torch.nn.functional.binary_cross_entropy_with_logits(logit, weight)
    focal = 0
    for level, label in zip(leaves.fcos_logits, labels):
        p = level.sigmoid()
        p_t = p * label + (1 - p) * (1 - label)
        alpha = 0.25 * label + 0.75 * (1 - label)
        focal = focal - (alpha * (1 - p_t) ** 2 * p_t.log()).sum()
    (focal / len(positive) + giou / weights + entropy / len(positive)).backward()
    for one, other in zip(found, (x.grad for levels in leaves for x in levels)):
        expected = torch.zeros_like(one) if other is None else other
        torch.testing.assert_close(one, expected, rtol=1e-3, atol=1e-6)


def positives(boxes, **settings):
    """(level, y, x, object) of the positive locations of one image."""
    boxes = torch.tensor(boxes, dtype=torch.float32)
    objects = Objects(boxes, torch.arange(len(boxes)) % 7, torch.zeros(len(boxes)).long())
    args = {"size_limits": reference.LIMITS, "radius": 1.5, **settings}
    found = sample_centers(objects, grid_of(), num_images=1, **args)
    starts = grid_of().starts
    level = torch.bucketize(found.location, starts, right=True) - 1
    cell = found.location - starts[level]
    width = grid_of().widths[level]
    return list(
        zip(level.tolist(), (cell // width).tolist(), (cell % width).tolist(), found[2].tolist())
    )


def test_locations_about_the_centre_are_positive():
    """Box 8..56 of stride 8: centre 32, within 12 px the points 20, 28, 36, 44 but not 20 and 44.

    |20 - 32| = 12 is not less than 12. The largest distance, 36 - 8 = 28, is P3's.
    """
    assert positives([(8, 8, 56, 56)]) == [(0, y, x, 0) for y in (3, 4) for x in (3, 4)]


def test_a_centre_is_where_it_is_to_the_last_bit():
    """Box 8..56 + 2^-18: 44 is 12 - 2^-19 from its centre, which float32 would round to 32."""
    assert positives([(8, 8, 56 + 2**-18, 56)]) == [(0, y, x, 0) for y in (3, 4) for x in (3, 4, 5)]


def test_the_cells_looked_at_are_those_near_the_exact_centre():
    """44 is less than 10.4 px from a centre of 33.6000004, which float32 would have at 33.5999985.

    The sides 8 and 59.2 are exact in float32, their sum is not.
    """
    right = 8808038.5 / 2**17 - 8
    assert torch.tensor(right).item() == right
    assert (0, 3, 5, 0) in positives([(8, 8, right, 56)], radius=1.3)


@pytest.mark.parametrize(("side", "level"), [(40, 0), (150, 1), (300, 2), (700, 3), (1400, 4)])
def test_levels_answer_for_their_sizes(side, level):
    box = (80 - side / 2, 64 - side / 2, 80 + side / 2, 64 + side / 2)
    found = positives([box])
    assert found and {place[0] for place in found} == {level}


def test_the_smaller_object_has_what_both_could():
    large, small = (0, 0, 60, 60), (20, 20, 40, 40)
    for boxes, index in (([large, small], 1), ([small, large], 0)):
        shared = [place for place in positives(boxes) if place[:3] == (0, 3, 3)]
        assert shared == [(0, 3, 3, index)]


def test_points_lie_in_their_box():
    """A box of 3 px holds no point of any level, one of 9 px at most one of P3."""
    assert positives([(9, 9, 11.9, 11.9)]) == []
    assert positives([(9, 9, 18, 18)]) == [(0, 1, 1, 0)]


def test_odd_boxes_have_no_location():
    nan, inf = float("nan"), float("inf")
    for box in [(nan, 0, 50, 50), (30, 30, 30, 60), (900, 900, 960, 960), (-inf, 0, inf, 60)]:
        assert positives([box]) == []


def test_giou_loss_is_fvcores():
    pred, target = torch.rand(2, 50, 4, dtype=torch.float64) * 5 + 0.1
    corners = torch.tensor([-1.0, -1, 1, 1])
    expected = giou_loss(pred.float() * corners, target.float() * corners)
    torch.testing.assert_close(point_giou_loss(pred, target), expected, rtol=1e-4, atol=1e-5)


def test_a_box_of_no_size_has_a_loss_and_a_finite_gradient():
    pred = torch.zeros(1, 4, requires_grad=True)
    point_giou_loss(pred, torch.ones(1, 4)).backward()
    assert torch.isfinite(pred.grad).all()


def test_a_score_is_the_root_of_class_score_times_centerness():
    """A location of stride 16 at (2, 3): point (56, 40), distances 1, 2, 1.5, 0.5 strides."""
    model = tiny_model(*FCOS).eval()
    logits = [torch.full((1, NUM_CLASSES, *size), -20.0) for size in SIZES]
    deltas = [torch.ones(1, 4, *size) for size in SIZES]
    centers = [torch.zeros(1, 1, *size) for size in SIZES]
    logits[1][0, 5, 2, 3], centers[1][0, 0, 2, 3] = 1.0, 2.0
    deltas[1][0, :, 2, 3] = torch.tensor([1.0, 2.0, 1.5, 0.5])
    predictions = {"fcos": FCOSPredictions(logits, deltas, centers)}
    found = detections_given(model, predictions, grid_of())
    assert found.pred_boxes.tensor.tolist() == [[56 - 16, 40 - 32, 56 + 24, 40 + 8]]
    expected = (torch.tensor(1.0).sigmoid() * torch.tensor(2.0).sigmoid()).sqrt()
    torch.testing.assert_close(found.scores, expected[None])
    assert found.pred_classes.tolist() == [5] and found.pred_levels.tolist() == [1]


def test_boxes_that_differ_beyond_the_border_alone_are_one_detection():
    """Both cover the image: one reaches 160 px from its point, the other 1600."""
    logits = [torch.full((1, NUM_CLASSES, *size), -20.0) for size in SIZES]
    deltas = [torch.ones(1, 4, *size) for size in SIZES]
    centers = [torch.zeros(1, 1, *size) for size in SIZES]
    logits[0][0, 5, 7, 9:11] = 3.0
    deltas[0][0, :, 7, 9], deltas[0][0, :, 7, 10] = 20.0, 200.0
    predictions = {"fcos": FCOSPredictions(logits, deltas, centers)}
    found = detections_given(tiny_model(*FCOS).eval(), predictions, grid_of())
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 160, 128]]


def test_the_location_losses_are_divided_by_the_sum_of_centerness():
    """Twice the same object in two images: nothing changes."""
    model = randomised()
    gt = instances([(20, 16, 90, 80)], [2])
    inputs = batch(gt)
    with torch.no_grad():
        one = model(inputs)
        two = model([*inputs, *inputs])
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


def test_a_point_on_a_side_is_not_inside():
    """Box 12..28: its centre 20 is a point of P3, and so are 12 and 28, on its sides."""
    assert positives([(12, 12, 28, 28)]) == [(0, 2, 2, 0)]


def test_a_distance_at_a_limit_is_of_both_levels():
    """The point (60, 52) of P3 is 64 px from the side at -4; (56, 56) of P4 from that at 120."""
    assert (0, 6, 7, 0) in positives([(-4, 0, 116, 100)])
    assert (1, 3, 3, 0) in positives([(0, 0, 120, 100)])


def test_many_objects_are_listed_in_parts(monkeypatch):
    torch.manual_seed(0)
    boxes = random_instances(30).gt_boxes.tensor.tolist()
    whole = positives(boxes)
    monkeypatch.setattr("fsaf_d2.assignment.center_sampling.MAX_LISTED", 8)
    assert positives(boxes) == whole


def test_points_may_lie_in_the_corners_of_their_cells():
    """Box 8..56 again: with offset 0 the points 24, 32 and 40 are within 12 px of 32."""
    assert positives([(8, 8, 56, 56)], point_offset=0.0) == [
        (0, y, x, 0) for y in (3, 4, 5) for x in (3, 4, 5)
    ]
    branch = FCOSBranch(strides=STRIDES, in_channels=4, num_classes=NUM_CLASSES, point_offset=0.0)
    predictions = FCOSPredictions(
        [torch.full((1, NUM_CLASSES, *size), 3.0) for size in SIZES],
        [torch.ones(1, 4, *size) for size in SIZES],
        [torch.zeros(1, 1, *size) for size in SIZES],
    )
    found = branch.decode(predictions, grid_of())[1].boxes[0].tolist()
    assert [-16, -16, 16, 16] in found and [-8, -8, 24, 24] not in found
    gt = instances([(8, 8, 56, 56)], [2])
    twice = FCOSPredictions(*([torch.cat([x, x]) for x in levels] for levels in predictions))
    branch.losses(twice, Objects.of([gt, gt]), grid_of())
    assert branch.counted["num_pos_fcos"] == 9


def test_each_output_is_of_its_tower_and_distances_are_not_negative():
    branch = randomised().branches.fcos
    one, other = ([torch.randn(1, 32, *size) for size in SIZES] for _ in range(2))
    found, swapped = branch(one, other), branch(other, one)
    same = branch(one, one)
    assert torch.equal(found.fcos_logits[0], same.fcos_logits[0])
    assert torch.equal(swapped.fcos_deltas[0], same.fcos_deltas[0])
    assert torch.equal(swapped.fcos_centerness[0], same.fcos_centerness[0])
    torch.nn.init.constant_(branch.bbox_pred.bias, -9.0)
    assert all((x == 0).all() for x in branch(one, other).fcos_deltas)


def test_distances_of_each_level_have_a_factor_which_is_one_at_first():
    branch = tiny_model(*FCOS).branches.fcos
    torch.nn.init.constant_(branch.bbox_pred.bias, 2.0)
    features = [torch.randn(1, 32, *size) for size in SIZES]
    plain = branch(features, features).fcos_deltas
    torch.testing.assert_close(plain[1], branch.bbox_pred(features[1]).relu())
    torch.nn.init.constant_(branch.scales.scales[1], 3.0)
    found = branch(features, features).fcos_deltas
    torch.testing.assert_close(found[1], 3 * plain[1])
    assert torch.equal(found[0], plain[0])


def test_one_location_off_the_centre_counts_fully():
    """The point (12, 12) in 9..18 has distances 3, 3, 6, 6 and a centerness of 1/2."""
    model = randomised()
    gt = instances([(9, 9, 18, 18)], [2])
    with torch.no_grad():
        everything, grid = predictions_of(model, batch(gt))
        found = losses_given(model, everything, grid, [gt])["loss_fcos_box_reg"]
    target = torch.tensor([3.0, 3.0, 6.0, 6.0]) / 8
    delta = everything["fcos"].fcos_deltas[0][0, :, 1, 1]
    torch.testing.assert_close(found, point_giou_loss(delta, target))
