import copy

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from models import (
    ANCHOR_FREE_ONLY,
    ANCHORS_ONLY,
    HEURISTIC,
    NUM_CLASSES,
    ROOT,
    SIZES,
    batch,
    dense_targets,
    detections_given,
    grid_of,
    head_parameters,
    instances,
    losses_given,
    predictions_of,
    random_instances,
    randomise,
    tiny_cfg,
    tiny_model,
)
from reference import fsaf as reference

from fsaf_d2 import load_config
from fsaf_d2.assignment.feature_selection import SelectionRule, label_points
from fsaf_d2.assignment.objects import Objects
from fsaf_d2.detectors.fsaf import PointPredictions
from fsaf_d2.detectors.retinanet import AnchorPredictions
from fsaf_d2.losses import background_loss_sums
from fsaf_d2.weights.layouts import current_name

NEW_TENSORS = {
    f"branches.point.{layer}.{kind}"
    for layer in ("cls_score", "bbox_pred")
    for kind in ("weight", "bias")
}


def losses_of(model, inputs) -> dict[str, float]:
    with EventStorage(), torch.no_grad():
        return {name: loss.item() for name, loss in model.train()(inputs).items()}


def retinanet_like(model, *overrides: str):
    """detectron2's RetinaNet with the weights that the model shares with it."""
    retinanet = build_model(tiny_cfg("MODEL.META_ARCHITECTURE", "RetinaNet", *overrides))
    retinanet.load_state_dict(
        {name: model.state_dict()[current_name(name)] for name in retinanet.state_dict()}
    )
    return retinanet


# METHODS 1.8; FrozenBN holds 53,120 scales and shifts of R-50 as buffers.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("ablations/anchors_only_R_50_FPN_1x", 37_968_692),
        ("ablations/anchor_free_online_R_50_FPN_1x", 36_419_732),
        ("fsaf_R_50_FPN_1x", 38_162_312),
    ],
)
def test_parameter_counts(config, expected):
    model = build_model(load_config(ROOT / f"configs/{config}.yaml", ["MODEL.DEVICE", "cpu"]))
    frozen = [
        buffer
        for name, buffer in model.named_buffers()
        if name.endswith(("norm.weight", "norm.bias"))
    ]
    assert sum(buffer.numel() for buffer in frozen) == 53_120
    assert sum(p.numel() for p in [*model.parameters(), *frozen]) == expected


@pytest.mark.parametrize("overrides", [[], ANCHORS_ONLY, ANCHOR_FREE_ONLY])
def test_a_branch_that_is_off_has_no_layers(overrides):
    names = {name.rpartition(".")[0] for name in head_parameters(tiny_model(*overrides))}
    branches = {"branches.anchor"} if overrides != ANCHOR_FREE_ONLY else set()
    branches |= {"branches.point"} if overrides != ANCHORS_ONLY else set()
    layers = {f"{name}.{layer}" for name in branches for layer in ("cls_score", "bbox_pred")}
    assert names == {"towers.cls_subnet.0", "towers.bbox_subnet.0"} | layers


def test_initial_values():
    point = tiny_model().branches.point
    # -ln((1 - 0.01) / 0.01)
    torch.testing.assert_close(point.cls_score.bias, torch.full((NUM_CLASSES,), -4.59512))
    torch.testing.assert_close(point.bbox_pred.bias, torch.full((4,), 0.1))
    assert point.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_distances_are_never_negative():
    model = tiny_model()
    randomise(model)
    features = [torch.randn(1, 32, 2**i, 2**i) * 100 for i in (4, 3, 2, 1, 0)]
    deltas = model.branches.point(*model.towers(features)).point_deltas
    assert all((level >= 0).all() for level in deltas)
    assert any((level == 0).any() for level in deltas)


def test_retinanet_state_dict_loads_with_exactly_four_tensors_missing():
    retinanet = build_model(tiny_cfg("MODEL.META_ARCHITECTURE", "RetinaNet"))
    weights = {current_name(name): value for name, value in retinanet.state_dict().items()}
    result = tiny_model().load_state_dict(weights, strict=False)
    assert set(result.missing_keys) == NEW_TENSORS
    assert result.unexpected_keys == []


