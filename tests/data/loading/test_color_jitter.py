import cv2
import numpy as np
import pytest
import torch

from fsaf_d2 import load_config
from fsaf_d2.data.loading import mapper as mapper_module
from fsaf_d2.data.loading.color_jitter import color_jitter
from fsaf_d2.data.loading.mapper import build_mapper


@pytest.fixture
def entry(tmp_path) -> dict:
    """An image of dull colours with a box."""
    image = np.full((64, 64, 3), (90, 110, 140), np.uint8)
    image[:, :32] = (120, 100, 80)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    box = {"bbox": [8, 8, 24, 24], "bbox_mode": 1, "category_id": 0}
    return {
        "file_name": str(tmp_path / "a.png"),
        **{"height": 64, "width": 64, "image_id": 1, "annotations": [box]},
    }


def mapped(entry: dict, strength: float, seed: int = 0, *, is_train: bool = True, **more) -> dict:
    overrides = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"]
    overrides += ["INPUT.RANDOM_FLIP", "none", "INPUT.COLOR_JITTER", str(float(strength))]
    overrides += [part for key, value in more.items() for part in (key.replace("__", "."), value)]
    np.random.seed(seed)
    return build_mapper(load_config("", overrides), is_train=is_train)(entry)


@pytest.mark.parametrize("opencv", [True, False])
def test_images_of_training_change_and_boxes_do_not(entry, monkeypatch, opencv):
    if not opencv:
        monkeypatch.setattr(mapper_module, "cv2", None)
    plain = mapped(entry, 0)
    found = [mapped(entry, 0.5, seed) for seed in range(20)]
    assert all(not torch.equal(x["image"], plain["image"]) for x in found)
    means = torch.tensor([x["image"].float().mean() for x in found])
    assert means.max() > 1.15 * plain["image"].float().mean() > 1.3 * means.min()
    for x in found:
        assert x["image"].dtype == torch.uint8 and x["image"].is_contiguous()
        boxes = x["instances"].gt_boxes.tensor
        assert torch.equal(boxes, plain["instances"].gt_boxes.tensor)
    assert torch.equal(mapped(entry, 0.5, 3)["image"], found[3]["image"])


def test_evaluation_sees_the_images_as_they_are(entry):
    plain, found = (mapped(entry, x, is_train=False)["image"] for x in (0, 0.5))
    assert torch.equal(plain, found)


def test_both_orders_of_channels_get_the_same_colours(entry):
    bgr, rgb = (mapped(entry, 0.9, INPUT__FORMAT=x)["image"].int() for x in ("BGR", "RGB"))
    assert (bgr.flip(0) - rgb).abs().max() <= 1


@pytest.mark.parametrize("strength", [-0.1, 1.5])
def test_other_strengths_are_refused(strength):
    with pytest.raises(ValueError, match=rf"COLOR_JITTER must be from 0 to 1, not {strength}"):
        color_jitter(strength, "BGR")
