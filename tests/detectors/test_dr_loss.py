"""DR loss as a branch (arXiv 1907.10156)."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, pairwise_iou
from fvcore.nn import smooth_l1_loss
from models import (
    ANCHORS_ONLY,
    NUM_CLASSES,
    ROOT,
    SIZES,
    STRIDES,
    batch,
    grid_of,
    instances,
    losses_given,
    predictions_of,
    random_instances,
    tiny_model,
)
from reference import ap_loss
from reference import dr_loss as reference
from reference.fsaf import Object

from fsaf_d2 import load_config
from fsaf_d2.assignment.grid import Grid
from fsaf_d2.assignment.objects import Objects
from fsaf_d2.detectors.retinanet import AnchorPredictions

DR = [
    *("MODEL.META_ARCHITECTURE", "OneStageDetector", "MODEL.BRANCHES", "['dr_loss']"),
    *("MODEL.RETINANET.PRIOR_PROB", "0.5", "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", "0.11"),
    *("MODEL.RETINANET.BBOX_REG_WEIGHTS", "(10.0, 10.0, 5.0, 5.0)"),
]
NO_IGNORED = ["MODEL.RETINANET.IOU_THRESHOLDS", "[0.5]", "MODEL.RETINANET.IOU_LABELS", "[0, 1]"]


def randomised(*overrides: str):
    model = tiny_model(*DR, *overrides)
    torch.nn.init.normal_(model.branches.dr_loss.cls_score.weight, std=0.1)
    torch.nn.init.normal_(model.branches.dr_loss.bbox_pred.weight, std=0.05)
    return model.train()


def flat(levels, size: int) -> torch.Tensor:
    """(N, R * A, size), in the order of anchors."""
    parts = [x.unflatten(1, (-1, size)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in levels]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("overrides", [[], NO_IGNORED])
@pytest.mark.parametrize("counts", [(9, 0, 4), (0, 0)])
def test_losses_and_gradients_are_those_written_out(counts, overrides):
    torch.manual_seed(sum(counts))
    model = randomised(*overrides)
    branch = model.branches.dr_loss
    truth = [random_instances(count) for count in counts]
    with torch.no_grad():
        everything, grid = predictions_of(model, batch(*truth))
    leaves = AnchorPredictions(
        *([x.clone().requires_grad_() for x in levels] for levels in everything["dr_loss"])
    )
    tensors = [x for levels in leaves for x in levels]
    losses = list(losses_given(model, {"dr_loss": leaves}, grid, truth).values())

    logits, deltas = flat(leaves.logits, NUM_CLASSES), flat(leaves.anchor_deltas, 4)
    objects = Objects.of(truth)
    positives, ignored = branch.assign(objects, grid, len(truth))
    assert (len(ignored.labels) > 0) == (not overrides and sum(counts) > 0)
    image, anchor, owner = positives[:3]
    kinds = torch.zeros_like(logits)
    kinds[ignored.image_index, ignored.anchor_index] = -1
    kinds[image, anchor, objects.classes[owner]] = 1
    scores = logits.sigmoid()
    negative, positive = scores[kinds == 0], scores[kinds == 1]
    n = (torch.softmax(negative / (0.1 / math.log(3.5)), dim=0) * negative).sum()
    p = (torch.softmax(-positive, dim=0) * positive).sum() if len(positive) else 1
    ranking = 4 / 6 * torch.log(1 + torch.exp(6 * (n - p + 0.5)))
    anchors, boxes = branch.kinds.boxes(anchor, grid), objects.boxes[owner]
    targets = branch.box2box_transform.get_deltas(anchors, boxes)
    smooth = smooth_l1_loss(deltas[image, anchor], targets, 0.11).sum() / (4 * max(len(image), 1))
    torch.testing.assert_close(losses[0], ranking, rtol=1e-5, atol=0)
    torch.testing.assert_close(losses[1], smooth, rtol=1e-5, atol=0)
    expected = torch.autograd.grad(ranking + smooth, tensors)
    for one, other in zip(torch.autograd.grad(sum(losses), tensors), expected):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-8)


SMALL, IMAGE = [(2, 3), (2, 2), (1, 1), (1, 1), (1, 1)], (24, 40)


@pytest.mark.parametrize("counts", [(4, 0, 2), (1,), (0, 0)])
def test_the_ranking_equals_the_reference(counts, monkeypatch):
    def iou(*boxes) -> float:
        """detectron2's, in float32: others are equal than in float64."""
        return pairwise_iou(*(Boxes(torch.tensor([box])) for box in boxes)).item()

    monkeypatch.setattr(ap_loss, "iou", iou)
    torch.manual_seed(sum(counts))
    truth = [random_instances(count, IMAGE) for count in counts]
    branch = tiny_model(*DR, *NO_IGNORED).branches.dr_loss
    grid = Grid.of(STRIDES, SMALL, torch.device("cpu"))
    logits = [torch.randn(len(truth), 9 * NUM_CLASSES, *x, dtype=torch.float64) for x in SMALL]
    logits = [x.requires_grad_() for x in logits]
    deltas = [torch.zeros(len(truth), 36, *x) for x in SMALL]
    term = branch.losses(AnchorPredictions(logits, deltas), Objects.of(truth), grid)["loss_dr_cls"]

    objects = [
        Object(image, tuple(box), label)
        for image, gt in enumerate(truth)
        for box, label in zip(gt.gt_boxes.tensor.tolist(), gt.gt_classes.tolist())
    ]
    anchors = branch.kinds.boxes(torch.arange(9 * grid.num_locations), grid).tolist()
    total, count = reference.losses(objects, anchors, flat(logits, NUM_CLASSES))
    assert term.count == count and term.total.item() == pytest.approx(total.item(), rel=1e-12)
    pairs = zip(torch.autograd.grad(term.total, logits), torch.autograd.grad(total, logits))
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