def test_checkpoint_round_trip(tmp_path):
    model = tiny_model()
    losses_of(model, batch(random_instances(5)))
    assert model.branches.anchor.loss_normalizer != 100
    DetectionCheckpointer(model, save_dir=str(tmp_path)).save("model")
    other = tiny_model()
    DetectionCheckpointer(other).load(str(tmp_path / "model.pth"))
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_weights_without_a_loss_normalizer_begin_with_retinanets():
    model = tiny_model()
    losses_of(model, batch(random_instances(5)))
    name = "branches.anchor.loss_normalizer"
    model.load_state_dict({key: x for key, x in model.state_dict().items() if key != name})
    assert model.branches.anchor.loss_normalizer == 100
    assert name not in tiny_model(*ANCHOR_FREE_ONLY).state_dict()


@pytest.mark.parametrize("overrides", [[], ANCHORS_ONLY])
def test_normalizer_follows_retinanets(overrides):
    model = tiny_model(*overrides)
    retinanet = retinanet_like(model)
    for count in (3, 40, 0, 9):
        inputs = batch(random_instances(count), random_instances(count))
        losses_of(retinanet, inputs)
        losses_of(model, inputs)
        normalizer = model.branches.anchor.loss_normalizer.item()
        assert normalizer == pytest.approx(retinanet.loss_normalizer, rel=1e-6)


def test_gradients_of_several_batches_can_be_summed():
    model = tiny_model()
    inputs = [batch(random_instances(5)) for _ in range(2)]
    weights = model.branches.point.cls_score.weight

    def gradient(*losses) -> torch.Tensor:
        model.zero_grad()
        sum(sum(x.values()) for x in losses).backward()
        return weights.grad.clone()

    losses = [model(x) for x in inputs]
    # The branch of the points has no running mean, by which a repeated step would differ.
    expected = sum(gradient(model(x)) for x in inputs)
    torch.testing.assert_close(gradient(*losses), expected)
    assert expected.abs().max() > 0


def test_copies_and_pickles(tmp_path):
    model = tiny_model()
    losses_of(model, batch(random_instances(5)))
    torch.save(model, tmp_path / "model.pth")
    for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pth", weights_only=False)):
        name = "branches.anchor.loss_normalizer"
        assert torch.equal(other.state_dict()[name], model.state_dict()[name])


def test_missing_ground_truth_is_named():
    inputs = batch(random_instances(1))
    del inputs[0]["instances"]
    with pytest.raises(ValueError, match=r"cat\.jpg has no 'instances'"):
        tiny_model()([{**inputs[0], "file_name": "cat.jpg"}])


