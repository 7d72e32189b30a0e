from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator, build_model
from fvcore.nn import smooth_l1_loss
from models import (
    NUM_CLASSES,
    ROOT,
    batch,
    grid_of,
    instances,
    losses_given,
    predictions_of,
    random_instances,
    tiny_model,
)
from reference import ap_loss as reference
from reference.fsaf import Object

from fsaf_d2 import load_config
from fsaf_d2.assignment.grid import Cells
from fsaf_d2.assignment.objects import Objects
from fsaf_d2.detectors.retinanet import AnchorPredictions
from fsaf_d2.losses import average_precision_loss

AP_LOSS = ["MODEL.META_ARCHITECTURE", "OneStageDetector", "MODEL.BRANCHES", "['ap_loss']"]
CONFIG = ROOT / "configs/family/ap_loss_R_50_FPN.yaml"
BOXES = [(10, 10, 90, 70), (50, 40, 60, 52), (0, 0, 150, 120)]


def anchor_rows(levels, width):
    """(N, A * width, H, W) of each level -> (N, R * A, width), in the order of anchors."""
    parts = [x.unflatten(1, (-1, width)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in levels]
    return torch.cat(parts, dim=1)


def varied(model, inputs):
    """Predictions that vary, as leaves, and the grid."""
    with torch.no_grad():
        everything, grid = predictions_of(model, inputs)
    leaves = AnchorPredictions(
        *(
            [(x + torch.randn_like(x)).requires_grad_() for x in levels]
            for levels in everything["ap_loss"]
        )
    )
    return leaves, grid


def written_out(model, predictions, grid, ground_truths):
    """Both losses from a dense table of targets, of one process."""
    branch = model.branches.ap_loss
    objects = Objects.of(ground_truths)
    positives, ignored = branch.assign(objects, grid, len(ground_truths))
    logits = anchor_rows(predictions.logits, branch.num_classes)
    deltas = anchor_rows(predictions.anchor_deltas, 4)
    target = torch.zeros_like(logits)
    target[ignored.image_index, ignored.anchor_index] = -1
    classes = objects.classes[positives.object_index]
    target[positives.image_index, positives.anchor_index, classes] = 1
    one, without = ((target.flatten() == label).nonzero().squeeze(1) for label in (1, -1))
    anchors = branch.kinds.boxes(positives.anchor_index, grid)
    boxes = objects.boxes[positives.object_index]
    size = anchors[:, 2:] - anchors[:, :2]
    wanted = boxes[:, 2:] - boxes[:, :2]
    shift = (boxes[:, :2] + wanted / 2 - anchors[:, :2] - size / 2) / size
    expected = torch.cat([10 * shift, 5 * (wanted / size).log()], dim=1)
    found = deltas[positives.image_index, positives.anchor_index]
    box_loss = smooth_l1_loss(found, expected, 1.0, reduction="sum") / (4 * len(one))
    return average_precision_loss([logits], [one], [without]), box_loss


def paper_model(*overrides):
    """With the paper's box loss."""
    keys = ["MODEL.RETINANET.BBOX_REG_WEIGHTS", "(10.0, 10.0, 5.0, 5.0)"]
    keys += ["MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", "1.0"]
    return tiny_model(*AP_LOSS, *keys, *overrides).train()


@pytest.mark.parametrize("channels_last", [False, True])
def test_losses_and_gradients_are_those_written_out(channels_last):
    """One ranking over images, levels, anchors and classes; boxes over 4 P."""
    model = paper_model()
    ground_truths = [random_instances(7), random_instances(0), random_instances(12)]
    leaves, grid = varied(model, batch(*ground_truths))
    everything = leaves
    if channels_last:
        everything = AnchorPredictions(
            *([x.contiguous(memory_format=torch.channels_last) for x in part] for part in leaves)
        )
    losses = losses_given(model, {"ap_loss": everything}, grid, ground_truths)
    assert list(losses) == ["loss_ap_cls", "loss_ap_box_reg"]
    sum(losses.values()).backward()
    found = [x.grad.clone() for levels in leaves for x in levels]
    for levels in leaves:
        for x in levels:
            x.grad = None
    expected = written_out(model, leaves, grid, ground_truths)
    sum(expected).backward()
    torch.testing.assert_close(torch.stack(list(losses.values())), torch.stack(expected))
    for one, other in zip(found, (x.grad for levels in leaves for x in levels)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-8)


def predictions_on(grid, num_images):
    """Random ones of two anchors a cell in float64, as leaves."""
    sizes = list(zip(grid.heights.tolist(), grid.widths.tolist()))
    logits, deltas = (
        [torch.randn(num_images, 2 * width, *size).double().requires_grad_() for size in sizes]
        for width in (NUM_CLASSES, 4)
    )
    with torch.no_grad():
        for level in logits:
            level.mul_(2).sub_(1)
            level[:, ::5] = level[:, ::5].round()  # ties
    return AnchorPredictions(logits, deltas)


@pytest.mark.parametrize("counts", [(3, 0, 5), (0, 0), (1,), (40, 9)])
def test_losses_and_gradients_equal_the_reference(counts):
    """Sides are whole pixels, so that an object's best anchors are no matter of rounding."""
    sizes = "[[24.0, 32.0], [64.0, 90.0], [128.0, 180.0], [256.0, 362.0], [512.0, 724.0]]"
    keys = ["MODEL.ANCHOR_GENERATOR.SIZES", sizes]
    keys += ["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1.0]]"]
    grid = grid_of([(5, 7), (3, 4), (2, 2), (1, 1), (1, 1)])
    ground_truths = [random_instances(count, size=(40, 56)) for count in counts]
    for gt in ground_truths:
        gt.gt_boxes.tensor.round_()
    branch = paper_model(*keys).branches.ap_loss
    predictions = predictions_on(grid, len(counts))
    terms = branch.losses(predictions, Objects.of(ground_truths), grid)
    found = [term.weight * term.total / term.count.clamp(min=1) for term in terms.values()]
    sum(found).backward()
    listed = [
        Object(image, tuple(box), label)
        for image, gt in enumerate(ground_truths)
        for box, label in zip(gt.gt_boxes.tensor.tolist(), gt.gt_classes.tolist())
    ]
    anchors = branch.kinds.boxes(torch.arange(grid.num_locations * 2), grid).tolist()
    logits, deltas = anchor_rows(predictions[0], NUM_CLASSES), anchor_rows(predictions[1], 4)
    expected = reference.losses(listed, anchors, logits.tolist(), deltas.tolist())
    (ranking, boxes), by_logit, by_delta = expected
    values = [ranking[0] / max(ranking[1], 1), boxes[0] / max(boxes[1], 1) / 4]
    assert [loss.item() for loss in found] == pytest.approx(values, rel=1e-5)
    assert branch.counted["num_pos_ap"] * len(counts) == ranking[1]

    expected_logits, expected_deltas = torch.zeros_like(logits), torch.zeros_like(deltas)
    for key, value in by_logit.items():
        expected_logits[key] = value
    for key, value in by_delta.items():
        expected_deltas[key] = torch.tensor(value, dtype=torch.float64)
    by_logit, by_delta = (
        anchor_rows([x.grad for x in levels], width)
        for levels, width in zip(predictions, (NUM_CLASSES, 4))
    )
    torch.testing.assert_close(by_logit, expected_logits, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(by_delta, expected_deltas, rtol=1e-4, atol=1e-6)


def test_the_images_of_a_batch_are_ranked_together():
    """Two images are in order, each for itself, but one's background is above the other's objects.

    Of c positives an image, the lower rank behind c of the other, half of their own and one half.
    """
    model = paper_model()
    gt = instances([(16, 16, 80, 80)], [2])
    leaves, grid = varied(model, batch(gt, gt))
    positives, ignored = model.branches.ap_loss.assign(Objects.of([gt]), grid, 1)
    cells = Cells.at(positives.anchor_index // 9, grid)
    channel = positives.anchor_index % 9 * model.num_classes + 2
    logits = [torch.full_like(x, -20) for x in leaves.logits]
    for level in logits:
        level[1] += 8
    for level, y, x, k in zip(cells.level.tolist(), cells.y, cells.x, channel):
        logits[level][:, k, y, x] += 4
    together = leaves._replace(logits=logits)
    for image in range(2):
        alone = AnchorPredictions(*([x[image : image + 1] for x in part] for part in together))
        assert losses_given(model, {"ap_loss": alone}, grid, [gt])["loss_ap_cls"] == 0
    count, ignored_scores = len(channel), len(ignored.labels) * model.num_classes
    rank = count + count / 2 + 0.5
    background = sum(x[1].numel() for x in logits) - ignored_scores - count
    losses = losses_given(model, {"ap_loss": together}, grid, [gt, gt])
    expected = (1 - rank / (rank + background)) / 2
    assert losses["loss_ap_cls"].item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_an_object_leaves_everything_as_it_is():
    model = paper_model()
    losses = model(batch(random_instances(0), random_instances(0)))
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_the_log_has_the_number_of_positives_an_image():
    model = paper_model()
    gt = random_instances(5)
    model(batch(gt, gt))
    (both,) = model.counts().items()
    model(batch(gt))
    (one,) = model.counts().items()
    assert both == one and one[0] == "num_pos_ap" and one[1] > 0


def test_there_is_no_running_mean_to_save_or_load():
    model = paper_model()
    assert not any("loss_normalizer" in name for name in model.state_dict())
    model.load_state_dict(model.state_dict())


# Of 1/100 as in RetinaNet, which is where detection cuts: the paper's code begins there as well.
def test_initial_scores_are_the_threshold():
    bias = paper_model().branches.ap_loss.cls_score.bias
    torch.testing.assert_close(bias.sigmoid(), torch.full_like(bias, 0.01))
    assert load_config(CONFIG).MODEL.RETINANET.SCORE_THRESH_TEST == 0.01


# Card 4.2.6: 4 strides wide, times 1 and 2^(1/2), three shapes, about the centres of cells.
def test_anchors_of_the_config():
    cfg = load_config(CONFIG)
    shapes = [ShapeSpec(channels=1, stride=stride) for stride in (8, 16, 32, 64, 128)]
    generator = build_anchor_generator(cfg, shapes)
    assert generator.num_anchors == [6] * 5 and generator.offset == 0.5
    for stride, anchors in zip((8, 16, 32, 64, 128), generator.cell_anchors):
        sides = anchors[:, 2:] - anchors[:, :2]
        expected = [4 * stride] * 3 + [4 * stride * 2**0.5] * 3
        assert sides.prod(dim=1).sqrt().tolist() == pytest.approx(expected, rel=1e-6)
        ratios = [0.5, 1, 2] * 2
        assert (sides[:, 1] / sides[:, 0]).tolist() == pytest.approx(ratios, rel=1e-6)


# Card 4.2.7, of 118,287 images: 100 epochs of ceil(118287 / 16) = 7,393 steps.
def test_schedule_of_the_config():
    solver = load_config(CONFIG).SOLVER
    assert solver.MAX_ITER == 100 * -(-118_287 // 16)
    assert solver.STEPS == (60 * 7_393, 80 * 7_393)
    assert solver.WARMUP_FACTOR == 1 / 3


# Towers of 8 * (256 * 256 * 9 + 256), 6 * 80 classes and 6 * 4 deltas of (256 * 9 + 1) each.
@pytest.mark.slow
def test_parameter_counts():
    model = build_model(load_config(CONFIG, ["MODEL.DEVICE", "cpu"]))
    head = [*model.towers.parameters(), *model.branches.parameters()]
    assert sum(p.numel() for p in head) == 4_720_640 + 1_106_400 + 55_320
    assert model.branches.ap_loss.smooth_l1_beta == 1.0
    assert model.branches.ap_loss.box2box_transform.weights == (10, 10, 5, 5)


def test_the_width_of_comparisons_is_heeded():
    plain = paper_model()
    inputs = batch(instances(BOXES, [1, 2, 3]))
    predictions, grid = varied(plain, inputs)
    everything, truth = {"ap_loss": predictions}, [inputs[0]["instances"]]
    expected = losses_given(plain, everything, grid, truth)
    found = losses_given(paper_model("MODEL.AP_LOSS.DELTA", "0.2"), everything, grid, truth)
    assert found["loss_ap_cls"] != expected["loss_ap_cls"]
    assert found["loss_ap_box_reg"] == expected["loss_ap_box_reg"]


TRUTHS = [[BOXES, BOXES[:1]], [BOXES, []], [[], []]]


def losses_and_gradients(images, boxes):
    """Of a step with some images of a batch of two: losses (2,), and gradients (2, ...) of both."""
    torch.manual_seed(0)
    model = paper_model()
    leaves, grid = varied(model, [{"image": torch.rand(3, 128, 160) * 255} for _ in range(2)])
    parts = AnchorPredictions(
        *([x[images].detach().requires_grad_() for x in levels] for levels in leaves)
    )
    truth = [instances(boxes[i], range(len(boxes[i]))) for i in images]
    losses = losses_given(model, {"ap_loss": parts}, grid, truth)
    sum(losses.values()).backward()
    gradients = [torch.cat([x.grad.flatten(1) for x in levels], dim=1) for levels in parts]
    return torch.stack([loss.detach() for loss in losses.values()]), gradients


def one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2
    )
    torch.save([losses_and_gradients([rank], x) for x in TRUTHS], folder / f"{rank}.pth")
    # Training itself, whose backward waits for the other process's gradients.
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(paper_model())
    for count in (3, 0):
        gt = instances(BOXES[:count], range(count)) if rank == 0 else instances([], [])
        sum(model(batch(gt)).values()).backward()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Of both processes, one of them without an object, or both; it ends, so neither waits."""
    folder = tmp_path_factory.mktemp("two")
    context = torch.multiprocessing.spawn(one_of_two, args=(folder,), nprocs=2, join=False)
    try:
        assert any(context.join(timeout=120) for _ in range(2)), "They wait for each other."
    finally:
        for process in context.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pth") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(TRUTHS)))
def test_two_processes_average_their_rankings_and_share_their_boxes(index, answers):
    (one, one_grad), (two, two_grad) = (answer[index] for answer in answers)
    apart = [losses_and_gradients([image], TRUTHS[index]) for image in range(2)]
    together, together_grad = losses_and_gradients([0, 1], TRUTHS[index])
    found = (one + two) / 2
    assert found[0].item() == pytest.approx((apart[0][0][0] + apart[1][0][0]).item() / 2)
    assert found[1].item() == pytest.approx(together[1].item())
    # DistributedDataParallel averages the gradients.
    classes = torch.cat([apart[0][1][0], apart[1][1][0]]) / 2
    torch.testing.assert_close(torch.cat([one_grad[0], two_grad[0]]) / 2, classes)
    torch.testing.assert_close(torch.cat([one_grad[1], two_grad[1]]) / 2, together_grad[1])
