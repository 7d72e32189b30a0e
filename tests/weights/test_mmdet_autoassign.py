"""mmdetection's AutoAssign, converted, is the model that it was there."""

import collections

import mmdet_autoassign
import pytest
import torch
from mmdet_checks import (
    assert_conflicts,
    assert_every_tensor_is_converted,
    assert_same_detections,
    assert_same_maps,
)
from models import ROOT

from fsaf_d2 import load_detector
from fsaf_d2.weights.layouts import MMDET_AUTOASSIGN

CONFIG = ROOT / "configs/zoo/mmdet_autoassign_R_50_FPN_1x.yaml"


# METHODS: head 4,920,666 with its five scales, and 320 of mu and sigma.
@pytest.mark.slow
def test_outputs_and_detections_are_those_of_the_original(tmp_path):
    torch.manual_seed(0)
    weights = mmdet_autoassign.random_weights()
    file = tmp_path / "auto_assign.pth"
    meta = {"epoch": 12, "mmdet_version": "2.11.0", "CLASSES": ("person", "bicycle")}
    torch.save({"meta": meta, "state_dict": collections.OrderedDict(weights)}, file)

    overrides = ["TEST.DETECTIONS_PER_IMAGE", "1000"]
    detector = load_detector(file, config_file=CONFIG, overrides=overrides, device="cpu")
    assert not any("used" in note for note in detector.notes)
    model = detector.model
    state = model.state_dict().items()
    assert sum(x.numel() for name, x in state if "running_" not in name) == 36_426_458
    assert sum(p.numel() for p in model.branches.autoassign.center_prior.parameters()) == 320

    noise = torch.rand(1, 3, 30, 43) * 255
    image = torch.nn.functional.interpolate(noise, (120, 172), mode="bilinear")[0].round()
    exact = {key: value.double() for key, value in weights.items()}
    with torch.no_grad():
        expected = mmdet_autoassign.head_outputs(exact, image.double())
        instances = model([{"image": image}])[0]["instances"]
        model.double()
        images = model.preprocess_image([{"image": image.double()}])
        predictions = model._predict(images.tensor)[0]["autoassign"]

    assert_same_maps(predictions, expected)
    assert any((distances == 0).any() for distances in expected[1])

    boxes, scores, classes = mmdet_autoassign.detect(*expected, tuple(image.shape[1:]))
    assert_same_detections(instances, boxes, scores, classes)


def test_every_tensor_is_converted():
    weights = mmdet_autoassign.random_weights(num_classes=3)
    assert_every_tensor_is_converted(weights, MMDET_AUTOASSIGN)


def test_keys_that_give_the_weights_another_meaning_are_named():
    assert_conflicts(MMDET_AUTOASSIGN, CONFIG, [])
    config = ROOT / "configs/family/autoassign_R_50_FPN_1x.yaml"
    expected = ["MODEL.PIXEL_MEAN", "MODEL.AUTOASSIGN.POINT_OFFSET is 0.5"]
    assert_conflicts(MMDET_AUTOASSIGN, config, expected)