@pytest.mark.parametrize("overrides", [[], ANCHORS_ONLY])
def test_anchor_branch_has_retinanets_losses(overrides):
    model = tiny_model(*overrides)
    randomise(model)
    inputs = batch(random_instances(12), random_instances(0))
    expected = losses_of(retinanet_like(model), inputs)
    losses = losses_of(model, inputs)
    assert {name: losses[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_losses_heed_how_predictions_lie_in_memory():
    model = tiny_model().train()
    randomise(model)
    gt = random_instances(8)
    predictions, grid = predictions_of(model, batch(gt))
    gaps = {
        name: type(x)(*([y.repeat_interleave(2, dim=-1)[..., ::2] for y in levels] for levels in x))
        for name, x in predictions.items()
    }
    assert not gaps["anchor"].logits[0].is_contiguous()
    with torch.no_grad():
        expected = losses_given(model, predictions, grid, [gt])
        model.branches.anchor.loss_normalizer.fill_(100)  # as it was before the first call
        losses = losses_given(model, gaps, grid, [gt])
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)


def test_anchor_branch_has_retinanets_gradients():
    model = tiny_model(*ANCHORS_ONLY)
    randomise(model)
    inputs = batch(random_instances(12), random_instances(5))
    retinanet = retinanet_like(model)
    for detector in (model, retinanet):
        with EventStorage():
            sum(detector.train()(inputs).values()).backward()
    parameters = dict(model.named_parameters())
    for name, expected in head_parameters(retinanet).items():
        found = parameters[current_name(name)].grad
        torch.testing.assert_close(found, expected.grad, rtol=1e-4, atol=1e-5)


def detections_of(model, inputs):
    with torch.no_grad():
        return [output["instances"] for output in model.eval()(inputs)]


def assert_same_detections(one, other):
    """Bit for bit, in whatever order equal scores have."""
    assert len(one) == len(other) > 0
    tables = (
        torch.cat([x.scores[:, None], x.pred_classes[:, None], x.pred_boxes.tensor], dim=1)
        for x in (one, other)
    )
    assert sorted(next(tables).tolist()) == sorted(next(tables).tolist())


@pytest.mark.parametrize("silence_points", [False, True])
def test_detections_equal_retinanets_when_only_anchors_answer(silence_points):
    """The anchor-free branch off, or on with every score below the threshold."""
    model = tiny_model(*([] if silence_points else ANCHORS_ONLY))
    randomise(model)
    if silence_points:
        torch.nn.init.constant_(model.branches.point.cls_score.weight, 0)
        torch.nn.init.constant_(model.branches.point.cls_score.bias, -3.0)  # score 0.047
    inputs = batch(instances([], []), instances([], [], size=(96, 200)))
    expected = detections_of(retinanet_like(model), inputs)
    for one, other in zip(detections_of(model, inputs), expected):
        assert_same_detections(one, other)


def test_detections_name_level_and_branch():
    model = tiny_model()
    randomise(model)
    (detections,) = detections_of(model, batch(instances([], [])))
    assert set(detections.pred_branches.tolist()) == {0, 1}
    assert set(detections.pred_levels.tolist()) <= set(range(5))
    for name, model_overrides in (("point", ANCHOR_FREE_ONLY), ("anchor", ANCHORS_ONLY)):
        single = tiny_model(*model_overrides)
        randomise(single)
        (found,) = detections_of(single, batch(instances([], [])))
        assert set(found.pred_branches.tolist()) == {0}
        assert single.traits.branch_names == (name,)


def test_a_location_decodes_about_its_own_centre():
    """One confident cell (y, x) = (3, 5) of stride 8: its centre is (44, 28), the unit 32 px."""
    model = tiny_model(*ANCHOR_FREE_ONLY)
    logits = silent(1)
    logits[0][0, 4, 3, 5] = 3.0
    deltas = [torch.full((1, 4, *size), 0.5) for size in SIZES]
    deltas[0][0, :, 3, 5] = torch.tensor([0.5, 0.25, 1.0, 0.75])
    predictions = {"point": PointPredictions(logits, deltas)}
    found = detections_given(model.eval(), predictions, grid_of())
    assert found.pred_boxes.tensor.tolist() == [[44 - 16, 28 - 8, 44 + 32, 28 + 24]]
    assert found.pred_classes.tolist() == [4] and found.pred_levels.tolist() == [0]


def test_anchor_free_boxes_are_clipped_to_the_image():
    model = tiny_model(*ANCHOR_FREE_ONLY)
    randomise(model)
    torch.nn.init.constant_(model.branches.point.bbox_pred.bias, 5.0)
    (found,) = detections_of(model, batch(instances([], [], size=(100, 150))))
    boxes = found.pred_boxes.tensor
    assert len(boxes) > 0 and (boxes >= 0).all()
    assert (boxes[:, 2] <= 150).all() and (boxes[:, 3] <= 100).all()


@pytest.mark.parametrize("overrides", [[], HEURISTIC])
def test_losses_equal_the_reference(overrides):
    model = tiny_model(*overrides).train()
    randomise(model)
    ground_truths = [random_instances(6), random_instances(0), random_instances(9)]
    with torch.no_grad():
        everything, grid = predictions_of(model, batch(*ground_truths))
        losses = losses_given(model, everything, grid, ground_truths)
    predictions = everything["point"]
    levels = [
        reference.Level(stride, *logits.shape[-2:])
        for stride, logits in zip((8, 16, 32, 64, 128), predictions.point_logits)
    ]
    logits, distances = (
        [[level[image].permute(1, 2, 0).tolist() for level in prediction] for image in range(3)]
        for prediction in (predictions.point_logits, predictions.point_deltas)
    )
    objects = [
        reference.Object(image, tuple(box), label)
        for image, gt in enumerate(ground_truths)
        for box, label in zip(gt.gt_boxes.tensor.tolist(), gt.gt_classes.tolist())
    ]
    if overrides == HEURISTIC:
        selected = [reference.heuristic_level(obj.box, levels) for obj in objects]
    else:
        selected = [reference.select_level(obj, levels, logits, distances) for obj in objects]
    focal, iou = reference.losses(objects, selected, levels, logits, distances)
    assert losses["loss_point_cls"].item() == pytest.approx(0.5 * focal, rel=1e-4)
    assert losses["loss_point_box_reg"].item() == pytest.approx(0.5 * iou, rel=1e-4)


def test_every_level_answers_for_its_size_under_the_heuristic():
    """16 px -> p3, 112 -> p4, 224 -> p5, 448 -> p6, 896 -> p7."""
    model = tiny_model(*HEURISTIC)
    boxes = [(0, 0, side, side) for side in (16, 112, 224, 448, 896)]
    model(batch(instances(boxes, [0] * 5, size=(896, 896))))
    assert [model.counts()[f"num_objects_p{level}"] for level in range(3, 8)] == [1] * 5


def targets_of(model, predictions, grid, ground_truths):
    """The targets that the model gives its locations."""
    flat_logits, flat_deltas = (
        torch.cat([level.flatten(2).transpose(1, 2) for level in part], dim=1)
        for part in predictions
    )
    objects, branch = Objects.of(ground_truths), model.branches.point
    _, targets = label_points(
        flat_logits,
        flat_deltas,
        branch._points(grid, model.device),
        objects,
        grid,
        branch.selection_rule,
        background_losses=background_loss_sums(flat_logits.transpose(1, 2), **branch.focal_loss),
        **{f"focal_loss_{name}": value for name, value in branch.focal_loss.items()},
    )
    return dense_targets(targets, objects, NUM_CLASSES)


def test_ignored_channel_has_no_gradient_and_its_neighbours_have():
    model = tiny_model().train()
    (gt,) = [instances([(10, 10, 130, 110)], [3])]
    everything, grid = predictions_of(model, batch(gt))
    logits = [level.detach().requires_grad_() for level in everything["point"].point_logits]
    deltas = [level.detach() for level in everything["point"].point_deltas]
    predictions = PointPredictions(logits, deltas)
    losses = losses_given(model, {**everything, "point": predictions}, grid, [gt])
    losses["loss_point_cls"].backward()
    ignored = targets_of(model, predictions, grid, [gt]).ignored
    grads = torch.cat([level.grad.flatten(2).transpose(1, 2) for level in logits], dim=1)
    assert ignored[..., 3].any()
    assert (grads[ignored] == 0).all()
    assert (grads[~ignored] != 0).all()
    assert not ignored[..., [0, 1, 2, 4, 5, 6]].any()


def test_order_of_the_objects_plays_no_part():
    model = tiny_model()
    gt = random_instances(15)
    inputs = batch(gt)
    expected = losses_of(model, inputs)
    inputs[0]["instances"] = gt[torch.randperm(15)]
    model.branches.anchor.loss_normalizer.fill_(100)  # as it was before the first call
    assert losses_of(model, inputs) == pytest.approx(expected, rel=1e-5)


def test_loss_weight_scales_the_anchor_free_losses_alone():
    inputs = batch(random_instances(5))
    model = tiny_model()
    single, double = tiny_model(), tiny_model("MODEL.FSAF.LOSS_WEIGHT", "1.0")
    for other in (single, double):
        other.load_state_dict(model.state_dict())
    one, two = losses_of(single, inputs), losses_of(double, inputs)
    assert set(one) == {
        "loss_cls",
        "loss_box_reg",
        "loss_point_cls",
        "loss_point_box_reg",
    }
    for name, value in one.items():
        assert two[name] == pytest.approx(value * (2 if "point" in name else 1), rel=1e-5)


def test_losses_are_divided_by_the_positive_locations():
    """At the start every logit is the prior's: 1.1283818 a positive, 7.5e-7 every other channel."""
    model = tiny_model("MODEL.FSAF.LOSS_WEIGHT", "1.0")
    for level in (model.branches.point.cls_score, model.branches.point.bbox_pred):
        torch.nn.init.constant_(level.weight, 0)
    for count in (1, 2):
        boxes = [(8 + 60 * i, 20, 48 + 60 * i, 60) for i in range(count)]
        loss = losses_of(model, batch(instances(boxes, [1] * count)))["loss_point_cls"]
        assert loss == pytest.approx(1.1284, abs=3e-3)


def test_no_object_anywhere_divides_by_one():
    model = tiny_model("MODEL.FSAF.LOSS_WEIGHT", "1.0")
    torch.nn.init.constant_(model.branches.point.cls_score.weight, 0)
    losses = losses_of(model, batch(random_instances(0)))
    locations = 16 * 20 + 8 * 10 + 4 * 5 + 2 * 3 + 1 * 2
    # 0.75 * 0.01^2 * -ln(0.99) = 7.5377e-7 a channel
    assert losses["loss_point_cls"] == pytest.approx(locations * NUM_CLASSES * 7.5377e-7, rel=1e-3)
    assert losses["loss_point_box_reg"] == 0


def test_what_a_step_has_counted_is_told():
    model = tiny_model()
    model(batch(random_instances(7), random_instances(4)))
    latest = {name: value.item() for name, value in model.counts().items()}
    assert sum(latest[f"num_objects_p{level}"] for level in range(3, 8)) == 11
    assert latest["num_pos_points"] >= 1 and latest["num_pos_anchors"] >= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_and_boxes_are_float32_under_autocast(dtype):
    model = tiny_model()
    inputs = batch(random_instances(8))
    with torch.autocast("cpu", dtype=dtype):
        losses = model(inputs)
        detections = detections_of(model, inputs)[0]
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    assert detections.pred_boxes.tensor.dtype == detections.scores.dtype == torch.float32


def test_losses_do_not_depend_on_autocast_given_the_same_predictions():
    model = tiny_model().train()
    gt = random_instances(8)
    predictions, grid = predictions_of(model, batch(gt))
    with torch.no_grad():
        plain = losses_given(model, predictions, grid, [gt])
    model.branches.anchor.loss_normalizer.fill_(100)  # as it was before the first call
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = losses_given(model, predictions, grid, [gt])
    for name, value in plain.items():
        torch.testing.assert_close(mixed[name], value, rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm", ["GN", "BN"])
def test_norms_that_train_from_scratch(norm):
    cfg = tiny_cfg("MODEL.RETINANET.NORM", norm)
    model = build_model(cfg)
    # Only the tower's own convolutions and norms: conv, norm, ReLU.
    assert len(model.towers.cls_subnet) == 3
    losses = model(batch(random_instances(3), random_instances(2)))
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["LEVEL_SELECTION", "best"], ["LEVEL_SELECTION", "online", "heuristic", "best"]),
        (["EFFECTIVE_SCALE", "0.6"], ["EFFECTIVE_SCALE", "IGNORE_SCALE", "0.6"]),
        (["EFFECTIVE_SCALE", "0.0"], ["EFFECTIVE_SCALE"]),
        (["IGNORE_SCALE", "1.5"], ["IGNORE_SCALE", "1.5"]),
        (["BOX_NORMALIZER", "0.0"], ["BOX_NORMALIZER"]),
        (["POINT_OFFSET", "1.0"], ["POINT_OFFSET"]),
        (["CANONICAL_BOX_SIZE", "0"], ["CANONICAL_BOX_SIZE"]),
        (["HEURISTIC_STEPS", "-1"], ["HEURISTIC_STEPS", "-1"]),
        (["LOSS_WEIGHT", "-1.0"], ["LOSS_WEIGHT", "-1.0"]),
        (
            ["ANCHOR_BRANCH", "False", "ANCHOR_FREE_BRANCH", "False"],
            ["ANCHOR_BRANCH", "ANCHOR_FREE"],
        ),
        (["BBOX_BIAS", "0.0"], ["BBOX_BIAS", "0.0"]),
        (["BBOX_BIAS", "-1.0"], ["BBOX_BIAS", "-1.0"]),
        (["LOSS_WEIGHT", "1e400"], ["LOSS_WEIGHT", "inf"]),
        (["BOX_NORMALIZER", "1e400"], ["BOX_NORMALIZER", "inf"]),
    ],
)
def test_wrong_values_are_refused_with_the_keys_name(overrides, words):
    keys = [f"MODEL.FSAF.{word}" if i % 2 == 0 else word for i, word in enumerate(overrides)]
    with pytest.raises(ValueError) as error:
        tiny_model(*keys)
    assert all(word in str(error.value) for word in words), error.value