def test_the_order_of_objects_changes_nothing():
    model = randomised()
    boxes = [(20, 16, 90, 80), (20, 16, 90, 80), (30, 30, 60, 70)]
    with torch.no_grad():
        everything, grid = predictions_of(model, batch(random_instances(0)))
    found = []
    for order in ([0, 1, 2], [1, 2, 0]):
        truth = [instances([boxes[i] for i in order], order)]
        losses = losses_given(model, everything, grid, truth)
        found.append({name: loss.item() for name, loss in losses.items()})
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_untrained_scores_of_a_half_cost_as_the_card_says():
    """4 / 6 ln(1 + exp(3)) with objects; without, p = 1: 4 / 6 ln 2."""
    model = tiny_model(*DR).train()
    zeros = AnchorPredictions(
        *([torch.zeros(1, 9 * size, *level) for level in SIZES] for size in (NUM_CLASSES, 4))
    )
    for truth, value in ((random_instances(3), 2.0323916), (random_instances(0), 0.4620981)):
        losses = losses_given(model, {"dr_loss": zeros}, grid_of(), [truth])
        assert losses["loss_dr_cls"].item() == pytest.approx(value, abs=1e-6)


def test_twice_the_batch_costs_the_same_boxes():
    model = randomised()
    inputs = batch(instances([(20, 16, 90, 80)], [2]))
    with torch.no_grad():
        one, two = model(inputs), model([*inputs, *inputs])
    name = "loss_dr_box_reg"
    torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)


def test_detections_are_retinanets_and_there_is_no_running_mean():
    model = randomised().eval()
    other = tiny_model(*ANCHORS_ONLY, *DR[4:]).eval()
    state = {name.replace("dr_loss", "anchor"): x for name, x in model.state_dict().items()}
    assert "branches.anchor.loss_normalizer" not in state
    assert other.load_state_dict(state, strict=False).unexpected_keys == []
    inputs = batch(instances([], []))
    with torch.no_grad():
        found, expected = (x(inputs)[0]["instances"] for x in (model, other))
    assert len(found) > 0 and torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


@pytest.mark.slow
def test_parameter_count_is_retinanets():
    path = ROOT / "configs/family/dr_loss_R_50_FPN_1x.yaml"
    model = build_model(load_config(path, ["MODEL.DEVICE", "cpu"]))
    head = [*model.towers.parameters(), *model.branches.parameters()]
    assert sum(x.numel() for x in head) == 6_463_220


@pytest.mark.parametrize("name", ["dr_loss_R_50_FPN_1x", "digits/dr_loss"])
def test_the_recipe_is_the_papers(name):
    cfg = load_config(ROOT / f"configs/family/{name}.yaml")
    retinanet = cfg.MODEL.RETINANET
    assert (retinanet.PRIOR_PROB, retinanet.SCORE_THRESH_TEST) == (0.5, 0.2)
    assert (retinanet.IOU_THRESHOLDS, retinanet.IOU_LABELS) == ([0.5], [0, 1])
    assert retinanet.SMOOTH_L1_LOSS_BETA == 0.11 and retinanet.NMS_THRESH_TEST == 0.5
    dr_loss = cfg.MODEL.DR_LOSS
    found = (dr_loss.LAMBDA_POSITIVE, dr_loss.LAMBDA_NEGATIVE, dr_loss.SMOOTHNESS, dr_loss.TAU)
    assert found == pytest.approx((1, 0.0798236, 6, 4), rel=1e-6) and dr_loss.MARGIN == 0.5


def test_keys_are_heeded():
    plain = randomised()
    inputs = batch(instances([(10, 10, 70, 60), (40, 30, 150, 120)], [1, 2]))
    expected = {name: loss.item() for name, loss in plain(inputs).items()}
    for key in ("LAMBDA_POSITIVE", "LAMBDA_NEGATIVE", "SMOOTHNESS", "TAU", "MARGIN"):
        model = tiny_model(*DR, f"MODEL.DR_LOSS.{key}", "0.7")
        model.load_state_dict(plain.state_dict())
        found = model(inputs)
        assert found["loss_dr_cls"].item() != pytest.approx(expected["loss_dr_cls"]), key
        assert found["loss_dr_box_reg"].item() == expected["loss_dr_box_reg"], key


def test_predictions_that_are_no_numbers_do_not_stop_it():
    model = randomised()
    truth = [random_instances(5)]
    for value in (float("inf"), -float("inf"), float("nan")):
        with torch.no_grad():
            everything, grid = predictions_of(model, batch(*truth))
        leaves = AnchorPredictions(
            *([x.clone().requires_grad_() for x in levels] for levels in everything["dr_loss"])
        )
        for levels in leaves:
            for x in levels:
                x.data[..., ::2] = value
        sum(losses_given(model, {"dr_loss": leaves}, grid, truth).values()).backward()
