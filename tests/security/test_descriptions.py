"""What a checkpoint says of its classes is as untrusted as its weights."""

import numpy as np
import pytest
import torch
from models import tiny_cfg

from fsaf_d2 import load_detector
from fsaf_d2.prediction.description import describe

NAN, INF = float("nan"), float("inf")
NESTED = []
for _ in range(50):
    NESTED = [NESTED, NESTED]
WRONG = {
    "class_names": [
        *(5, True, "cat", b"cat", ("a", "b"), {"a": 1, "b": 2}, {"a"}, torch.zeros(2), NESTED),
        *([1, 2], ["a", None], [["a"], "b"], ["a", "b" * 201], [np.str_("a"), "b"]),
        *(["x"] * (1 << 17), np.array(["a", "b"]), torch.zeros(0)),
    ],
    "category_ids": [
        *(5, "12", (1, 2), {1: 2}, torch.tensor([1, 2]), np.array([1, 2]), NESTED, [1, 2**53 + 1]),
        *([1, 1], [1, True], [1, 2.0], [1, NAN], [1, None], [[1], [2]], [np.int64(1), np.int64(2)]),
        *([1, 10**4000], list(range(1 << 17))),
    ],
    "thresholds": [
        *(5, 10**400, NAN, [0.5, 0.5], "0.5", torch.zeros(2), {"a"}, [["a", 0.5]], NESTED),
        *({"a": value} for value in (NAN, INF, -0.1, 1.1, 10**400, "0.5", None, True, [0.5])),
        *({"a": value} for value in (torch.tensor(0.5), np.float64(0.5), {"b": 0.5}, NESTED)),
        *({1: 0.5}, {("a",): 0.5}, {"a" * 201: 0.5}, {str(i): 0.5 for i in range(1 << 17)}),
    ],
    "input_format": [5, "bgr", "GRAY", b"BGR", ["BGR"], ("BGR",), torch.zeros(3), True, NESTED],
}


@pytest.fixture(scope="module")
def cfg():
    return tiny_cfg("MODEL.RETINANET.NUM_CLASSES", "2")


@pytest.mark.parametrize("key", WRONG)
def test_what_has_a_wrong_type_or_range_is_named(cfg, key):
    for value in WRONG[key]:
        content = {"class_names": ["a", "b"], key: value}
        with pytest.raises(ValueError, match=rf"^'a\.pth': {key} must be .*, not ") as error:
            describe(content, cfg, "a.pth")
        assert len(str(error.value)) < 250 and "\n" not in str(error.value)


@pytest.mark.parametrize("key", WRONG)
@pytest.mark.parametrize("empty", [None, [], {}])
def test_what_is_empty_is_not_said(cfg, key, empty):
    found = describe({key: empty}, cfg, "a.pth")
    assert found.class_names == ["0", "1"] and found.category_ids == [1, 2]
    assert found.thresholds == [0.5, 0.5] and found.input_format == "BGR"


@pytest.mark.parametrize("config", [5, b"x", ["MODEL"], {"MODEL": 1}, "x" * 131073])
def test_a_config_that_is_no_text_is_named(tmp_path, config):
    file = tmp_path / "a.pth"
    torch.save({"model": {}, "config": config}, file)
    with pytest.raises(
        ValueError, match=r"a\.pth': config must be a text of 131072 letters at the most, not "
    ):
        load_detector(file)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (
            "MODEL.RETINANET.NUM_CLASSES",
            "1000000000",
            "NUM_CLASSES 1000000000, which must be 65536",
        ),
        ("MODEL.RETINANET.NUM_CLASSES", "0", "has 0 classes"),
        ("MODEL.RETINANET.NUM_CONVS", "1000000000", "NUM_CONVS 1000000000, which must be 65536"),
        ("MODEL.RETINANET.NUM_CONVS", "60000", "more (tensors|numbers) than"),
        ("MODEL.RETINANET.NUM_CLASSES", "60000", "more numbers than"),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", "30000", "more numbers than|allocate"),
        ("MODEL.RESNETS.WIDTH_PER_GROUP", "60000", "more numbers than|allocate"),
        (
            "MODEL.ANCHOR_GENERATOR.SIZES",
            f"[[{10**19}]]",
            r"MODEL\.ANCHOR_GENERATOR\.SIZES 10+, which must be",
        ),
        ("INPUT.MIN_SIZE_TEST", f"{10**19}", r"INPUT\.MIN_SIZE_TEST 10+, which must be"),
        ("TEST.DETECTIONS_PER_IMAGE", f"-{2**60}", r"TEST\.DETECTIONS_PER_IMAGE -11529"),
        ("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[" + "1.0," * 6000 + "]]", "more numbers than"),
    ],
)
def test_networks_that_are_larger_than_the_file_are_not_built(
    tmp_path, little_memory, key, value, words
):
    file = tmp_path / "a.pth"
    torch.save({"model": {"x": torch.zeros(3)}, "config": tiny_cfg(key, value).dump()}, file)
    with pytest.raises(ValueError, match=rf"'.*a\.pth'.*({words})") as error:
        load_detector(file, device="cpu")
    assert "\n" not in str(error.value)