def test_a_scale_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="EFFECTIVE_SCALE"):
        SelectionRule(effective_scale=float("nan"))


def test_boxes_of_both_branches_that_agree_at_the_border_are_one_detection():
    """An anchor and a point for the same object, whose boxes differ only beyond the image."""
    model = tiny_model().eval()
    logits, deltas = silent(9), [torch.zeros(1, 36, *size) for size in SIZES]
    point_logits = silent(1)
    point_deltas = [torch.zeros(1, 4, *size) for size in SIZES]
    # The square anchor of 128 px at the origin, -64 to 64, and a point whose box is -36 to 64.
    logits[2][0, NUM_CLASSES + 1, 0, 0] = 3.0
    point_logits[0][0, 1, 3, 3] = 2.0
    point_deltas[0][0, :, 3, 3] = torch.tensor([2.0, 2.0, 1.125, 1.125])
    predictions = {
        "anchor": AnchorPredictions(logits, deltas),
        "point": PointPredictions(point_logits, point_deltas),
    }
    found = detections_given(model, predictions, grid_of())
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 64, 64]]
    assert found.pred_branches.tolist() == [0]


def silent(num_anchors: int) -> list[torch.Tensor]:
    return [torch.full((1, num_anchors * NUM_CLASSES, *size), -9.0) for size in SIZES]


