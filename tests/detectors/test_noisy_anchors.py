"""Learning from Noisy Anchors as a branch (arXiv 1912.05086)."""

import pytest
import torch
from detectron2.modeling import build_model
from fvcore.nn import sigmoid_focal_loss, smooth_l1_loss
from models import (
    ANCHORS_ONLY,
    NUM_CLASSES,
    ROOT,
    STRIDES,
    batch,
    grid_of,
    instances,
    losses_given,
    predictions_of,
    random_instances,
    tiny_model,
)
from reference import noisy_anchors as reference
from reference.fsaf import Object

from fsaf_d2 import load_config
from fsaf_d2.assignment.anchor_matching import paired_iou
from fsaf_d2.assignment.grid import Grid
from fsaf_d2.assignment.objects import Objects
from fsaf_d2.detectors.retinanet import AnchorPredictions
from fsaf_d2.losses import soft_labels_and_weights

NOISY = [
    *("MODEL.META_ARCHITECTURE", "OneStageDetector", "MODEL.BRANCHES", "['noisy_anchor']"),
    *("MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", "0.1"),
]


def randomised(*overrides: str):
    """A model whose boxes and scores differ."""
    model = tiny_model(*NOISY, *overrides)
    branch = model.branches.noisy_anchor
    torch.nn.init.normal_(branch.cls_score.weight, std=0.1)
    torch.nn.init.normal_(branch.bbox_pred.weight, std=0.02)
    return model.train()


def flat(levels, size: int) -> torch.Tensor:
    """(N, R * A, size), in the order of anchors."""
    parts = [x.unflatten(1, (-1, size)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in levels]
    return torch.cat(parts, dim=1)


def written_out(branch, predictions, ground_truths):
    """Both sums of each image over all anchors, and what they are with weights."""
    logits, deltas = (flat(x, size) for x, size in zip(predictions, (branch.num_classes, 4)))
    objects, grid = Objects.of(ground_truths), grid_of()
    positives, _ = branch.assign(objects, grid, len(ground_truths))
    image, anchor, owner = positives[:3]
    boxes, anchors = objects.boxes[owner], branch.kinds.boxes(anchor, grid)
    classes = objects.classes[owner]
    pred_boxes = branch.box2box_transform.apply_deltas(deltas[image, anchor], anchors)
    soft, weights = soft_labels_and_weights(
        paired_iou(pred_boxes, boxes),
        logits[image, anchor, classes].sigmoid(),
        image,
        num_images=len(ground_truths),
        mix=0.75,
    )
    targets, factors = torch.zeros_like(logits), torch.ones_like(logits[..., :1])
    targets[image, anchor, classes], factors[image, anchor, 0] = soft, weights
    background, of_objects = (
        sigmoid_focal_loss(logits, torch.full_like(logits, y), 0.5, 2.0) for y in (0.0, 1.0)
    )
    focal = torch.lerp(background, of_objects, targets)
    true_deltas = branch.box2box_transform.get_deltas(anchors, boxes)
    smooth = smooth_l1_loss(deltas[image, anchor], true_deltas, 0.1).sum(dim=1)
    boxes = smooth.new_zeros(len(ground_truths))
    plain = focal.flatten(1).sum(dim=1), boxes.index_add(0, image, smooth)
    weighted = (focal * factors).flatten(1).sum(dim=1), boxes.index_add(0, image, smooth * weights)
    return len(image), plain, weighted


def leaves_of(model, ground_truths) -> AnchorPredictions:
    with torch.no_grad():
        everything, _ = predictions_of(model, batch(*ground_truths))
    return AnchorPredictions(
        *([x.clone().requires_grad_() for x in levels] for levels in everything["noisy_anchor"])
    )


@pytest.mark.parametrize("counts", [(7, 0, 12), (1,), (0, 0)])
def test_losses_and_gradients_are_those_written_out(counts):
    torch.manual_seed(sum(counts))
    model = randomised()
    truth = [random_instances(count) for count in counts]
    leaves = leaves_of(model, truth)
    tensors = [x for levels in leaves for x in levels]
    count, plain, weighted = written_out(model.branches.noisy_anchor, leaves, truth)
    normalizer = 0.9 * 100 + 0.1 * max(count, 1)
    losses = list(losses_given(model, {"noisy_anchor": leaves}, grid_of(), truth).values())
    for loss, expected in zip(losses, plain):
        torch.testing.assert_close(loss, expected.sum() / normalizer, rtol=1e-4, atol=1e-7)
    ratios = [(x / y).detach().nan_to_num(1.0) for x, y in zip(plain, weighted)]
    expected = sum((x * ratio).sum() for x, ratio in zip(weighted, ratios)) / normalizer
    pairs = zip(torch.autograd.grad(sum(losses), tensors), torch.autograd.grad(expected, tensors))
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)


