import math

import pytest
import torch
from detectron2.modeling import build_model
from fvcore.nn import giou_loss, sigmoid_focal_loss
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
    random_instances,
    tiny_model,
)
from reference import atss as reference
from reference import fcos as fcos_reference
from reference.fsaf import Level, Object
from torch.nn import functional as F

from fsaf_d2 import load_config
from fsaf_d2.detectors.atss import ATSSPredictions

ATSS = ["MODEL.META_ARCHITECTURE", "OneStageDetector", "MODEL.BRANCHES", "['atss']"]
ATSS += ["MODEL.RETINANET.NORM", "GN"]
# One candidate a level: an object as large as its level's anchor has that one alone.
ONE = [*ATSS, "MODEL.ATSS.TOP_K", "1"]


def predictions() -> ATSSPredictions:
    """Hardly any score, and the anchors as boxes."""
    return ATSSPredictions(
        [torch.full((1, NUM_CLASSES, *size), -20.0) for size in SIZES],
        [torch.zeros(1, 4, *size) for size in SIZES],
        [torch.zeros(1, 1, *size) for size in SIZES],
    )


# 23,508,032 + 3,868,672 of backbone and neck; towers 4,718,592 without biases, group norm 4,096,
# outputs 184,400 + 9,220 + 2,305, five scales: as mmdetection's ATSS has them.
@pytest.mark.slow
def test_parameter_counts():
    cfg = load_config(ROOT / "configs/family/atss_R_50_FPN_1x.yaml", ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    head = [*model.towers.parameters(), *model.branches.parameters()]
    assert sum(p.numel() for p in head) == 4_918_618
    state = model.state_dict().items()
    assert sum(x.numel() for name, x in state if "running_" not in name) == 32_295_322


def test_outputs_are_of_their_towers_and_boxes_scaled_by_level():
    branch = tiny_model(*ATSS).branches.atss
    one, other = torch.randn(2, 1, 32, 3, 3)
    scales = torch.tensor([1.0, 2, 3, 4, 5])
    for scale, value in zip(branch.scales.scales, scales):
        scale.data.copy_(value)
    logits, boxes, centers = branch([one] * 5, [other] * 5)
    for index, scale in enumerate(scales):
        torch.testing.assert_close(logits[index], branch.cls_score(one))
        torch.testing.assert_close(boxes[index], branch.bbox_pred(other) * scale)
        torch.testing.assert_close(centers[index], branch.centerness(other))


@pytest.mark.parametrize(("offset", "center"), [("0.5", (56, 40)), ("0.0", (48, 32))])
def test_deltas_are_weighted_and_scores_are_the_root_of_score_times_centerness(offset, center):
    """An anchor of 128 px at stride 16: moved by 128 * .1 in x, as high as 128 * exp(-1)."""
    model = tiny_model(*ATSS, "MODEL.ATSS.POINT_OFFSET", offset).eval()
    logits, deltas, centers = said = predictions()
    logits[1][0, 5, 2, 3], centers[1][0, 0, 2, 3] = 1.0, 2.0
    deltas[1][0, :, 2, 3] = torch.tensor([1.0, 0.0, -5.0, -5.0])
    found = detections_given(model, {"atss": said}, grid_of())
    x, y, half = center[0] + 12.8, center[1], 64 / math.e
    box = torch.tensor([[x - half, y - half, x + half, y + half]])
    torch.testing.assert_close(found.pred_boxes.tensor, box)
    expected = (torch.tensor(1.0).sigmoid() * torch.tensor(2.0).sigmoid()).sqrt()
    torch.testing.assert_close(found.scores, expected[None])
    assert found.pred_classes.tolist() == [5] and found.pred_levels.tolist() == [1]


def test_losses_by_hand():
    """Two objects, each with one positive on P3.

    The first is the anchor at (2, 2), whose box is exact: centerness 1, GIoU loss 0. The second is
    66 px wide, from 49 to 115 about the point 84 of (8, 10): distances 35 and 31 in x, 32 in y.
    """
    gt = instances([(-12, -12, 52, 52), (49, 36, 115, 100)], [4, 2])
    logits, _, centers = said = predictions()
    logits[0][0, 4, 2, 2], centers[0][0, 0, 2, 2] = 2.0, 1.0
    centers[0][0, 0, 8, 10] = -1.0
    model = tiny_model(*ONE)
    losses = losses_given(model, {"atss": said}, grid_of(), [gt])
    assert model.branches.atss.counted["num_pos_atss"] == 2
    one, other = 1.0, math.sqrt(31 / 35)
    iou = 63 * 64 / (64 * 64 + 66 * 64 - 63 * 64)
    giou_loss = 1 - iou  # nothing of the hull, 67 x 64, is left
    found = losses["loss_atss_box_reg"].item()
    assert found == pytest.approx(2 * other * giou_loss / (one + other), rel=1e-4)
    entropy = [
        y * math.log1p(math.exp(-x)) + (1 - y) * math.log1p(math.exp(x))
        for x, y in ((1.0, one), (-1.0, other))
    ]
    assert losses["loss_atss_centerness"].item() == pytest.approx(sum(entropy) / 2, rel=1e-5)
    focal = sigmoid_focal_loss(torch.tensor([2.0, -20.0]), torch.ones(2), 0.25, 2.0)
    assert losses["loss_atss_cls"].item() == pytest.approx(focal.sum().item() / 2, rel=1e-5)


def test_losses_and_gradients_equal_those_over_the_references_anchors():
    """Three images, one without objects; by plain torch operations."""
    sizes = [(5, 6), (3, 3), (2, 2), (1, 1), (1, 1)]
    ground_truths = [random_instances(5, (40, 48)), random_instances(0), random_instances(4)]
    leaves = ATSSPredictions(
        *([torch.randn(3, c, *x, requires_grad=True) for x in sizes] for c in (NUM_CLASSES, 4, 1))
    )
    listed = [
        Object(image, tuple(box), label)
        for image, gt in enumerate(ground_truths)
        for box, label in zip(gt.gt_boxes.tensor.tolist(), gt.gt_classes.tolist())
    ]
    levels = [Level(stride, *size) for stride, size in zip(STRIDES, sizes)]
    positive = reference.assign(listed, levels)
    labels = [torch.zeros_like(x) for x in leaves.atss_logits]
    giou = entropy = weights = torch.zeros(())
    for (image, index, y, x), obj in positive.items():
        labels[index][image, obj.label, y, x] = 1
        px, py = reference.point(levels[index], y, x, 0.5)
        sides = px - obj.box[0], py - obj.box[1], obj.box[2] - px, obj.box[3] - py
        weight = torch.tensor(fcos_reference.centerness(sides))
        weights = weights + weight
        dx, dy, dw, dh = leaves.atss_deltas[index][image, :, y, x]
        side = 8 * STRIDES[index]
        center = torch.stack([px + dx / 10 * side, py + dy / 10 * side])
        half = torch.stack([(dw / 5).exp(), (dh / 5).exp()]) * side / 2
        box = torch.cat([center - half, center + half])
        giou = giou + weight * giou_loss(box, torch.tensor(obj.box))
        logit = leaves.atss_centerness[index][image, 0, y, x]
        entropy = entropy + F.binary_cross_entropy_with_logits(logit, weight)
    focal = sum(
        sigmoid_focal_loss(x, y, 0.25, 2.0, "sum") for x, y in zip(leaves.atss_logits, labels)
    )
    expected = focal / len(positive), 2 * giou / weights, entropy / len(positive)
    losses = losses_given(tiny_model(*ATSS), {"atss": leaves}, grid_of(sizes), ground_truths)
    everything = [x for part in leaves for x in part]
    settings = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    for found, loss in zip(losses.values(), expected, strict=True):
        torch.testing.assert_close(found, loss, rtol=1e-4, atol=0)
        gradients = (torch.autograd.grad(x, everything, **settings) for x in (found, loss))
        for one, other in zip(*gradients):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_the_box_loss_is_divided_by_the_sum_of_centerness():
    """Twice the same object in two images: nothing changes."""
    model = tiny_model(*ATSS).train()
    inputs = batch(instances([(20, 16, 90, 80)], [2]))
    with torch.no_grad():
        one, two = model(inputs), model([*inputs, *inputs])
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
        assert value > 0


def test_a_model_in_float64_trains():
    model = tiny_model(*ATSS).double().train()
    losses = model(batch(instances([(20, 16, 90, 80)], [2])))
    assert all(torch.isfinite(loss) for loss in losses.values())
