"""Whoever chooses to what images are resized must not choose how much memory they take."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from models import tiny_cfg
from PIL import Image
from torch import nn

from fsaf_d2.data.loading.mapper import LimitedMapper, OpenCVMapper
from fsaf_d2.data.loading.resizing import RESIZE_METHODS
from fsaf_d2.detectors.building import build_detector
from fsaf_d2.inference.augmented import AugmentedDetector
from fsaf_d2.prediction.detector import Detector

IMAGE = np.zeros((16, 16, 3), np.uint8)


class Sees(nn.Module):
    """Finds nothing, and keeps what it gets."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, inputs):
        self.batches.append([tuple(x["image"].shape) for x in inputs])
        nothing = Instances((16, 16), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
        nothing.pred_classes = torch.zeros(0, dtype=torch.int64)
        return [{"instances": nothing} for _ in inputs]


def detector(**options) -> Detector:
    names = {"class_names": ["a"], "category_ids": [1], "thresholds": [0.5]}
    sizes = {"short_side": 30000, "max_side": 30000, "size_divisibility": 32}
    return Detector(Sees(), **names, **{**sizes, **options})


@pytest.mark.parametrize("resize", RESIZE_METHODS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "once resized it has 30000 x 30000 .* INPUT.MAX_SIZE_TEST are 30000 and 30000"),
        ({"size_keys": "short_side and max_side"}, "as short_side and max_side are 30000"),
        ({"short_side": 10**9, "max_side": 2**31 - 1}, "are 1000000000 and 2147483647"),
        ({"short_side": 100, "max_side": 100, "max_pixels": 9999}, "100 x 100 .*the 9999 that"),
        (
            {"short_side": 100, "max_side": 100, "max_pixels": 10000},
            "has 128 x 128 once it is padded to multiples of 32, more than the 10000",
        ),
    ],
)
def test_what_the_network_sees_is_limited(little_memory, resize, options, words):
    with pytest.raises(ValueError, match=rf"An image of 16 x 16 pixels .*{words}") as error:
        detector(resize=resize, **options)(IMAGE)
    assert "INPUT.MAX_PIXELS" in str(error.value) and "\n" not in str(error.value)


def test_batches_are_no_larger_than_the_limit():
    small = detector(short_side=32, max_side=32, max_pixels=2 * 32 * 32, batch_size=8)
    assert len(small([IMAGE] * 5)) == 5
    assert [len(batch) for batch in small.model.batches] == [2, 2, 1]


@pytest.mark.parametrize("mapper", [LimitedMapper, OpenCVMapper])
@pytest.mark.parametrize("split", ["TEST", "TRAIN"])
def test_what_evaluation_and_training_read_is_limited(tmp_path, little_memory, mapper, split):
    cfg = tiny_cfg()
    cfg.INPUT[f"MIN_SIZE_{split}"] = 30000 if split == "TEST" else (30000,)
    cfg.INPUT[f"MAX_SIZE_{split}"] = 40000
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "height": 16, "width": 16, "annotations": []}
    words = rf"a\.png' cannot .* 30000 x 30000 .*INPUT\.MIN_SIZE_{split} .* are 30000 and 40000"
    with pytest.raises(OSError, match=words):
        mapper(cfg, split == "TRAIN")(record)


@torch.no_grad()
def test_views_are_limited(little_memory):
    """Of test-time augmentation."""
    cfg = tiny_cfg()
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = (100, 30000), 30000
    views = AugmentedDetector(cfg, build_detector(cfg).eval())
    image = torch.from_numpy(IMAGE.transpose(2, 0, 1).copy())
    with pytest.raises(ValueError, match=r"TEST\.AUG\.MAX_SIZE are 30000 and 30000"):
        views([{"image": image, "height": 16, "width": 16}])
