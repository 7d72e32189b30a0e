"""Files of version 0.1, whose names of weights were detectron2's with FSAF's beside them."""

import pytest
import torch
from models import ANCHOR_FREE_ONLY, ANCHORS_ONLY, JOINT, batch, instances, tiny_model

from fsaf_d2.weights.checkpointer import SafeCheckpointer
from fsaf_d2.weights.layouts import current_name

FORMER = {
    "towers.": "head.",
    "branches.point.": "head.anchor_free_",
    "branches.anchor.loss_normalizer": "loss_normalizer",
    "branches.anchor.": "head.",
}


def former_name(name: str) -> str:
    for current, former in FORMER.items():
        if name.startswith(current):
            return former + name.removeprefix(current)
    return name


def former(weights: dict) -> dict:
    """The weights of a model as version 0.1 wrote them."""
    return {former_name(name): value for name, value in weights.items()}


def test_names_are_those_of_then():
    names = set(former(tiny_model().state_dict()))
    assert {"head.cls_subnet.0.weight", "head.bbox_subnet.0.bias", "loss_normalizer"} <= names
    assert {"head.cls_score.weight", "head.anchor_free_bbox_pred.bias"} <= names
    for name in tiny_model().state_dict():
        assert current_name(former_name(name)) == name == current_name(name)


@pytest.mark.parametrize("overrides", [JOINT, ANCHORS_ONLY, ANCHOR_FREE_ONLY])
def test_checkpoints_load_whole_and_detect_the_same(tmp_path, overrides):
    words = [*overrides, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]
    model, other = (tiny_model(*words).eval() for _ in range(2))
    torch.save({"model": former(model.state_dict())}, tmp_path / "model.pth")
    checkpointer = SafeCheckpointer(other)
    checkpointer.load(str(tmp_path / "model.pth"))
    report = checkpointer.report
    assert report.complete and not report.unexpected and not report.at_default
    inputs = batch(instances([], []))
    with torch.no_grad():
        one, two = (x(inputs)[0]["instances"] for x in (model, other))
    assert torch.equal(one.scores, two.scores)
    assert torch.equal(one.pred_boxes.tensor, two.pred_boxes.tensor)
