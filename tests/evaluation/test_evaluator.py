import contextlib
import io
import json
import logging
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from toy_sets import coco_set, perfect, prediction, random_set

from fsaf_d2.evaluation import BoxEvaluator
from fsaf_d2.evaluation.figure_tables import evaluation_text

LEVELS = ["p3", "p4", "p5"]


@pytest.fixture
def register(tmp_path):
    """Registers a data set in COCO's form and forgets it at the end."""
    names = []

    def register(data: dict, name: str = "toy_val") -> str:
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(data))
        register_coco_instances(name, {}, str(file), str(tmp_path))
        with contextlib.suppress(KeyError):  # test images have no annotations to load
            DatasetCatalog.get(name)
        ids = sorted(x["id"] for x in data["categories"])
        MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id = {
            category_id: k for k, category_id in enumerate(ids)
        }
        MetadataCatalog.get(name).thing_classes = [f"class {i}" for i in ids]
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def instances(data: dict, found: list[dict], *, with_source: bool = True) -> Instances:
    """What a detector gives for one image."""
    ids = sorted(x["id"] for x in data["categories"])
    result = Instances((100, 200))
    boxes = torch.tensor([x["bbox"] for x in found]).reshape(-1, 4)
    result.pred_boxes = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
    result.scores = torch.tensor([x["score"] for x in found])
    classes = [ids.index(x["category_id"]) for x in found]
    result.pred_classes = torch.tensor(classes, dtype=torch.int64)
    if with_source:
        result.pred_levels = torch.arange(len(found)) % len(LEVELS)
        result.pred_branches = torch.arange(len(found)) % 2
    return result


def run(evaluator, data: dict, *predictions: list[dict], **options) -> dict:
    """Evaluate the joint detections and, if given, those of the two branches."""
    evaluator.reset()
    for image in data["images"]:
        outputs = {
            name: instances(data, [x for x in found if x["image_id"] == image["id"]], **options)
            for name, found in zip(("instances", "anchor_branch", "point_branch"), predictions)
        }
        pixels = torch.zeros(3, 50, 100)
        evaluator.process([{"image_id": image["id"], "image": pixels}], [outputs])
    return evaluator.evaluate()


def detectron2s(name: str, data: dict, predictions: list[dict], max_detections: int = 100) -> dict:
    """The results of detectron2's own evaluator."""
    evaluator = COCOEvaluator(
        name, tasks=("bbox",), use_fast_impl=False, max_dets_per_image=max_detections
    )
    with contextlib.redirect_stdout(io.StringIO()):
        return run(evaluator, data, predictions)["bbox"]


def same(one: dict, other: dict) -> bool:
    """Equal to the last bit, with NaN equal to NaN."""
    return list(one) == list(other) and all(
        value == other[key] or (math.isnan(value) and math.isnan(other[key]))
        for key, value in one.items()
    )


def read(folder) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


@pytest.mark.parametrize("max_detections", [12, 100, 375])
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"category_ids": (4,)},
        {"category_ids": tuple(range(1, 30)), "most": 3},
        {"category_ids": (1,), "most": 120, "num_images": 2},
        {"crowds": 1.0},
    ],
    ids=["plain", "one class", "classes without objects", "more than 100", "nothing but crowds"],
)
def test_equals_detectron2s_to_the_last_bit(case, max_detections, register):
    data, predictions = random_set(3, **case)
    name = register(data)
    results = run(BoxEvaluator(name, max_detections=max_detections), data, predictions)
    assert set(results) == {"bbox"}
    assert same(results["bbox"], detectron2s(name, data, predictions, max_detections))


def test_without_any_detection_equals_detectron2s(register, tmp_path):
    data, _ = random_set()
    name = register(data)
    results = run(BoxEvaluator(name, tmp_path / "out"), data, [])
    assert same(results["bbox"], detectron2s(name, data, []))
    assert all(math.isnan(value) for value in results["bbox"].values())
    evaluation = read(tmp_path / "out")
    assert evaluation["overall"]["joint"]["AP"] == 0 and evaluation["max_score"] == 0
    assert "no detections" in evaluation["diagnosis"]


