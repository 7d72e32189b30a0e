"""What each branch finds alone, from the joint model's one pass."""

import pytest
import torch
from detectron2.modeling import build_model
from models import (
    ANCHOR_FREE_ONLY,
    ANCHORS_ONLY,
    batch,
    instances,
    randomise,
    tiny_cfg,
    tiny_model,
)

from fsaf_d2.detectors import each_branch
from fsaf_d2.inference.suppression import Suppression

SINGLE = {"anchor_branch": ANCHORS_ONLY, "point_branch": ANCHOR_FREE_ONLY}
FIELDS = ("scores", "pred_classes", "pred_levels")


def joint_model(*overrides: str, logit_scale: float = 1.0, distance: float = 0.1):
    """A joint model whose scores vary and pass the threshold nearly everywhere."""
    model = tiny_model(*overrides).eval()
    randomise(model)
    for branch in model.branches.values():
        branch.cls_score.weight.data.mul_(logit_scale)
    torch.nn.init.constant_(model.branches.point.bbox_pred.bias, distance)
    return model


def single_model(model, *overrides: str):
    """The same weights in a model with one branch off."""
    single = tiny_model(*overrides).eval()
    state = model.state_dict()
    single.load_state_dict({name: state[name] for name in single.state_dict()})
    return single


def images() -> list[dict]:
    """Two sizes, so that one is padded; both asked for at other sizes than the network's."""
    inputs = batch(instances([], []), instances([], [], size=(96, 200)))
    inputs[0].update(height=300, width=250)
    inputs[1].update(height=40, width=77)
    return inputs


def detect(model, inputs) -> list[dict]:
    with torch.no_grad():
        return model(inputs)


def assert_same(one, other) -> None:
    assert len(one) == len(other) > 0 and one.image_size == other.image_size
    assert torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
    for field in FIELDS:
        assert torch.equal(one.get(field), other.get(field)), field


@pytest.fixture(params=["each", "jointly"])
def merging(request, monkeypatch):
    """Both ways to merge; the second is that of a GPU."""
    if request.param == "jointly":
        monkeypatch.setattr(Suppression, "_merge_each", Suppression._merge_jointly)


@pytest.mark.parametrize(
    ("case", "overrides"),
    [
        pytest.param({}, ["TEST.DETECTIONS_PER_IMAGE", "1000"], id="dense"),
        pytest.param({}, ["MODEL.FSAF.NMS_PER_LEVEL", "True"], id="suppressed per level"),
        pytest.param({"logit_scale": 40.0}, [], id="thousands of scores of exactly 1"),
        pytest.param({"distance": 5.0}, [], id="boxes over the border"),
    ],
)
def test_each_branch_finds_what_it_would_alone(case, overrides, merging):
    model, inputs = joint_model(*overrides, **case), images()
    expected = detect(model, inputs)
    with each_branch(model):
        outputs = detect(model, inputs)
    for output, joint in zip(outputs, expected):
        assert set(output) == {"instances", *SINGLE}
        assert_same(output["instances"], joint["instances"])
    for name, switches in SINGLE.items():
        alone = detect(single_model(model, *overrides, *switches), inputs)
        for output, single in zip(outputs, alone):
            assert_same(output[name], single["instances"])


def test_a_silent_branch_finds_nothing_alone():
    model = joint_model()
    torch.nn.init.constant_(model.branches.point.cls_score.weight, 0)
    torch.nn.init.constant_(model.branches.point.cls_score.bias, -3.0)  # score 0.047
    with each_branch(model):
        for output in detect(model, images()):
            assert_same(output["instances"], output["anchor_branch"])
            assert len(output["point_branch"]) == 0


def test_the_network_runs_once():
    model, calls = joint_model(), []
    for module in (model.backbone, model.towers, *model.branches.values()):
        module.register_forward_hook(lambda *_: calls.append(1))
    with each_branch(model):
        detect(model, images())
    assert len(calls) == 4


def test_only_within_the_body_and_also_in_a_wrapper():
    model = joint_model()
    with pytest.raises(KeyError), each_branch(torch.nn.Sequential(model)):
        assert model.detects_each_branch
        raise KeyError
    assert [set(output) for output in detect(model, images())] == [{"instances"}] * 2


def test_training_is_the_same_within():
    model = joint_model().train()
    inputs = batch(instances([(10, 10, 60, 50)], [1]))
    with each_branch(model):
        assert "loss_point_cls" in model(inputs)


@pytest.mark.parametrize("overrides", SINGLE.values())
def test_models_of_one_branch_give_what_they_always_do(overrides):
    model = single_model(joint_model(), *overrides)
    with each_branch(model):
        assert all(set(output) == {"instances"} for output in detect(model, images()))


def test_other_detectors_give_what_they_always_do():
    model = build_model(tiny_cfg("MODEL.META_ARCHITECTURE", "RetinaNet")).eval()
    with each_branch(model):
        assert all(set(output) == {"instances"} for output in detect(model, images()))
