"""Views of an image, and what is made of the detections in them."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from models import tiny_cfg
from predictions import content_of, photo

from fsaf_d2 import load_detector
from fsaf_d2.detectors import each_branch
from fsaf_d2.export.comparison import compare_detections
from fsaf_d2.inference.augmented import AugmentedDetector


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.save(content_of(folder), folder / "model.pth")
    return load_detector(folder / "model.pth", device="cpu").model


def augmented(model, *, min_sizes=(128,), flip=False, max_size=999) -> AugmentedDetector:
    return AugmentedDetector(model, min_sizes=min_sizes, max_size=max_size, flip=flip)


def image_of(image: np.ndarray, **more) -> dict:
    return {"image": torch.from_numpy(image.transpose(2, 0, 1).copy()), **more}


def detect(model, *images) -> list[dict]:
    with torch.no_grad():
        return model(list(images))


def test_one_view_of_the_image_itself_changes_nothing(model):
    image = image_of(photo(128, 160))
    expected, found = (
        detect(x, image)[0]["instances"] for x in (model, augmented(model, min_sizes=(128,)))
    )
    assert len(found) == len(expected) == 100
    for name in ("scores", "pred_classes", "pred_levels", "pred_branches"):
        assert torch.equal(found.get(name), expected.get(name))
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_a_mirrored_view_is_that_of_the_mirrored_image(model):
    """With two views of equal worth the result does not depend on which of them is mirrored."""
    image = photo(128, 160)
    both = augmented(model, flip=True)
    one = detect(both, image_of(image))[0]["instances"]
    other = detect(both, image_of(image[:, ::-1]))[0]["instances"]
    boxes = other.pred_boxes.tensor
    boxes[:, [0, 2]] = 160 - boxes[:, [2, 0]]
    compared = compare_detections(one, other, "image", lowest=0.05, limit=100)
    assert not compared.failures and compared.num_detections == 100
    single = detect(model, image_of(image))[0]["instances"]
    assert not torch.equal(single.scores, one.scores)


class SeesWhatIsBright:
    """Finds the one bright rectangle of an image, exactly; notes the sizes of what it sees."""

    def __init__(self, score=0.5) -> None:
        self.sizes, self.mirrored = [], []

    def __call__(self, batched_inputs: list[dict]) -> list[dict]:
        ((_, height, width),) = (x["image"].shape for x in batched_inputs)
        bright = (batched_inputs[0]["image"].float().mean(dim=0) > 127).nonzero()
        (y0, x0), (y1, x1) = bright.amin(dim=0).tolist(), (bright.amax(dim=0) + 1).tolist()
        self.sizes.append((height, width))
        self.mirrored.append(x0 + x1 > width)
        found = Instances((height, width))
        found.pred_boxes = Boxes(torch.tensor([[x0, y0, x1, y1]], dtype=torch.float32))
        found.scores = torch.tensor([0.5 + len(self.sizes) / 100])
        found.pred_classes = found.pred_levels = torch.tensor([len(self.sizes) % 2])
        found.pred_branches = torch.tensor([False])
        return [{"instances": found}]


def bright_image() -> np.ndarray:
    image = np.zeros((90, 120, 3), np.uint8)
    image[30:60, 12:48] = 255
    return image


def test_detections_of_all_views_are_in_the_images_pixels(model, monkeypatch):
    sees = SeesWhatIsBright()
    monkeypatch.setattr(model, "forward", sees)
    views = augmented(model, min_sizes=(90, 45, 180, 300), flip=True, max_size=320)
    (output,) = detect(views, image_of(bright_image(), height=900, width=1200))
    assert views.num_views == 8
    sizes = [(90, 120), (45, 60), (180, 240), (240, 320)]
    assert sees.sizes == [size for size in sizes for _ in range(2)]
    assert sees.mirrored == [False, True] * 4
    found = output["instances"]
    assert found.image_size == (900, 1200)
    # All are one object; it stays once for each of the two classes, the surest of each.
    assert found.pred_classes.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.58, 0.57]))
    expected = torch.tensor([[120.0, 300, 480, 600]] * 2)
    torch.testing.assert_close(found.pred_boxes.tensor, expected, rtol=0, atol=20)


def test_views_are_made_from_the_file(model, monkeypatch, tmp_path):
    """Not from the image that has been resized for the network."""
    cv2.imwrite(str(tmp_path / "a.png"), bright_image())
    sees = SeesWhatIsBright()
    monkeypatch.setattr(model, "forward", sees)
    shrunk = cv2.resize(bright_image(), (12, 9))
    more = {"height": 90, "width": 120, "file_name": str(tmp_path / "a.png")}
    (output,) = detect(augmented(model, min_sizes=(90,)), image_of(shrunk, **more))
    assert output["instances"].pred_boxes.tensor.tolist() == [[12, 30, 48, 60]]


def test_files_of_too_many_pixels_are_not_decoded(model, monkeypatch, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), bright_image())
    monkeypatch.setattr(model, "forward", SeesWhatIsBright())
    inputs = {"file_name": str(tmp_path / "a.png")}
    for limit in (90 * 120, 90 * 120 - 1):
        sides = ["TEST.AUG.MIN_SIZES", "(90,)", "TEST.AUG.MAX_SIZE", "120"]
        views = AugmentedDetector(tiny_cfg("INPUT.MAX_PIXELS", str(limit), *sides), model)
        if limit == 90 * 120:
            assert len(detect(views, inputs)[0]["instances"]) == 2
            continue
        words = rf"a\.png' cannot .* 120 x 90 pixels, more than the {limit} that INPUT\.MAX_PIXELS"
        with pytest.raises(OSError, match=words):
            detect(views, inputs)


def test_no_more_than_the_limit(model):
    views = augmented(model, min_sizes=(96, 128, 160), flip=True)
    (output,) = detect(views, image_of(photo(128, 160)))
    assert len(output["instances"]) == model.suppression.max_detections == 100
    assert output["instances"].scores.diff().max() <= 0


def test_each_branch_is_merged_as_well(model):
    views = augmented(model, min_sizes=(96, 128))
    with each_branch(views):
        (output,) = detect(views, image_of(photo(128, 160)))
    assert set(output) == {"instances", "anchor_branch", "point_branch"}
    assert output["point_branch"].pred_branches.all()
    assert not output["anchor_branch"].pred_branches.any()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("INPUT.FORMAT", "L", r"needs INPUT\.FORMAT 'BGR' or 'RGB', not 'L'"),
        ("TEST.AUG.MIN_SIZES", "()", r"TEST\.AUG\.MIN_SIZES must be .*not \(\)"),
        ("TEST.AUG.MIN_SIZES", "(640, 0)", r"TEST\.AUG\.MIN_SIZES must be .*not \(640, 0\)"),
        ("TEST.AUG.MAX_SIZE", "0", r"TEST\.AUG\.MAX_SIZE must be above 0, not 0"),
    ],
)
def test_wrong_keys_are_named(model, key, value, words):
    cfg: CfgNode = tiny_cfg(key, value)
    with pytest.raises(ValueError, match=words):
        AugmentedDetector(cfg, model)


@pytest.mark.parametrize(
    ("keys", "sizes", "longest"),
    [
        ({"INPUT.MIN_SIZE_TEST": "288", "INPUT.MAX_SIZE_TEST": "480"}, (216, 288, 360), 600),
        ({"TEST.AUG.MIN_SIZES": "(90, 120)", "TEST.AUG.MAX_SIZE": "500"}, (90, 120), 500),
        ({"INPUT.MIN_SIZE_TEST": "100", "TEST.AUG.MAX_SIZE": "777"}, (75, 100, 125), 777),
    ],
)
def test_without_sizes_views_are_about_the_configs_own(model, keys, sizes, longest):
    cfg = tiny_cfg(*(word for pair in keys.items() for word in pair))
    views = AugmentedDetector(cfg, model)
    assert views.min_sizes == sizes and views.max_size == longest
    assert views.num_views == 2 * len(sizes) == int(views.description().split()[0])


def test_without_any_size_one_is_asked_for(model):
    with pytest.raises(
        ValueError, match=r"TEST\.AUG\.MIN_SIZES is not set, and INPUT\.MIN_SIZE_TEST 0"
    ):
        AugmentedDetector(tiny_cfg("INPUT.MIN_SIZE_TEST", "0"), model)


def test_other_detectors_are_named():
    other = build_model(tiny_cfg("MODEL.META_ARCHITECTURE", "RetinaNet"))
    words = "must be False for detectron2's RetinaNet: it has no suppression"
    with pytest.raises(ValueError, match=words):
        AugmentedDetector(tiny_cfg(), other)