def test_branches_are_evaluated_beside(register, tmp_path):
    data, predictions = random_set()
    name = register(data)
    parts = predictions, predictions[::2], predictions[1::2]
    results = run(BoxEvaluator(name, tmp_path, level_names=LEVELS), data, *parts)
    assert list(results) == ["bbox", "anchor_branch", "point_branch"]
    overall = read(tmp_path)["overall"]
    for key, found in zip(results, parts):
        alone = run(BoxEvaluator(name), data, found)["bbox"]
        assert alone.items() >= results[key].items()
        assert overall["joint" if key == "bbox" else key]["AP50"] == results[key]["AP50"]


def test_three_branches_are_evaluated_beside_and_named(register, tmp_path):
    data, predictions = random_set()
    name = register(data)
    branches = ["anchor", "fcos", "point"]
    evaluator = BoxEvaluator(name, tmp_path, level_names=LEVELS, branch_names=branches)
    evaluator.reset()
    for image in data["images"]:
        of_image = [x for x in predictions if x["image_id"] == image["id"]]
        found = instances(data, of_image)
        found.pred_branches = torch.arange(len(found)) % 3
        alone = {f"{x}_branch": found[found.pred_branches == i] for i, x in enumerate(branches)}
        evaluator.process([{"image_id": image["id"]}], [{"instances": found, **alone}])
    results = evaluator.evaluate()
    assert list(results) == ["bbox", "anchor_branch", "fcos_branch", "point_branch"]
    evaluation = read(tmp_path)
    assert list(evaluation["overall"]) == ["joint", *list(results)[1:]]
    text = evaluation_text(evaluation)
    for row in ("all branches", *(f"{x} branch alone" for x in branches)):
        assert f"| {row} " in text
    saved = json.loads((tmp_path / "predictions.json").read_text())
    assert {x["branch"] for x in saved} == {*branches}


def test_the_key_of_too_few_classes_is_the_detectors(register):
    data, predictions = random_set()
    keys = ("MODEL.ROI_HEADS.NUM_CLASSES",)
    evaluator = BoxEvaluator(register(data), class_keys=keys)
    evaluator.reset()
    found = instances(data, predictions[:1])
    found.pred_classes[:] = 79
    evaluator.process([{"image_id": predictions[0]["image_id"]}], [{"instances": found}])
    with pytest.raises(ValueError, match=r"3 classes: set MODEL\.ROI_HEADS\.NUM_CLASSES to it"):
        evaluator.evaluate()


def test_files_and_what_is_in_them(register, tmp_path):
    data, predictions = random_set(most=30, num_images=30)
    name = register(data)
    evaluator = BoxEvaluator(name, tmp_path / "a" / "b", level_names=LEVELS)
    run(evaluator, data, predictions, predictions[::2], predictions[1::2])
    names = {file.name for file in (tmp_path / "a" / "b").iterdir()}
    tables = {"overall.csv", "classes.csv", "levels.csv", "confusion.csv"}
    images = {"pr_curves.png", "confusion.png"}
    assert names == {"evaluation.json", "predictions.json"} | tables | images
    evaluation = read(tmp_path / "a" / "b")
    assert set(evaluation) == {
        *("dataset", "num_images", "num_objects", "num_objects_by_size", "class_names"),
        *("overall", "per_class", "levels", "precision_recall", "confusion"),
        *("misses", "false_alarms", "max_score", "diagnosis", "image_root"),
    }
    assert evaluation["dataset"] == name and evaluation["num_images"] == 30
    objects = [x for x in data["annotations"] if not x["iscrowd"]]
    assert evaluation["num_objects"] == len(objects)
    small = sum(x["area"] <= 32**2 for x in objects)
    assert evaluation["num_objects_by_size"]["small"] == small
    assert evaluation["class_names"] == ["class 3", "class 5", "class 9"]
    assert len(evaluation["misses"]) == len(evaluation["false_alarms"]) == 24
    assert set(evaluation["misses"][0]) == {
        *("image_id", "file_name", "category", "bbox", "best_score")
    }
    worst = evaluation["false_alarms"]
    assert set(worst[0]) == {
        *("image_id", "file_name", "category", "bbox", "score", "level", "branch")
    }
    assert [x["score"] for x in worst] == sorted((x["score"] for x in worst), reverse=True)
    assert {x["level"] for x in worst} <= set(LEVELS)
    curves = evaluation["precision_recall"]
    assert len(curves["recall"]) == len(curves["precision"]["class 3"]) == 101