def test_boxes_without_an_area_take_no_place():
    """Every location answers for a point; the one box with an area must not be crowded out."""
    model = tiny_model(*ANCHOR_FREE_ONLY).eval()
    logits = [torch.full((1, NUM_CLASSES, *size), 2.0) for size in SIZES]
    deltas = [torch.zeros(1, 4, *size) for size in SIZES]
    logits[1][0, :, 4, 5] = -9.0
    logits[1][0, 6, 4, 5] = 0.0
    deltas[1][0, :, 4, 5] = 0.5
    found = detections_given(model, {"point": PointPredictions(logits, deltas)}, grid_of())
    assert found.pred_classes.tolist() == [6] and found.pred_levels.tolist() == [1]


# One value beside the default each; what the key governs must follow it.
def test_keys_of_the_head_are_heeded():
    model = tiny_model("MODEL.FSAF.BBOX_BIAS", "0.7", "MODEL.RETINANET.PRIOR_PROB", "0.02")
    point = model.branches.point
    torch.testing.assert_close(point.bbox_pred.bias, torch.full((4,), 0.7))
    # -ln((1 - 0.02) / 0.02)
    torch.testing.assert_close(point.cls_score.bias, torch.full((NUM_CLASSES,), -3.89182))


def test_keys_of_the_points_are_heeded():
    model = tiny_model("MODEL.FSAF.BOX_NORMALIZER", "2.0", "MODEL.FSAF.POINT_OFFSET", "0.25")
    points = model.branches.point._points(grid_of([(2, 2)] * 5), torch.device("cpu"))
    # Stride 8: the second location is at (10, 2), its box 16 px wide.
    assert points[1].tolist() == [2, -6, 18, 10]