SMALL, IMAGE = [(3, 3), (2, 2), (1, 1), (1, 1), (1, 1)], (24, 24)
EQUAL = instances([(4, 4, 20, 20)] * 2 + [(0, 0, 16, 16), (8, 8, 24, 24)], [3, 1, 2, 2], IMAGE)
CASES = {
    "several images": [random_instances(3, IMAGE), random_instances(0), random_instances(2, IMAGE)],
    "no objects": [random_instances(0)],
    "one object": [random_instances(1, IMAGE)],
    "equal IoUs": [EQUAL],
    "equal IoUs, turned about": [EQUAL[torch.tensor([3, 1, 0, 2])]],
    "odd boxes": [instances([(5, 5, 5, 20), (-90, -90, 3, 3), (1, 1, 2, 30)], [0, 1, 2], IMAGE)],
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("top_n", [5, 30])
def test_losses_and_gradients_equal_the_reference(name, top_n, monkeypatch):
    # Anchors of one area differ in their last digits, which here makes no difference of them.
    exact = reference.iou
    monkeypatch.setattr(reference, "iou", lambda a, b: torch.tensor(exact(a, b)).float().item())
    torch.manual_seed(len(name))
    truth = CASES[name]
    model = tiny_model(*NOISY, "MODEL.NOISY_ANCHORS.TOP_N", str(top_n))
    branch = model.branches.noisy_anchor
    grid = Grid.of(STRIDES, SMALL, torch.device("cpu"))
    leaves = AnchorPredictions(
        [torch.randn(len(truth), 9 * NUM_CLASSES, *size).requires_grad_() for size in SMALL],
        [(torch.randn(len(truth), 36, *size) * 0.3).requires_grad_() for size in SMALL],
    )
    terms = branch.losses(leaves, Objects.of(truth), grid)

    objects = [
        Object(image, tuple(box), label)
        for image, gt in enumerate(truth)
        for box, label in zip(gt.gt_boxes.tensor.tolist(), gt.gt_classes.tolist())
    ]
    kinds = branch.kinds._replace(cell_anchors=branch.kinds.cell_anchors.double())
    anchors = kinds.boxes(torch.arange(9 * grid.num_locations), grid).tolist()
    listed = (flat(x, size).double() for x, size in zip(leaves, (NUM_CLASSES, 4)))
    expected = reference.losses(objects, anchors, *listed, top=top_n)
    tensors = [x for levels in leaves for x in levels]
    for term, (total, count) in zip(terms.values(), expected):
        assert term.count == count
        assert term.total.item() == pytest.approx(total.item(), rel=1e-5)
        if not total.requires_grad:
            continue
        args = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
        for one, other in zip(
            torch.autograd.grad(term.total, tensors, **args),
            torch.autograd.grad(total, tensors, **args),
        ):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_an_object_has_its_thirty_best_anchors_and_none_is_ignored():
    branch = tiny_model(*NOISY).branches.noisy_anchor
    objects = Objects.of([instances([(20, 16, 90, 80)], [2]), instances([], [])])
    positives, ignored = branch.assign(objects, grid_of(), 2)
    assert len(positives.labels) == 30 and len(ignored.labels) == 0
    assert (positives.image_index == 0).all()
    branch.losses(leaves_of_zeros(branch), objects, grid_of())
    assert branch.counted["num_pos_noisy_anchors"] == 15


def leaves_of_zeros(branch, num_images=2) -> AnchorPredictions:
    sizes = [(int(h), int(w)) for h, w in zip(grid_of().heights, grid_of().widths)]
    return AnchorPredictions(
        *(
            [torch.zeros(num_images, 9 * size, *level) for level in sizes]
            for size in (branch.num_classes, 4)
        )
    )


def test_the_running_mean_of_positives_divides():
    """An object's 30 anchors: .9 * 100 + .1 * 30."""
    model = randomised()
    model(batch(instances([(20, 16, 90, 80)], [2])))
    assert model.branches.noisy_anchor.loss_normalizer.item() == pytest.approx(93)


def test_detections_and_parameters_are_retinanets():
    model, other = randomised(), tiny_model(*ANCHORS_ONLY).eval()
    state = {
        name.replace("noisy_anchor", "anchor"): x for name, x in model.eval().state_dict().items()
    }
    other.load_state_dict(state, strict=True)
    inputs = batch(instances([], []))
    with torch.no_grad():
        found, expected = (x(inputs)[0]["instances"] for x in (model, other))
    assert len(found) > 0 and torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


@pytest.mark.slow
def test_parameter_count_is_retinanets():
    path = ROOT / "configs/family/noisy_anchors_R_50_FPN_1x.yaml"
    model = build_model(load_config(path, ["MODEL.DEVICE", "cpu"]))
    head = [*model.towers.parameters(), *model.branches.parameters()]
    assert sum(x.numel() for x in head) == 6_463_220


def test_the_recipe_is_the_papers():
    cfg = load_config(ROOT / "configs/family/noisy_anchors_R_50_FPN_1x.yaml")
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.REFERENCE_BATCH, solver.BASE_LR) == (8, 8, 0.005)
    assert (*solver.STEPS, solver.MAX_ITER) == (120_000, 160_000, 180_000)
    assert cfg.INPUT.MIN_SIZE_TRAIN == (640, 672, 704, 736, 768, 800)
    noisy = cfg.MODEL.NOISY_ANCHORS
    assert (noisy.TOP_N, noisy.ALPHA, noisy.FOCAL_LOSS_ALPHA) == (30, 0.75, 0.5)
    assert cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA == 0.1