def test_predictions_are_coco_results_with_level_and_branch(register, tmp_path):
    data, predictions = random_set()
    name = register(data)
    names = {"level_names": LEVELS, "branch_names": ["anchor", "point"]}
    run(BoxEvaluator(name, tmp_path, **names), data, predictions)
    saved = json.loads((tmp_path / "predictions.json").read_text())
    assert len(saved) == len(predictions)
    first = next(x for x in predictions if x["image_id"] == saved[0]["image_id"])
    assert saved[0] | {"bbox": None} == {
        **first,
        "bbox": None,
        "level": "p3",
        "branch": "anchor",
    }
    assert saved[0]["bbox"] == pytest.approx(first["bbox"], abs=1e-3)


def test_detectors_without_levels(register, tmp_path):
    data, predictions = random_set()
    name = register(data)
    run(BoxEvaluator(name, tmp_path), data, predictions, with_source=False)
    assert read(tmp_path)["levels"] == []
    assert read(tmp_path)["false_alarms"][0]["level"] is None
    assert read(tmp_path)["false_alarms"][0]["branch"] is None
    saved = json.loads((tmp_path / "predictions.json").read_text())
    assert not any({"level", "branch"} & x.keys() for x in saved)
    assert "| all detections " in evaluation_text(read(tmp_path))


def test_images_without_annotations_give_predictions_alone(register, tmp_path):
    data, predictions = random_set()
    del data["annotations"]
    name = register(data)
    assert run(BoxEvaluator(name, tmp_path), data, predictions) == {}
    assert [file.name for file in tmp_path.iterdir() if file.name != f"{name}.json"] == [
        "predictions.json"
    ]