@pytest.mark.parametrize(
    ("key", "value", "field"),
    [
        ("EFFECTIVE_SCALE", "0.3", "effective_scale"),
        ("IGNORE_SCALE", "0.4", "ignore_scale"),
        ("CANONICAL_LEVEL", "4", "canonical_level"),
        ("CANONICAL_BOX_SIZE", "112", "canonical_box_size"),
    ],
)
def test_keys_of_the_selection_are_heeded(key, value, field):
    rule = tiny_model(f"MODEL.FSAF.{key}", value).branches.point.selection_rule
    assert str(getattr(rule, field)) == value
    model = tiny_model("MODEL.FSAF.LEVEL_SELECTION", "heuristic", f"MODEL.FSAF.{key}", value)
    plain = tiny_model("MODEL.FSAF.LEVEL_SELECTION", "heuristic")
    features = [torch.zeros(1, 32, *size) for size in SIZES]
    outputs = plain.branches.point(features, features)
    gt = instances([(20, 10, 150, 110), (3, 5, 60, 40)], [1, 2])
    one, other = (targets_of(m, outputs, grid_of(), [gt]) for m in (model, plain))
    assert not torch.equal(one.labels, other.labels) or not torch.equal(one.ignored, other.ignored)


def test_the_first_steps_select_by_size():
    # Steps of training between them do not change what a frozen norm does.
    norm = ("MODEL.RESNETS.NORM", "FrozenBN")
    online = tiny_model(*norm)
    mixed, heuristic = (
        tiny_model(*norm, f"MODEL.FSAF.{key}", value)
        for key, value in (("HEURISTIC_STEPS", "5"), ("LEVEL_SELECTION", "heuristic"))
    )
    for model in (mixed, heuristic):
        model.load_state_dict(online.state_dict())
    inputs = batch(instances([(5, 5, 30, 30), (10, 10, 90, 80)], [0, 1]))

    def levels(model):
        model.loss_terms(inputs)
        return model.branches.point.selected_levels.tolist()

    def losses(model):
        # The anchors' normalizer is a running mean.
        return {k: loss.item() for k, loss in model(inputs).items() if "point" in k}

    assert levels(heuristic) != levels(online)
    assert levels(mixed) == levels(online)  # outside of a training
    for step, same in ((0, heuristic), (4, heuristic), (5, online), (4, heuristic)):
        mixed.at_step(step)
        assert levels(mixed) == levels(same)
        assert losses(mixed) == losses(same)


