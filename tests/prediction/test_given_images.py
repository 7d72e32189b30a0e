"""What the Python interface takes for an image, and what it says to all else."""

import numpy as np
import pytest
import torch
from PIL import Image
from predictions import photo

from fsaf_d2.prediction.given_images import to_array


@pytest.mark.parametrize("channels", ["BGR", "RGB"])
def test_pillows_images_give_what_arrays_do(detector, channels):
    image = photo()
    pillow = Image.fromarray(image[:, :, ::-1])
    expected = detector(image, min_score=0)
    for given in (
        detector(pillow, channels=channels, min_score=0),
        detector([pillow], min_score=0)[0],
    ):
        assert torch.equal(given.pred_boxes.tensor, expected.pred_boxes.tensor)
    drawn = detector.draw(pillow, expected, channels=channels)
    array = image if channels == "BGR" else image[:, :, ::-1]
    assert np.array_equal(drawn, detector.draw(array, expected, channels=channels))


def test_pillows_images_are_turned_and_made_rgb():
    image = Image.new("L", (20, 10), 7)
    image.getexif()[274] = 6
    assert to_array(image, "RGB", 999).shape == (20, 10, 3)
    assert (to_array(Image.new("RGBA", (4, 3), (1, 2, 3, 9)), "BGR", 99) == [3, 2, 1]).all()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, r"is None, which is what cv2\.imread gives"),
        (torch.zeros(3, 9, 9), r"is a tensor of \(3, 9, 9\).*permute"),
        (7, "is of type int"),
        ({"image": 1}, "is of type"),
        (Image.new("I;16", (4, 4)), "more than 8 bits"),
    ],
)
def test_what_cannot_be_taken_ends_in_one_sentence(detector, image, words):
    for given in (image, [image]):
        with pytest.raises(ValueError, match=words):
            detector(given)


def test_an_image_of_as_many_pixels_as_allowed_is_taken(tmp_path):
    image = Image.new("RGB", (20, 10))
    image.save(tmp_path / "a.png")
    for given in (image, tmp_path / "a.png"):
        assert to_array(given, "BGR", 200).shape == (10, 20, 3)
        with pytest.raises((OSError, ValueError), match="20 x 10 pixels, more than the 199"):
            to_array(given, "BGR", 199)


def test_large_images_of_pillows_are_refused():
    with pytest.raises(OSError, match="20 x 10 pixels, more than the 199"):
        to_array(Image.new("RGB", (20, 10)), "RGB", 199)


def test_a_score_equal_to_the_threshold_counts(detector):
    everything = detector(photo(), min_score=0)
    score = everything.scores[len(everything) // 2]
    assert (detector.choose(everything, score).scores == score).any()
    label = int(everything.pred_classes[0])
    before = detector.thresholds.clone()
    detector.thresholds[label] = everything.scores[0]
    try:
        assert everything.scores[0] in detector.choose(everything).scores
    finally:
        detector.thresholds[:] = before
