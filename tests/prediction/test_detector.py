"""What a detector takes, and that it finds the same however images come."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from predictions import MORE, photo

from fsaf_d2 import load_detector
from fsaf_d2.prediction.detector import drawing_scale


def assert_close(one, other):
    """Equal but for rounding, which may exchange neighbours in the order."""
    assert len(one) == len(other) > 20
    torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-4)
    surest = one.scores > one.scores.min() + 1e-3
    for index in surest.nonzero().flatten().tolist():
        near = (other.pred_boxes.tensor - one.pred_boxes.tensor[index]).abs().amax(dim=1) < 0.05
        near &= (other.scores - one.scores[index]).abs() < 1e-3
        near &= other.pred_classes == one.pred_classes[index]
        near &= other.pred_levels == one.pred_levels[index]
        near &= other.pred_branches == one.pred_branches[index]
        assert near.any()


def test_arrays_and_files_give_the_same(detector, tmp_path):
    image = photo()
    cv2.imwrite(str(tmp_path / "a.png"), image)
    found = detector(tmp_path / "a.png", min_score=0)
    assert found.image_size == (90, 120)
    for again in (
        detector(str(tmp_path / "a.png"), min_score=0),
        detector(image, min_score=0),
        detector(np.asarray(Image.open(tmp_path / "a.png")), channels="RGB", min_score=0),
        detector(np.asfortranarray(image), min_score=0),
        detector(image[::-1][::-1], min_score=0),
    ):
        assert torch.equal(again.pred_boxes.tensor, found.pred_boxes.tensor)
        assert torch.equal(again.scores, found.scores)
    wrong = detector(image, channels="RGB", min_score=0)
    assert not torch.equal(wrong.scores, found.scores)


def test_a_network_for_rgb_gets_rgb(save):
    bgr = load_detector(save(), device="cpu")
    rgb = load_detector(save(), overrides=["INPUT.FORMAT", "RGB"], device="cpu")
    image = photo()
    assert torch.equal(bgr.prepare(image).resized, rgb.prepare(image[:, :, ::-1].copy()).resized)
    assert torch.equal(bgr.prepare(image).resized.flip(0), rgb.prepare(image).resized)


def test_detections_reach_their_class_threshold(detector):
    everything = detector(photo(), min_score=0)
    least = torch.tensor([0.35, 0.4, 0.5])[everything.pred_classes]
    expected = everything[everything.scores >= least]
    found = detector(photo())
    assert torch.equal(found.scores, expected.scores) and len(found) < len(everything)
    assert detector(photo(), min_score=0.6).scores.min() >= 0.6
    assert 0 < everything.pred_branches.sum() < len(everything)
    assert len(everything.pred_levels.unique()) > 1


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_results_do_not_depend_on_the_batch(detector, monkeypatch, batch_size):
    """Images of several shapes, some of them padded to the same size by the network."""
    sizes = [(90, 120), (120, 90), (88, 120), (300, 100), (90, 121), (90, 120), (64, 64)]
    images = [photo(*size, seed) for seed, size in enumerate(sizes)]
    monkeypatch.setattr(detector, "batch_size", batch_size)
    batches = []
    detect = detector.detect
    monkeypatch.setattr(detector, "detect", lambda x: batches.append(len(x)) or detect(x))
    together = detector(images, min_score=0)
    assert sum(batches) == 7 and max(batches) == min(batch_size, 4)
    for image, found in zip(images, together):
        assert_close(found, detector(image, min_score=0))


def test_padding_to_a_larger_neighbour_would_change_results(detector):
    """So that the test above can fail."""
    one, other = detector.prepare(photo(90, 120)), detector.prepare(photo(300, 100, 1))
    assert detector.padded_shape(one) != detector.padded_shape(other)
    alone, (together, _) = detector.detect([one])[0], detector.detect([one, other])
    with pytest.raises(AssertionError):
        assert_close(together, alone)


def test_one_image_or_a_list(detector):
    assert detector([]) == []
    (found,) = detector([photo()])
    assert torch.equal(found.scores, detector(photo()).scores)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((9, 9, 3), np.float32),
        np.zeros((3, 9, 9), np.uint8),
        np.zeros((0, 9, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(detector, array):
    with pytest.raises(ValueError, match=r"uint8 array of shape \(height, width, 3\)"):
        detector(array)


def test_the_order_of_channels_has_two_names(detector):
    with pytest.raises(ValueError, match="'BGR' or 'RGB', not 'rgb'"):
        detector(photo(), channels="rgb")


def test_an_image_too_thin_for_the_network_is_refused(detector):
    with pytest.raises(ValueError, match="60000 x 1 pixels cannot be resized"):
        detector(np.zeros((1, 60000, 3), np.uint8))


def test_images_are_read_with_the_limits_of_training(save, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), photo())
    detector = load_detector(save(), overrides=["INPUT.MAX_PIXELS", "999"], device="cpu")
    with pytest.raises(OSError, match=r"a\.png'.* 120 x 90 pixels.*999"):
        detector(tmp_path / "a.png")
    with pytest.raises(OSError, match=r"b\.png"):
        detector([tmp_path / "b.png"])


def test_draws_in_the_order_of_channels_that_it_got(detector, tmp_path):
    image = np.zeros((200, 600, 3), np.uint8)
    image[:] = 200, 90, 10
    nothing = detector(image, min_score=2)
    assert (detector.draw(image, nothing) == [200, 90, 10]).all()
    assert (detector.draw(image, nothing, channels="RGB") == [200, 90, 10]).all()
    cv2.imwrite(str(tmp_path / "a.png"), image)
    assert (detector.draw(tmp_path / "a.png", nothing) == [200, 90, 10]).all()
    assert (detector.draw(tmp_path / "a.png", nothing, channels="RGB") == [10, 90, 200]).all()
    found = detector(photo(200, 600), min_score=0)
    assert (detector.draw(image, found) != [200, 90, 10]).any(axis=2).mean() > 0.01


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((60, 80), (420, 560)), ((600, 800), (600, 800)), ((3000, 4000), (1200, 1600))],
)
def test_drawings_have_a_size_for_screens(detector, size, drawn):
    image = np.zeros((*size, 3), np.uint8)
    scale = drawing_scale(*size)
    assert (round(size[0] * scale), round(size[1] * scale)) == drawn
    assert detector.draw(image, detector(photo(), min_score=2)).shape == (*drawn, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same(save):
    images = [photo(90, 120), photo(120, 90, 1)]
    on_gpu, on_cpu = (load_detector(save(**MORE), device=name) for name in ("cuda", "cpu"))
    for one, other in zip(on_gpu(images, min_score=0), on_cpu(images, min_score=0)):
        assert one.scores.device.type == "cpu"
        # TF32 rounds coarsely.
        assert abs(one.scores[:10] - other.scores[:10]).max() < 0.02
