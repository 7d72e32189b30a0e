import math

import pytest
import torch
from detectron2.modeling import build_model
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
from reference import gfl as reference
from reference.fsaf import Level, Object

from fsaf_d2 import load_config
from fsaf_d2.detectors.gfl import GFLPredictions
from fsaf_d2.losses import quality_focal_loss

GFL = ["MODEL.META_ARCHITECTURE", "OneStageDetector", "MODEL.BRANCHES", "['gfl']"]
GFL += ["MODEL.RETINANET.NORM", "GN"]
# One candidate a level: an object as large as its level's anchor has that one alone.
ONE = [*GFL, "MODEL.GFL.TOP_K", "1"]


def predictions(num_images: int = 1) -> GFLPredictions:
    """Hardly any score, and distances of 8 strides, as the mean of all bins is."""
    return GFLPredictions(
        [torch.full((num_images, NUM_CLASSES, *size), -20.0) for size in SIZES],
        [torch.zeros(num_images, 68, *size) for size in SIZES],
    )


def say(bins: torch.Tensor, place: tuple[int, int], distances) -> None:
    """Make the distributions at (y, x) sharp: distances are whole numbers of strides."""
    bins[0, :, place[0], place[1]] = -50.0
    for side, distance in enumerate(distances):
        bins[0, side * 17 + distance, place[0], place[1]] = 50.0


