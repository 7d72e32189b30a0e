"""In which way all boxes of a data set are written."""

import numpy as np
import pytest

from fsaf_d2.data.reading.box_layout import Layout, clip, find_layout, overhang

SIZE = (640, 480)


def objects(seed, count=500, largest=200):
    """(x, y, width, height) of objects anywhere in images, and the images' sizes."""
    rng = np.random.default_rng(seed)
    sizes = np.tile(np.array(SIZE, dtype=float), (count, 1))
    sides = rng.uniform(4, largest, (count, 2))
    first = rng.uniform(0, 1, (count, 2)) * (sizes - sides)
    return np.concatenate([first, sides], axis=1), sizes


def written(boxes, sizes, layout):
    """The numbers that stand in a file for boxes in a layout."""
    x, y, w, h = boxes.T
    if layout.corners:
        x, y, w, h = x, y, x + w, y + h
    if layout.centers:
        x, y = x + w / 2, y + h / 2
    numbers = np.stack([x, y, w, h], axis=1)
    return numbers / np.tile(sizes, 2) if layout.normalised else numbers


LAYOUTS = [
    Layout(),
    Layout(corners=True),
    Layout(normalised=True),
    Layout(corners=True, normalised=True),
    Layout(centers=True, normalised=True),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("largest", [20, 200, 470])
@pytest.mark.parametrize("seed", range(5))
def test_the_layout_of_many_boxes_is_found(layout, largest, seed):
    boxes, sizes = objects(seed, largest=largest)
    numbers = written(boxes, sizes, layout)
    found = find_layout(numbers, sizes)
    assert found == layout and found.certain
    np.testing.assert_allclose(found.to_pixels(numbers, sizes), boxes, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_single_mistakes_do_not_change_it(layout):
    boxes, sizes = objects(0)
    numbers = written(boxes, sizes, layout)
    numbers[7] = 30 * numbers[7]
    assert find_layout(numbers, sizes) == layout


def test_large_objects_that_leave_their_images_a_little_are_not_corners():
    # One object of nearly the whole image in each, which the tool lets stand over by 10 pixels:
    # as corners these are boxes inside their images too.
    sizes = np.tile(np.array(SIZE, dtype=float), (50, 1))
    numbers = np.tile(np.array([20.0, 15.0, 630.0, 470.0]), (50, 1))
    assert find_layout(numbers, sizes) == Layout()


def test_a_mixture_is_taken_as_it_is_written():
    boxes, sizes = objects(0)
    numbers = boxes.copy()
    numbers[::2] = written(boxes, sizes, Layout(corners=True))[::2]
    assert find_layout(numbers, sizes) == Layout()


def test_few_normalised_boxes_in_the_middle_can_be_corners_or_centres():
    sizes = np.tile(np.array(SIZE, dtype=float), (3, 1))
    numbers = np.tile(np.array([0.4, 0.4, 0.1, 0.1]), (3, 1))
    found = find_layout(numbers, sizes)
    assert found.normalised and not found.certain


def test_small_images_have_small_boxes():
    sizes = np.full((4, 2), 2.0)
    assert find_layout(np.tile(np.array([0.5, 0.5, 1.0, 1.0]), (4, 1)), sizes) == Layout()


def test_images_of_unknown_size_say_nothing():
    boxes, sizes = objects(0)
    assert find_layout(boxes + 1e4, np.full_like(sizes, np.nan)) == Layout()
    assert find_layout(np.empty((0, 4)), np.empty((0, 2))) == Layout()


def test_overhang_and_what_is_inside():
    sizes = np.array([[10.0, 20.0]] * 4 + [[np.nan, np.nan]])
    pixels = np.array([[1, 2, 9, 18], [-3, 2, 5, 5], [1, 2, 3, 25], [12, 2, 3, 3], [50, 5, 5, 5.0]])
    assert overhang(pixels, sizes)[:4].tolist() == [0, 3, 7, 5]
    assert clip(pixels, sizes).tolist() == [
        [1, 2, 9, 18],
        [0, 2, 2, 5],
        [1, 2, 3, 18],
        [10, 2, 0, 3],
        [50, 5, 5, 5],
    ]
