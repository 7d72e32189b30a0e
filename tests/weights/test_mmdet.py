"""mmdetection's FSAF, converted, is the model that it was there."""

import collections

import mmdet_fsaf
import pytest
import torch
from mmdet_checks import assert_conflicts, assert_every_tensor_is_converted
from models import ROOT

from fsaf_d2 import load_detector
from fsaf_d2.weights.layouts import MMDET_FSAF, to_own_layout
from fsaf_d2.weights.weights_files import WeightsFileError

CONFIG = ROOT / "configs/zoo/mmdet_fsaf_R_50_FPN_1x.yaml"
MODELS = {
    "R_50": ({"depth": 50}, 36_419_732),
    "X_101_64x4d": ({"depth": 101, "groups": 64, "width": 4}, 94_317_972),
}

ALL = ["TEST.DETECTIONS_PER_IMAGE", "1000"]


def random_image(height: int, width: int) -> torch.Tensor:
    """Blurred noise, RGB (3, height, width) of 0 to 255."""
    noise = torch.rand(1, 3, height // 4, width // 4) * 255
    return torch.nn.functional.interpolate(noise, (height, width), mode="bilinear")[0].round()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_detections_are_those_of_the_original(name, tmp_path):
    options, num_parameters = MODELS[name]
    weights = mmdet_fsaf.random_weights(**options)
    file = tmp_path / "fsaf.pth"
    meta = {"epoch": 12, "mmdet_version": "2.0.0", "CLASSES": ("person", "bicycle")}
    torch.save({"meta": meta, "state_dict": collections.OrderedDict(weights)}, file)

    config = ROOT / f"configs/zoo/mmdet_fsaf_{name}_FPN_1x.yaml"
    detector = load_detector(file, config_file=config, overrides=ALL, device="cpu")
    assert not any("used" in note for note in detector.notes)
    model = detector.model
    state = model.state_dict()
    assert sum(x.numel() for k, x in state.items() if "running_" not in k) == num_parameters

    torch.manual_seed(3)
    image = random_image(120, 172)
    exact = {key: value.double() for key, value in weights.items()}
    groups = options.get("groups", 1)
    with torch.no_grad():
        expected = mmdet_fsaf.head_outputs(exact, image.double(), options["depth"], groups)
        instances = model([{"image": image}])[0]["instances"]
        model.double()
        images = model.preprocess_image([{"image": image.double()}])
        predictions = model._predict(images.tensor)[0]["point"]

    for logits, distances, mine, my_distances in zip(
        *expected, predictions.point_logits, predictions.point_deltas
    ):
        top, bottom, left, right = distances.unbind(1)
        ltrb = torch.stack([left, top, right, bottom], dim=1)
        torch.testing.assert_close(mine, logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(my_distances, ltrb, rtol=0, atol=1e-5)
        assert logits.std() > 1e-3 and distances.max() > 0.1
    assert any((distances == 0).any() for distances in expected[1])

    boxes, scores, classes = mmdet_fsaf.detect(*expected, tuple(image.shape[1:]))
    torch.testing.assert_close(instances.scores, scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(instances.pred_boxes.tensor, boxes, rtol=0, atol=1e-3)
    assert torch.equal(instances.pred_classes, classes)
    assert len(scores) > 300 and len(instances.pred_levels.unique()) > 2
    assert (boxes == torch.tensor([0.0, 0.0, 172.0, 120.0])).any(), "none is clipped"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return mmdet_fsaf.random_weights(50, num_classes=3)


def test_every_tensor_is_converted(weights):
    assert_every_tensor_is_converted(weights, MMDET_FSAF)
    wrapped = {f"module.{name}": value for name, value in weights.items()}
    assert to_own_layout(wrapped).weights.keys() == to_own_layout(weights).weights.keys()


def test_keys_that_give_the_weights_another_meaning_are_named():
    assert_conflicts(MMDET_FSAF, CONFIG, [])
    expected = ["INPUT.FORMAT is 'BGR'", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"]
    expected += ["MODEL.RESNETS.STRIDE_IN_1X1 is True", "MODEL.FPN.RELU_BEFORE_P7 is True"]
    expected += ["MODEL.FSAF.POINT_OFFSET is 0.5"]
    assert_conflicts(MMDET_FSAF, ROOT / "configs/fsaf_R_50_FPN_1x.yaml", expected)


def test_mmdetections_retinanet_is_not_taken_for_it(weights):
    head = {"bbox_head.retina_reg.weight": torch.zeros(36, 256, 3, 3)}
    with pytest.raises(WeightsFileError, match=r"RetinaNet with 9 anchors"):
        to_own_layout({**weights, **head})


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("bbox_head.retina_reg.weight", ()),
        ("bbox_head.retina_reg.bias", (36,)),
        ("bbox_head.retina_reg.bias", ()),
    ],
)
def test_other_shapes_are_refused(weights, name, shape):
    with pytest.raises(WeightsFileError, match=rf"{name}' has the shape"):
        to_own_layout({**weights, name: torch.zeros(shape)})


def test_no_tensor_hides_another(weights):
    twice = {"branches.point.cls_score.bias": torch.zeros(3)}
    with pytest.raises(WeightsFileError, match=r"two of its tensors are 'branches\.point\.cls"):
        to_own_layout({**weights, **twice})
