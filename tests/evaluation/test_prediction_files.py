import json
import re

import numpy as np
import pytest
from toy_sets import coco_set, detections_of, perfect, prediction, random_set, truth_of

from fsaf_d2.evaluation import evaluate_predictions
from fsaf_d2.evaluation.prediction_files import read_predictions, write_predictions


def write(folder, name: str, content: object) -> str:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


def evaluate(folder, data: object, predictions: object, **options) -> dict:
    files = write(folder, "truth.json", data), write(folder, "found.json", predictions)
    return evaluate_predictions(*files, **options)


def test_a_file_gives_what_was_written(tmp_path):
    data, predictions = random_set()
    truth = truth_of(data, tmp_path)
    found = detections_of(predictions, truth)
    write_predictions(tmp_path / "found.json", truth, found)
    again = read_predictions(tmp_path / "found.json", truth)
    for name in ("image_index", "category_ids", "boxes", "scores"):
        assert np.array_equal(getattr(again, name), getattr(found, name))


def test_a_perfect_file_has_ap_100_also_with_375_objects_in_an_image(tmp_path):
    objects = [(1, 1, (8 * (i % 25), 6 * (i // 25), 7, 5)) for i in range(375)]
    data = coco_set(objects, category_ids=(1,))
    evaluation = evaluate(tmp_path, data, perfect(data))
    assert evaluation["overall"]["joint"]["AP"] == pytest.approx(100)
    assert evaluation["dataset"] == "found" and evaluation["diagnosis"] is None
    limited = evaluate(tmp_path, data, perfect(data), max_detections=100)
    assert limited["overall"]["joint"]["AP"] == pytest.approx(100 * 27 / 101)


def test_unknown_categories_are_counted(tmp_path):
    data, _ = random_set(crowds=0)
    found = [*perfect(data), *[prediction(1, 77, (0, 0, 9, 9), 1.0)] * 3]
    evaluation = evaluate(tmp_path, data, found)
    assert evaluation["unknown_category_ids"] == {"77": 3}
    assert evaluation["overall"]["joint"]["AP"] == pytest.approx(100)


def test_an_empty_file_is_a_detector_that_finds_nothing(tmp_path):
    evaluation = evaluate(tmp_path, random_set()[0], [])
    assert evaluation["overall"]["joint"]["AP"] == 0
    assert "no detections" in evaluation["diagnosis"]


def test_names_of_images_lead_nowhere(tmp_path):
    """No image is read."""
    data = coco_set([(1, 1, (0, 0, 9, 9))])
    data["images"][0]["file_name"] = "../../elsewhere/1.jpg"
    data["images"][1]["file_name"] = "/elsewhere/2.jpg"
    assert evaluate(tmp_path, data, perfect(data))["overall"]["joint"]["AP"] == pytest.approx(100)


GOOD = prediction(1, 1, (0, 0, 9, 9), 0.9)


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ("[{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        (
            {"annotations": [GOOD]},
            "is a data set in COCO format.* by .*train_net.py --eval-only",
        ),
        ({"found": [GOOD]}, "must be a list of predictions"),
        ([GOOD, 7], "entry 1 is not a mapping"),
        ([{**GOOD, "score": None}], "entry 0 has the score None"),
        ([{k: v for k, v in GOOD.items() if k != "score"}], "entry 0 has no 'score'"),
        ([{**GOOD, "category_id": "class 1"}], "category_id 'class 1', which must be a whole"),
        ([{**GOOD, "category_id": True}], "category_id True"),
        ([{**GOOD, "category_id": 2**70}], "category_id 1180591620717411303424"),
        ([{**GOOD, "image_id": "1"}], "image_id '1', which must be a whole number"),
        ([{**GOOD, "bbox": [1, 2, 3]}], r"bbox \[1, 2, 3\], which must be four finite numbers"),
        ([{**GOOD, "bbox": [1, 2, 3, "4"]}], "four finite numbers"),
        ('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, NaN, 9], "score": 1}]', "four finite"),
        ([{**GOOD, "bbox": [0, 0, 10**400, 9]}], "four finite numbers"),
        ([{**GOOD, "score": 1e300}], "finite number"),
        (
            [GOOD, {**GOOD, "image_id": 17}, {**GOOD, "image_id": 17}],
            "2 of 3 predictions are of images that the annotations lack, such as image_id 17",
        ),
    ],
)
def test_what_is_no_prediction_is_named(predictions, message, tmp_path):
    with pytest.raises(ValueError, match=rf"found\.json.*{message}"):
        evaluate(tmp_path, coco_set([(1, 1, (0, 0, 9, 9))]), predictions)


def test_broken_or_secret_annotations_are_named(tmp_path):
    with pytest.raises(ValueError, match=re.escape("truth.json")):
        evaluate(tmp_path, {"images": []}, [])
    data = coco_set([])
    del data["annotations"]
    with pytest.raises(ValueError, match="no 'annotations'"):
        evaluate(tmp_path, data, [])
    with pytest.raises(OSError, match=re.escape("nowhere.json")):
        evaluate_predictions(tmp_path / "nowhere.json", tmp_path / "nowhere.json")


def test_all_files_are_written(tmp_path):
    data, predictions = random_set()
    evaluation = evaluate(tmp_path, data, predictions, output_dir=tmp_path / "a" / "b")
    assert json.loads((tmp_path / "a/b/evaluation.json").read_text()) == evaluation
    assert (tmp_path / "a/b/pr_curves.png").stat().st_size > 1000


def test_files_may_begin_with_a_byte_order_mark(tmp_path):
    data = coco_set([(1, 1, (0, 0, 20, 20))], category_ids=(1,))
    marked = [f"\ufeff{json.dumps(content)}" for content in (data, perfect(data))]
    assert evaluate(tmp_path, *marked)["overall"]["joint"]["AP"] == pytest.approx(100)