def test_no_images_give_nothing(register):
    evaluator = BoxEvaluator(register(random_set()[0]))
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_a_data_set_in_another_format_is_converted(tmp_path):
    records = [
        {
            "file_name": "a.jpg",
            "image_id": 0,
            "height": 100,
            "width": 200,
            "annotations": [
                {"bbox": [10, 10, 60, 50], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
            ],
        }
    ]
    DatasetCatalog.register("toy_dicts", lambda: records)
    MetadataCatalog.get("toy_dicts").thing_classes = ["cat", "dog"]
    try:
        with pytest.raises(ValueError, match="output folder"):
            BoxEvaluator("toy_dicts")
        evaluator = BoxEvaluator("toy_dicts", tmp_path)
        evaluator.reset()
        data = {"categories": [{"id": 0}, {"id": 1}]}
        found = instances(data, [prediction(0, 1, (10, 10, 50, 40), 0.9)])
        evaluator.process([{"image_id": 0}], [{"instances": found}])
        results = evaluator.evaluate()["bbox"]
    finally:
        DatasetCatalog.remove("toy_dicts")
        MetadataCatalog.remove("toy_dicts")
    assert results["AP"] == results["AP-dog"] == pytest.approx(100)
    assert math.isnan(results["AP-cat"])


def test_strangers_are_named(register):
    data, predictions = random_set()
    evaluator = BoxEvaluator(register(data))
    data["images"].append({"id": 99})
    with pytest.raises(ValueError, match="Image 99 was evaluated"):
        run(evaluator, data, predictions)
    data["images"].pop()
    data["categories"].append({"id": 10})
    predictions.append(prediction(1, 10, (0, 0, 9, 9), 0.9))
    with pytest.raises(ValueError, match="class 3, but 'toy_val' has 3 classes"):
        run(evaluator, data, predictions)


def test_categories_that_are_not_the_registered_ones_are_refused(register):
    name = register(random_set()[0])
    MetadataCatalog.get(name).__dict__.pop("thing_dataset_id_to_contiguous_id")
    MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id = {1: 0, 2: 1}
    with pytest.raises(ValueError, match=r"ids 3, 5, 9, but the data set is registered with 1, 2"):
        BoxEvaluator(name)


def test_classes_keep_the_order_in_which_they_are_registered(register, tmp_path):
    data = coco_set([(1, 1, (0, 0, 20, 20)), (1, 2, (50, 0, 20, 20))])
    name = register(data)
    MetadataCatalog.get(name).__dict__.pop("thing_dataset_id_to_contiguous_id")
    MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id = {1: 1, 2: 0}
    data["categories"].reverse()
    found = instances({"categories": [{"id": 1}, {"id": 2}]}, perfect(data))
    found.pred_classes = 1 - found.pred_classes
    evaluator = BoxEvaluator(name, tmp_path)
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    assert read(tmp_path)["class_names"] == ["class 2", "class 1"]


def test_processes_put_together_what_each_has_found(register, monkeypatch, tmp_path):
    """Two processes, one after the other: the first is the main one."""
    data, predictions = random_set()
    name = register(data)
    expected = run(BoxEvaluator(name), data, predictions)
    first, second = ({**data, "images": data["images"][i::2]} for i in range(2))

    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    sent = []
    monkeypatch.setattr(comm, "gather", lambda mine, dst: sent.append(mine) or [])
    assert run(BoxEvaluator(name, tmp_path / "out"), second, predictions) == {}
    assert not (tmp_path / "out").exists()

    monkeypatch.setattr(comm, "is_main_process", lambda: True)
    monkeypatch.setattr(comm, "gather", lambda mine, dst: [mine, *sent])
    assert run(BoxEvaluator(name), first, predictions) == expected


def test_too_low_a_limit_of_detections_is_said(register, caplog):
    data = coco_set([(1, 1, (i, 0, 9, 9)) for i in range(30)])
    with caplog.at_level(logging.WARNING, "detectron2.fsaf_d2.evaluation"):
        logging.getLogger("detectron2").propagate = True
        run(BoxEvaluator(register(data), max_detections=20), data, perfect(data))
    assert "an image with 30 objects" in caplog.text and "DETECTIONS_PER_IMAGE" in caplog.text


def test_boxes_in_the_resized_images_pixels_are_recognised(register, tmp_path):
    """Images of 200 x 100 pixels that the detector saw at 100 x 50."""
    data, _ = random_set(crowds=0)
    halved = [
        {**x, "bbox": [float(np.float32(value / 2)) for value in x["bbox"]]} for x in perfect(data)
    ]
    run(BoxEvaluator(register(data), tmp_path), data, halved)
    diagnosis = read(tmp_path)["diagnosis"]
    assert "scaled to the images' own size it would be 100.0" in diagnosis


def test_results_can_be_flattened_and_printed(register):
    """By detectron2's hook and its print of comma-separated values."""
    from detectron2.evaluation import print_csv_format
    from detectron2.evaluation.testing import flatten_results_dict

    data, predictions = random_set()
    results = run(BoxEvaluator(register(data)), data, predictions, predictions, predictions)
    print_csv_format(OrderedDict(results))
    flat = flatten_results_dict(results)
    assert all(type(value) is float for value in flat.values())
    assert flat["anchor_branch/AP"] == flat["bbox/AP"]