def test_keys_of_the_focal_loss_are_heeded(monkeypatch):
    focal = ["MODEL.RETINANET.FOCAL_LOSS_ALPHA", "0.4", "MODEL.RETINANET.FOCAL_LOSS_GAMMA", "1.0"]
    monkeypatch.setattr(reference, "ALPHA", 0.4)
    monkeypatch.setattr(reference, "GAMMA", 1.0)
    test_losses_equal_the_reference(focal)


def test_keys_of_inference_are_heeded():
    assert tiny_model("MODEL.FSAF.NMS_PER_LEVEL", "True").suppression.nms_per_level
    plain = tiny_model()
    randomise(plain)
    inputs = batch(instances([], []))
    expected = detections_of(plain, inputs)[0].pred_boxes.tensor.tolist()
    for key, value in {
        "MODEL.RETINANET.SCORE_THRESH_TEST": "0.9995",
        "MODEL.RETINANET.NMS_THRESH_TEST": "0.2",
        "MODEL.RETINANET.TOPK_CANDIDATES_TEST": "3",
        "TEST.DETECTIONS_PER_IMAGE": "7",
    }.items():
        model = tiny_model(key, value)
        model.load_state_dict(plain.state_dict())
        found = detections_of(model, inputs)[0].pred_boxes.tensor.tolist()
        assert found != expected, key
        assert len(found) <= 7 or "PER_IMAGE" not in key
