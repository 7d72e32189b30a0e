"""mmdetection's GFL, converted, is the model that it was there."""

import collections

import mmdet_gfl
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
from fsaf_d2.weights.layouts import MMDET_GFL

CONFIG = ROOT / "configs/zoo/mmdet_gfl_R_50_FPN_1x.yaml"


# METHODS: backbone and FPN 27,376,704, head 5,063,833 with its five scales.
@pytest.mark.slow
def test_outputs_and_detections_are_those_of_the_original(tmp_path):
    weights = mmdet_gfl.random_weights()
    file = tmp_path / "gfl.pth"
    meta = {"epoch": 12, "mmdet_version": "2.1.0", "CLASSES": ("person", "bicycle")}
    torch.save({"meta": meta, "state_dict": collections.OrderedDict(weights)}, file)

    overrides = ["TEST.DETECTIONS_PER_IMAGE", "1000"]
    detector = load_detector(file, config_file=CONFIG, overrides=overrides, device="cpu")
    assert not any("used" in note for note in detector.notes)
    model = detector.model
    no_parameters = ("running_mean", "running_var", "integral.project")
    state = model.state_dict().items()
    assert sum(x.numel() for name, x in state if not name.endswith(no_parameters)) == 32_440_537

    torch.manual_seed(3)
    noise = torch.rand(1, 3, 30, 43) * 255
    image = torch.nn.functional.interpolate(noise, (120, 172), mode="bilinear")[0].round()
    exact = {key: value.double() for key, value in weights.items()}
    with torch.no_grad():
        logits, bins = mmdet_gfl.head_outputs(exact, image.double())
        instances = model([{"image": image}])[0]["instances"]
        model.double()
        images = model.preprocess_image([{"image": image.double()}])
        predictions = model._predict(images.tensor)[0]["gfl"]

    assert_same_maps(predictions, (logits, bins))

    boxes, scores, classes = mmdet_gfl.detect(exact, logits, bins, tuple(image.shape[1:]))
    assert_same_detections(instances, boxes, scores, classes)


def test_every_tensor_is_converted():
    weights = mmdet_gfl.random_weights(num_classes=3)
    assert_every_tensor_is_converted(weights, MMDET_GFL)


def test_keys_that_give_the_weights_another_meaning_are_named():
    assert_conflicts(MMDET_GFL, CONFIG, [])
    expected = ["INPUT.FORMAT is 'BGR'", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"]
    expected += ["MODEL.RESNETS.STRIDE_IN_1X1 is True", "MODEL.GFL.POINT_OFFSET is 0.5"]
    assert_conflicts(MMDET_GFL, ROOT / "configs/family/gfl_R_50_FPN_1x.yaml", expected)