# METHODS: the head 5,063,833 with its five scales, the detector 32,440,537.
@pytest.mark.slow
def test_parameter_counts():
    cfg = load_config(ROOT / "configs/family/gfl_R_50_FPN_1x.yaml", ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    head = [*model.towers.parameters(), *model.branches.parameters()]
    assert sum(p.numel() for p in head) == 5_063_833
    others = ("running_mean", "running_var", "integral.project")
    state = model.state_dict().items()
    assert sum(x.numel() for name, x in state if not name.endswith(others)) == 32_440_537


def test_outputs_are_of_their_towers_and_boxes_scaled_by_level():
    branch = tiny_model(*GFL).branches.gfl
    one, other = torch.randn(2, 1, 32, 3, 3)
    scales = torch.tensor([1.0, 2, 3, 4, 5])
    for scale, value in zip(branch.scales.scales, scales):
        scale.data.copy_(value)
    logits, boxes = branch([one] * 5, [other] * 5)
    for index, scale in enumerate(scales):
        torch.testing.assert_close(logits[index], branch.cls_score(one))
        torch.testing.assert_close(boxes[index], branch.bbox_pred(other) * scale)


@pytest.mark.parametrize(("offset", "point"), [("0.5", (56, 40)), ("0.0", (48, 32))])
def test_boxes_are_the_means_of_distributions_about_the_points(offset, point):
    """A location of stride 16 at (2, 3)."""
    model = tiny_model(*GFL, "MODEL.GFL.POINT_OFFSET", offset).eval()
    logits, bins = said = predictions()
    logits[1][0, 5, 2, 3] = 1.0
    say(bins[1], (2, 3), (1, 2, 3, 0))
    bins[1][0, 1:3, 2, 3] = 50.0  # to the left 1 and 2, with the same share
    found = detections_given(model, {"gfl": said}, grid_of())
    x, y = point
    torch.testing.assert_close(
        found.pred_boxes.tensor, torch.tensor([[x - 24.0, y - 32, x + 48, y]])
    )
    torch.testing.assert_close(found.scores, torch.tensor(1.0).sigmoid()[None])
    assert found.pred_classes.tolist() == [5] and found.pred_levels.tolist() == [1]


def test_losses_by_hand():
    """An object of P3's anchor at (2, 2): 64 px about (20, 20), 4 strides to every side.

    Said is a box of 3 strides to every side: IoU and GIoU are 36 / 64.
    """
    gt = instances([(-12, -12, 52, 52)], [4])
    logits, bins = said = predictions()
    logits[0][0, 4, 2, 2] = 2.0
    logits[0][0, 1, 2, 2] = 3.0
    say(bins[0], (2, 2), (3, 3, 3, 3))
    model = tiny_model(*ONE)
    losses = losses_given(model, {"gfl": said}, grid_of(), [gt])
    assert model.branches.gfl.counted["num_pos_gfl"] == 1
    quality = quality_focal_loss(torch.tensor([2.0, 3.0]), torch.tensor([36 / 64, 0]), beta=2.0)
    assert losses["loss_gfl_cls"].item() == pytest.approx(quality.sum().item(), rel=1e-5)
    assert losses["loss_gfl_box_reg"].item() == pytest.approx(2 * 28 / 64, rel=1e-5)
    # Bin 4 has the share exp(-100).
    assert losses["loss_gfl_dfl"].item() == pytest.approx(0.25 * 100, rel=1e-5)


@pytest.mark.parametrize(
    ("sizes", "offset"), [([(5, 6), (3, 3), (2, 2), (1, 1), (1, 1)], 0.5), ([(4, 3)] * 5, 0.0)]
)
def test_losses_and_gradients_equal_the_reference(sizes, offset):
    """Three images, one without objects; the third has boxes without an area beside others."""
    ground_truths = [random_instances(5, (40, 48)), random_instances(0), random_instances(4)]
    ground_truths[2].gt_boxes.tensor[0, 2:] = ground_truths[2].gt_boxes.tensor[0, :2]
    shapes = [(3, NUM_CLASSES), (3, 4, 17)]
    said = [
        [
            torch.randn(*s[:1], *size, *s[1:], dtype=torch.float64, requires_grad=True)
            for size in sizes
        ]
        for s in shapes
    ]
    listed = [
        Object(image, tuple(box), label)
        for image, gt in enumerate(ground_truths)
        for box, label in zip(gt.gt_boxes.tensor.tolist(), gt.gt_classes.tolist())
    ]
    levels = [Level(stride, *size) for stride, size in zip(STRIDES, sizes)]
    of_images = [[[level[image] for level in part] for image in range(3)] for part in said]
    pairs = reference.losses(listed, levels, *of_images, offset)
    expected = [total / max(count, least) for (total, count), least in zip(pairs, (1, 1e-6, 1e-6))]

    model = tiny_model(*GFL, "MODEL.GFL.POINT_OFFSET", str(offset))
    logits, bins = said
    predictions = GFLPredictions(
        [x.permute(0, 3, 1, 2).float() for x in logits],
        [x.flatten(3).permute(0, 3, 1, 2).float() for x in bins],
    )
    losses = losses_given(model, {"gfl": predictions}, grid_of(sizes), ground_truths)
    assert pairs[0][1] > 10
    settings = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    for found, loss in zip(losses.values(), expected, strict=True):
        assert found.item() == pytest.approx(loss.item(), rel=1e-5)
        gradients = (torch.autograd.grad(x, [*logits, *bins], **settings) for x in (found, loss))
        for one, other in zip(*gradients):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("offset", [0.0, 0.25, 0.5])
def test_locations_are_the_centres_of_the_anchors(offset):
    """An object about a location: all distances are 4 strides, and the box is exact."""
    x = (2 + offset) * 8
    gt = instances([(x - 32, x - 32, x + 32, x + 32)], [4])
    said = predictions()
    said.gfl_logits[0][0, 4, 2, 2] = 0.0
    say(said.gfl_distributions[0], (2, 2), (4, 4, 4, 4))
    model = tiny_model(*ONE, "MODEL.GFL.POINT_OFFSET", str(offset))
    losses = losses_given(model, {"gfl": said}, grid_of(), [gt])
    assert model.branches.gfl.counted["num_pos_gfl"] == 1
    assert losses["loss_gfl_box_reg"].item() == pytest.approx(0, abs=1e-6)
    assert losses["loss_gfl_dfl"].item() == pytest.approx(0, abs=1e-6)


def test_weights_of_positives_are_their_best_scores_whatever_their_class():
    """Two objects, exact distances for one: what the other costs is weighted by its score."""
    gt = instances([(-12, -12, 52, 52), (52, 36, 116, 100)], [4, 2])
    logits, bins = said = predictions()
    say(bins[0], (2, 2), (4, 4, 4, 4))
    say(bins[0], (8, 10), (3, 3, 3, 3))
    logits[0][0, 0, 2, 2] = -math.log(3)  # 1 / 4
    logits[0][0, 6, 8, 10] = 0.0  # 1 / 2
    losses = losses_given(tiny_model(*ONE), {"gfl": said}, grid_of(), [gt])
    share = 0.5 / 0.75
    assert losses["loss_gfl_box_reg"].item() == pytest.approx(share * 2 * 28 / 64, rel=1e-4)
    assert losses["loss_gfl_dfl"].item() == pytest.approx(share * 0.25 * 100, rel=1e-4)


def test_qualities_and_weights_have_no_gradient():
    """Scores learn from the first loss alone, distributions from the others alone."""
    gt = instances([(-12, -12, 52, 52), (30, 20, 120, 100)], [4, 2])
    said = GFLPredictions(
        *([torch.randn_like(x).requires_grad_() for x in levels] for levels in predictions())
    )
    losses = losses_given(tiny_model(*GFL), {"gfl": said}, grid_of(), [gt])
    of_classes, *of_boxes = losses.values()
    for loss, levels in ((of_classes, said.gfl_distributions), (sum(of_boxes), said.gfl_logits)):
        gradients = torch.autograd.grad(loss, levels, allow_unused=True, retain_graph=True)
        assert all(x is None or not x.any() for x in gradients)


def test_far_sides_aim_below_the_last_bin():
    """1600 px about P7's point (64, 64) are 6.25 strides; with REG_MAX 4 the target is 3.9."""
    gt = instances([(-736, -736, 864, 864)], [4])
    model = tiny_model(*ONE, "MODEL.GFL.REG_MAX", "4")
    said = GFLPredictions(predictions().gfl_logits, [torch.zeros(1, 20, *x) for x in SIZES])
    said.gfl_distributions[4][0, :, 0, 0] = torch.tensor([0.0, 0, 0, 1, 2]).repeat(4)
    losses = losses_given(model, {"gfl": said}, grid_of(), [gt])
    assert model.branches.gfl.counted["num_pos_gfl"] == 1
    log_p = torch.tensor([0.0, 0, 0, 1, 2]).log_softmax(0)
    expected = -0.25 * (0.1 * log_p[3] + 0.9 * log_p[4])
    # The score, 2e-9, is less than what the sum of scores is at the least.
    share = torch.tensor(-20.0).sigmoid() / 1e-6
    assert losses["loss_gfl_dfl"].item() == pytest.approx((share * expected).item(), rel=1e-4)


def test_the_box_losses_are_divided_by_the_sum_of_scores():
    """Twice the same object in two images: nothing changes."""
    model = tiny_model(*GFL).train()
    inputs = batch(instances([(20, 16, 90, 80)], [2]))
    with torch.no_grad():
        one, two = model(inputs), model([*inputs, *inputs])
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
        assert value > 0


def test_the_bins_are_saved_with_the_weights():
    state = tiny_model(*GFL, "MODEL.GFL.REG_MAX", "3").state_dict()
    assert state["branches.gfl.integral.project"].tolist() == [0, 1, 2, 3]


def test_a_model_in_float64_trains():
    model = tiny_model(*GFL).double().train()
    losses = model(batch(instances([(20, 16, 90, 80)], [2])))
    assert all(torch.isfinite(loss) for loss in losses.values())
