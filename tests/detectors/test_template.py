"""What every detector of the house, and detectron2's two, must do, whatever its method."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from every_detector import everybody, ours, train_step
from models import (
    NUM_CLASSES,
    batch,
    head_parameters,
    instances,
    random_instances,
    tiny_cfg,
    tiny_model,
)

from fsaf_d2.detectors import OneStageDetector, contract_of, traits_of
from fsaf_d2.training.black_box import diagnose
from fsaf_d2.training.validation import validation_losses


def assert_every_parameter_learns(model, losses):
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


@everybody
def test_a_step_with_objects(overrides):
    model = tiny_model(*overrides)
    losses = train_step(model, batch(random_instances(10), random_instances(3)))
    assert_every_parameter_learns(model, losses)
    assert all(loss > 0 for loss in losses.values())
    for name, parameter in head_parameters(model).items():
        # A number of a level learns where the level has an object.
        assert parameter.dim() == 0 or (parameter.grad != 0).any(), name


@everybody
def test_a_step_without_any_object(overrides):
    model = tiny_model(*overrides)
    losses = train_step(model, batch(random_instances(0), random_instances(0)))
    assert_every_parameter_learns(model, losses)
    for name, loss in losses.items():
        # What is wrong with a box, where there is none, is nothing; nor is with a ranking.
        about_objects = ("box_reg", "loc", "centerness", "dfl", "positive", "prior", "loss_ap_cls")
        assert (loss == 0) == any(word in name for word in about_objects), name


@everybody
def test_a_step_where_some_images_have_no_object(overrides):
    model = tiny_model(*overrides)
    ground_truths = [random_instances(0), random_instances(4), random_instances(0)]
    assert_every_parameter_learns(model, train_step(model, batch(*ground_truths)))


@everybody
def test_images_of_different_sizes(overrides):
    model = tiny_model(*overrides)
    inputs = batch(random_instances(4, size=(70, 130)), random_instances(4, size=(150, 90)))
    assert_every_parameter_learns(model, train_step(model, inputs))


@ours
def test_two_thousand_objects(overrides):
    model = tiny_model(*overrides)
    losses = train_step(model, batch(random_instances(2000, size=(320, 320))))
    assert_every_parameter_learns(model, losses)


@ours
def test_boxes_without_an_area_or_off_the_image(overrides):
    model = tiny_model(*overrides)
    boxes = [(5, 5, 5, 40), (30, 30, 30, 30), (-90, -90, -60, -60), (900, 900, 950, 960)]
    losses = model(batch(instances(boxes, [0, 1, 2, 3])))
    for name, loss in losses.items():
        # RetinaNet's own box encoding is not defined for a side of 0.
        if name != "loss_box_reg":
            assert torch.isfinite(loss), name


@ours
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), 1e30])
def test_detections_are_finite_whatever_the_branches_say(overrides, value):
    model = tiny_model(*overrides).eval()

    def break_predictions(_module, _inputs, predictions):
        for levels in predictions:
            for tensor in levels:
                tensor[..., ::2] = value
                tensor[:, 0] = 2.0

    for branch in model.branches.values():
        branch.register_forward_hook(break_predictions)
    with torch.no_grad():
        (output,) = model(batch(instances([], [])))
    found = output["instances"]
    assert torch.isfinite(found.pred_boxes.tensor).all() and torch.isfinite(found.scores).all()


@everybody
def test_at_most_the_asked_number_of_detections_of_the_image_they_are_on(overrides):
    everything = [
        *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "20"),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
    ]
    model = tiny_model(*overrides, *everything).eval()
    for name, parameter in head_parameters(model).items():
        if name.endswith("bbox_pred.weight"):
            torch.nn.init.zeros_(parameter)  # anchors and points as they are, on the image
        if name.endswith("bbox_pred.bias"):
            parameter.data.clamp_(min=0.1)
    inputs = batch(instances([], [], size=(90, 150)))
    inputs[0].update(height=180, width=300)
    with torch.no_grad():
        (output,) = model(inputs)
    found = output["instances"]
    assert 0 < len(found) <= 20 and found.image_size == (180, 300)
    assert (found.pred_boxes.tensor >= 0).all()
    assert (found.pred_boxes.tensor <= torch.tensor([300, 180, 300, 180])).all()
    assert (found.scores[1:] <= found.scores[:-1]).all()


@ours
def test_a_batch_gives_what_single_images_give(overrides):
    model = tiny_model(*overrides, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0").eval()
    inputs = batch(instances([], [], size=(128, 160)), instances([], [], size=(128, 160)))
    with torch.no_grad():
        together = [output["instances"] for output in model(inputs)]
        apart = [model([one])[0]["instances"] for one in inputs]
    for one, other in zip(together, apart):
        torch.testing.assert_close(one.scores, other.scores)
        boxes = one.pred_boxes.tensor, other.pred_boxes.tensor
        torch.testing.assert_close(*boxes, rtol=1e-3, atol=1e-2)
        assert torch.equal(one.pred_levels, other.pred_levels)


@everybody
def test_what_a_config_says_of_a_detector_is_true_of_the_model(overrides):
    cfg = tiny_cfg(*overrides)
    model = build_model(cfg)
    traits, contract = traits_of(cfg), contract_of(model)
    assert traits.num_classes == contract.traits.num_classes == NUM_CLASSES
    for key in traits.class_keys:
        *sections, last = key.split(".")
        node = cfg
        for section in sections:
            node = node[section]
        assert node[last] == NUM_CLASSES
    losses = train_step(model, batch(random_instances(6)))
    assert traits.loss_names in ((), tuple(losses))
    assert traits.level_names == contract.traits.level_names
    assert traits.branch_names == contract.traits.branch_names
    with torch.no_grad():
        (found,) = model.eval()(batch(instances([], [])))
    assert found["instances"].has("pred_levels") == bool(traits.level_names)
    assert found["instances"].has("pred_branches") == bool(traits.branch_names)


@everybody
def test_losses_of_validation_are_those_of_training_and_leave_no_trace(overrides):
    """With one batch, and the number of positives in place of a running mean."""
    model = tiny_model(*overrides).train()
    inputs = batch(random_instances(6), random_instances(3))
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    found = validation_losses(model, [inputs])
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert found == validation_losses(model, [inputs])
    losses = train_step(freeze_norms(model), inputs)
    assert set(found) == {*losses, "total_loss"}
    assert found["total_loss"] == pytest.approx(sum(found[name] for name in losses))
    contract = contract_of(model)
    if isinstance(contract, OneStageDetector):
        for branch in contract.branches.values():
            # RetinaNet's: 0.9 * 100 + 0.1 * positives divides them.
            for name in () if hasattr(branch, "loss_normalizer") else branch.loss_names:
                assert losses[name].item() == pytest.approx(found[name], rel=1e-5), name


@everybody
def test_losses_change_nothing_of_a_model_in_training(overrides):
    model = tiny_model(*overrides, "MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN").train()
    before = copy.deepcopy(model.state_dict())
    contract_of(model).loss_terms(batch(random_instances(6)))
    assert all(module.training for module in model.modules())
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@everybody
def test_the_backbone_is_compiled_and_no_layer_twice(overrides):
    model = tiny_model(*overrides)
    parts = list(contract_of(model).compiled())
    assert model.backbone in parts
    layers = [id(layer) for part in parts for layer in part.modules()]
    assert len(set(layers)) == len(layers)


def trained(model, optimizer, steps, file, saved_at=None):
    """The weights after some steps of training, saved before one of them as a run does."""
    inputs, contract = batch(random_instances(6), random_instances(3)), contract_of(model)
    for step in steps:
        if step == saved_at:
            parts = model.state_dict(), optimizer.state_dict(), contract.extra_state()
            torch.save(parts, file)
        torch.manual_seed(step)
        contract.at_step(step)
        optimizer.zero_grad()
        train_step(model, inputs)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.state_dict()


@everybody
def test_what_is_saved_is_all_that_training_goes_on_from(overrides, tmp_path):
    def start():
        model = tiny_model(*overrides)
        return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    torch.manual_seed(0)
    model, optimizer = start()
    torch.manual_seed(1)
    unbroken = trained(model, optimizer, range(3), tmp_path / "saved.pth", saved_at=2)
    model, optimizer = start()
    weights, state, extra = torch.load(tmp_path / "saved.pth")
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    contract_of(model).load_extra_state(extra)
    torch.manual_seed(1)
    resumed = trained(model, optimizer, range(2, 3), tmp_path / "saved.pth")
    for name, value in unbroken.items():
        assert torch.equal(value, resumed[name]), name


def freeze_norms(model):
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
            module.train = lambda mode=True, module=module: module
    return model


@everybody
def test_a_step_that_is_not_finite_is_diagnosed(overrides):
    model = tiny_model(*overrides).train()
    name, parameter = (
        next((name, p) for name, p in head_parameters(model).items() if name.endswith("weight"))
        if head_parameters(model)
        else list(model.named_parameters())[-1]
    )
    with torch.no_grad():
        parameter.fill_(float("nan"))
    found = diagnose(model, batch(random_instances(4)), 0.1)
    assert found.cause == f"the weights '{name}' were not finite before the step."
    assert any(numbers[2] for levels in found.outputs.values() for numbers in levels)


@everybody
def test_a_box_that_is_no_number_is_what_the_diagnosis_names(overrides):
    gt = random_instances(4)
    gt.gt_boxes.tensor[2, 1] = float("nan")
    (sample,) = batch(gt)
    found = diagnose(tiny_model(*overrides).train(), [{**sample, "file_name": "a.jpg"}], 0.1)
    assert found.cause == "the image 'a.jpg' has a box that is not finite."


@everybody
@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_mixed_precision(overrides, dtype):
    model = tiny_model(*overrides)
    with EventStorage(), torch.autocast("cpu", dtype=dtype):
        losses = model.train()(batch(random_instances(5)))
    assert all(torch.isfinite(loss) for loss in losses.values())


@ours
def test_copies_detect_the_same(overrides, tmp_path):
    model = tiny_model(*overrides, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0").eval()
    other = tiny_model(*overrides, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0").eval()
    other.load_state_dict(model.state_dict())
    inputs = batch(instances([], []))
    with torch.no_grad():
        one, two, three = (m(inputs)[0]["instances"] for m in (model, other, copy.deepcopy(model)))
    assert torch.equal(one.scores, two.scores) and torch.equal(one.scores, three.scores)
