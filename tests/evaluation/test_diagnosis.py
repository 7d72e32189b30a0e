import numpy as np
import pytest
from toy_sets import coco_set, detections_of, perfect, prediction, random_set, truth_of

from fsaf_d2.evaluation.average_precision import BoxEvaluation
from fsaf_d2.evaluation.diagnosis import diagnose

WIDTH, HEIGHT = 640, 480
SIZE = np.array([WIDTH, HEIGHT] * 2)


@pytest.fixture(scope="module")
def data() -> dict:
    """Objects all over images of 640 x 480 pixels."""
    rng = np.random.default_rng(0)
    objects = []
    for image in range(1, 21):
        for _ in range(6):
            width, height = rng.uniform(20, 120, 2)
            box = (rng.uniform(0, WIDTH - width), rng.uniform(0, HEIGHT - height), width, height)
            objects.append((image, int(rng.choice((2, 3, 5))), [float(x) for x in box]))
    data = coco_set(objects, num_images=20, category_ids=(2, 3, 5))
    for image in data["images"]:
        image.update(width=WIDTH, height=HEIGHT)
    return data


def sentence(data, predictions, tmp_path, **options) -> str | None:
    truth = truth_of(data, tmp_path)
    found = detections_of(predictions, truth)
    evaluation = BoxEvaluation(truth, found, max_detections=100)
    return diagnose(truth, found, evaluation.metrics()["AP"], max_detections=100, **options)


BOX_MISTAKES = {
    "(x0, y0, x1, y1)": lambda x, y, w, h: (x, y, x + w, y + h),
    "(x, y, width, height) once more": lambda x, y, w, h: (x, y, w - x, h - y),
    "(centre x, centre y, width, height)": lambda x, y, w, h: (x + w / 2, y + h / 2, w, h),
    "x and y swapped in the boxes": lambda x, y, w, h: (y, x, h, w),
    "(y0, x0, y1, x1)": lambda x, y, w, h: (y, x, y + h, x + w),
    "multiplied by the image's width and height": lambda *box: np.array(box) / SIZE,
    "scaled back from a short side of 800": lambda *box: np.array(box) * 800 / 480,
    "multiplied by 2 ": lambda *box: np.array(box) / 2,
    "multiplied by 0.75 ": lambda *box: np.array(box) / 0.75,
}
ID_MISTAKES = {
    "shifted by one (each id + 1)": {2: 1, 3: 2, 5: 4},
    "shifted by one (each id - 1)": {2: 3, 3: 4, 5: 6},
    "places in the list of categories, from 0 on": {2: 0, 3: 1, 5: 2},
    "places in the list of categories, from 1 on": {2: 1, 3: 2, 5: 3},
    "permuted (2 is 5 (class 5), 3 is 2 (class 2), 5 is 3 (class 3))": {2: 3, 3: 5, 5: 2},
    "permuted (70 is 2 (class 2), 80 is 3 (class 3), 90 is 5 (class 5))": {2: 70, 3: 80, 5: 90},
}


@pytest.mark.parametrize("mistake", BOX_MISTAKES)
def test_mistakes_in_boxes_are_found(mistake, data, tmp_path):
    found = [{**x, "bbox": list(BOX_MISTAKES[mistake](*x["bbox"]))} for x in perfect(data)]
    text = sentence(data, found, tmp_path)
    assert f"{mistake.rstrip()} it would be 100.0: " in text.replace("800 pixels", "800")
    assert text.startswith("AP is ") and text.endswith(".") and text.count("it would be") == 1


@pytest.mark.parametrize("mistake", ID_MISTAKES)
def test_mistakes_in_category_ids_are_found(mistake, data, tmp_path):
    ids = ID_MISTAKES[mistake]
    found = [{**x, "category_id": ids[x["category_id"]]} for x in perfect(data)]
    text = sentence(data, found, tmp_path)
    assert (
        f"; with category ids {mistake} it would be 100.0: ".replace(
            "ids places", "ids read as places"
        )
        in text
    )


def test_several_mistakes_at_once(data, tmp_path):
    """YOLO's way: centres, normalised, classes from 0."""
    ids = {2: 0, 3: 1, 5: 2}
    found = []
    for entry in perfect(data):
        box = np.array(BOX_MISTAKES["(centre x, centre y, width, height)"](*entry["bbox"])) / SIZE
        found.append({**entry, "bbox": list(box), "category_id": ids[entry["category_id"]]})
    text = sentence(data, found, tmp_path)
    for words in ("centre x", "image's width and height", "from 0 on", "it would be 100.0"):
        assert words in text


def test_mistakes_are_found_beside_noise(data, tmp_path):
    """Boxes that are 5 percent off, false alarms, and objects not found."""
    rng = np.random.default_rng(1)
    found = []
    for entry in perfect(data)[::2]:
        x, y, w, h = entry["bbox"] + rng.normal(0, 0.05, 4) * np.tile(entry["bbox"][2:], 2)
        found.append({**entry, "bbox": [x, y, x + w, y + h]})
        found.append(prediction(entry["image_id"], 2, rng.uniform(0, 300, 4), rng.random()))
    assert "read as (x0, y0, x1, y1) it would be" in sentence(data, found, tmp_path)


def test_the_detectors_own_input_sizes_are_used(data, tmp_path):
    found = [{**x, "bbox": [value * 0.6 for value in x["bbox"]]} for x in perfect(data)]
    sizes = np.tile(0.6 * SIZE[:2], (20, 1))
    text = sentence(data, found, tmp_path, input_sizes=sizes)
    assert "boxes scaled to the images' own size it would be 100.0" in text


def test_what_is_well_needs_no_explanation(data, tmp_path):
    assert sentence(data, perfect(data), tmp_path) is None
    # A poor one that makes none of the mistakes: below 20 percent, but not below 1.
    third = [x for i, x in enumerate(perfect(data)) if i % 10 == 0]
    assert sentence(data, third, tmp_path) is None


def test_nothing_to_be_found_and_nothing_found(data, tmp_path):
    empty = {**data, "annotations": []}
    assert sentence(empty, [], tmp_path) == "AP is not defined: the annotations have no objects."
    assert sentence(data, [], tmp_path) == "AP is 0.0: there are no detections."
    text = sentence(data, [], tmp_path, score_thresh=0.05)
    assert "no detection has a score above the threshold of 0.05" in text


def random_boxes(highest: float) -> list[dict]:
    rng = np.random.default_rng(2)
    return [
        prediction(image, 2, rng.uniform(0, 100, 4), highest * rng.random())
        for image in range(1, 21)
        for _ in range(20)
    ]


def test_an_untrained_detector_is_called_so(data, tmp_path):
    text = sentence(data, random_boxes(0.07), tmp_path)
    assert "the highest score is 0.07" in text and "under-trained" in text


def test_a_sure_detector_that_finds_nothing(data, tmp_path):
    text = sentence(data, random_boxes(0.99), tmp_path)
    assert "though scores reach 0.99" in text and "it would be" not in text


def test_predictions_of_images_without_objects_alone(tmp_path):
    data, _ = random_set(num_images=3)
    data["annotations"] = [x for x in data["annotations"] if x["image_id"] == 1]
    found = [prediction(2, 3, (0, 0, 9, 9), 0.9)]
    assert "though scores reach" in sentence(data, found, tmp_path)