def test_keys_are_heeded():
    plain = randomised()
    inputs = batch(instances([(10, 10, 70, 60), (40, 30, 150, 120)], [1, 2]))
    expected = [loss.item() for loss in plain(inputs).values()]
    for key, value, changed in [
        ("NOISY_ANCHORS.TOP_N", "12", (True, True)),
        ("NOISY_ANCHORS.ALPHA", "0.3", (True, False)),
        ("NOISY_ANCHORS.FOCAL_LOSS_ALPHA", "0.3", (True, False)),
        ("RETINANET.FOCAL_LOSS_ALPHA", "0.3", (False, False)),
        ("RETINANET.SMOOTH_L1_LOSS_BETA", "0.5", (False, True)),
    ]:
        model = tiny_model(*NOISY, f"MODEL.{key}", value)
        model.load_state_dict(plain.state_dict())
        model.branches.noisy_anchor.loss_normalizer.fill_(100)
        found = [loss.item() for loss in model(inputs).values()]
        differs = [abs(x - y) > 1e-5 * y for x, y in zip(found, expected)]
        assert tuple(differs) == changed, key


def test_predictions_that_are_no_numbers_do_not_stop_it():
    model = randomised()
    truth = [random_instances(5)]
    for value in (float("inf"), -float("inf"), float("nan")):
        leaves = leaves_of(model, truth)
        for levels in leaves:
            for x in levels:
                x.data[..., ::2] = value
        sum(losses_given(model, {"noisy_anchor": leaves}, grid_of(), truth).values()).backward()
