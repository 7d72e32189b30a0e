"""What every detector of the house must do, whatever its method."""

import pytest
import torch
from models import (
    ANCHOR_FREE_ONLY,
    ANCHORS_ONLY,
    HEURISTIC,
    JOINT,
    batch,
    instances,
    random_instances,
    tiny_model,
)

DETECTORS = {
    "joint": JOINT,
    "joint_heuristic": HEURISTIC,
    "anchors_only": ANCHORS_ONLY,
    "anchor_free_only": ANCHOR_FREE_ONLY,
}
pytestmark = pytest.mark.parametrize("overrides", DETECTORS.values(), ids=DETECTORS)


def train_step(model, inputs) -> dict[str, torch.Tensor]:
    losses = model.train()(inputs)
    sum(losses.values()).backward()
    return losses


def assert_every_parameter_learns(model, losses):
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def test_a_step_with_objects(overrides):
    model = tiny_model(*overrides)
    losses = train_step(model, batch(random_instances(10), random_instances(3)))
    assert_every_parameter_learns(model, losses)
    assert all(loss > 0 for loss in losses.values())
    assert all((p.grad != 0).any() for p in model.head.parameters())


def test_a_step_without_any_object(overrides):
    model = tiny_model(*overrides)
    losses = train_step(model, batch(random_instances(0), random_instances(0)))
    assert_every_parameter_learns(model, losses)
    for name, loss in losses.items():
        assert (loss == 0) == ("box_reg" in name)


def test_a_step_where_some_images_have_no_object(overrides):
    model = tiny_model(*overrides)
    ground_truths = [random_instances(0), random_instances(4), random_instances(0)]
    assert_every_parameter_learns(model, train_step(model, batch(*ground_truths)))


def test_images_of_different_sizes(overrides):
    model = tiny_model(*overrides)
    inputs = batch(random_instances(4, size=(70, 130)), random_instances(4, size=(150, 90)))
    assert_every_parameter_learns(model, train_step(model, inputs))


def test_two_thousand_objects(overrides):
    model = tiny_model(*overrides)
    losses = train_step(model, batch(random_instances(2000, size=(320, 320))))
    assert_every_parameter_learns(model, losses)


def test_boxes_without_an_area_or_off_the_image(overrides):
    model = tiny_model(*overrides)
    boxes = [(5, 5, 5, 40), (30, 30, 30, 30), (-90, -90, -60, -60), (900, 900, 950, 960)]
    losses = model(batch(instances(boxes, [0, 1, 2, 3])))
    for name, loss in losses.items():
        # RetinaNet's own box encoding is not defined for a side of 0.
        if name != "loss_box_reg":
            assert torch.isfinite(loss), name


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), 1e30])
def test_detections_are_finite_whatever_the_head_says(overrides, value):
    model = tiny_model(*overrides).eval()
    forward = model.head.forward

    def broken(features):
        predictions = forward(features)
        for levels in predictions:
            for tensor in levels:
                tensor[..., ::2] = value
                tensor[:, 0] = 2.0
        return predictions

    model.head.forward = broken
    with torch.no_grad():
        (output,) = model(batch(instances([], [])))
    found = output["instances"]
    assert torch.isfinite(found.pred_boxes.tensor).all() and torch.isfinite(found.scores).all()


def test_at_most_the_asked_number_of_detections_of_the_image_they_are_on(overrides):
    model = tiny_model(*overrides).eval()
    model.test_score_thresh, model.max_detections_per_image = 0.0, 20
    for name, parameter in model.head.named_parameters():
        if name.endswith("bbox_pred.weight"):
            torch.nn.init.zeros_(parameter)  # anchors and points as they are, on the picture
    inputs = batch(instances([], [], size=(90, 150)))
    inputs[0].update(height=180, width=300)
    with torch.no_grad():
        (output,) = model(inputs)
    found = output["instances"]
    assert 0 < len(found) <= 20 and found.image_size == (180, 300)
    assert (found.pred_boxes.tensor >= 0).all()
    assert (found.pred_boxes.tensor <= torch.tensor([300, 180, 300, 180])).all()
    assert (found.scores[1:] <= found.scores[:-1]).all()


def test_a_batch_gives_what_single_images_give(overrides):
    model = tiny_model(*overrides).eval()
    model.test_score_thresh = 0.0
    inputs = batch(instances([], [], size=(128, 160)), instances([], [], size=(128, 160)))
    with torch.no_grad():
        together = [output["instances"] for output in model(inputs)]
        apart = [model([one])[0]["instances"] for one in inputs]
    for one, other in zip(together, apart):
        torch.testing.assert_close(one.scores, other.scores)
        boxes = one.pred_boxes.tensor, other.pred_boxes.tensor
        torch.testing.assert_close(*boxes, rtol=1e-3, atol=1e-2)
        assert torch.equal(one.pred_levels, other.pred_levels)
