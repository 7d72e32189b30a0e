"""detectron2's own detectors, and those of other branches than two, are used as all are."""

import csv
import json
import subprocess
import sys

import cv2
import pytest
import torch
from formats import CLASSES, write_coco
from models import ROOT
from predictions import MORE, NAMES, photo, tiny_run
from runs import OVERRIDES

from fsaf_d2 import load_detector
from fsaf_d2.detectors.building import build_detector
from fsaf_d2.export.writing import write_program
from fsaf_d2.prediction import find_inputs, predict

RCNN = {
    "MODEL__META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL__ROI_HEADS__NAME": "StandardROIHeads",
    "MODEL__ROI_HEADS__IN_FEATURES": "['p3', 'p4', 'p5']",
    "MODEL__ROI_HEADS__NUM_CLASSES": 3,
    "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0,
    "MODEL__ROI_BOX_HEAD__NAME": "FastRCNNConvFCHead",
    "MODEL__ROI_BOX_HEAD__NUM_FC": 1,
    "MODEL__ROI_BOX_HEAD__FC_DIM": 16,
    "MODEL__ROI_BOX_HEAD__POOLER_RESOLUTION": 3,
    "MODEL__RPN__IN_FEATURES": "['p3', 'p4', 'p5', 'p6', 'p7']",
    "MODEL__RPN__POST_NMS_TOPK_TEST": 20,
}
EVERYTHING = {"MODEL__RETINANET__SCORE_THRESH_TEST": 0.0}
RETINANET = {"MODEL__META_ARCHITECTURE": "RetinaNet", **EVERYTHING}
BRANCHES = ["anchor", "fcos", "point"]
THREE = {"MODEL__META_ARCHITECTURE": "OneStageDetector", "MODEL__BRANCHES": BRANCHES, **EVERYTHING}
LEVELS = ["p3", "p4", "p5", "p6", "p7"]
THEIRS = pytest.mark.parametrize("overrides", [RETINANET, RCNN], ids=["retinanet", "faster_rcnn"])


def checkpoint(folder, overrides, **entries):
    """As a training writes it."""
    torch.manual_seed(0)
    cfg = tiny_run(folder, **overrides)
    model = build_detector(cfg)
    content = {"model": model.state_dict(), "config": cfg.dump(), "class_names": NAMES, **MORE}
    torch.save({**content, **entries}, folder / "model_final.pth")
    return folder / "model_final.pth", model.eval()


def predicted(folder, weights):
    (folder / "in").mkdir()
    for i in range(2):
        cv2.imwrite(str(folder / f"in/{i}.jpg"), photo(seed=i))
    detector = load_detector(weights, device="cpu")
    inputs = find_inputs([str(folder / "in")])
    save = ("pictures", "json", "csv", "yolo")
    summary = predict(detector, inputs, folder / "out", save=save, min_score=0)
    assert summary.complete and summary.num_detections > 0
    assert len(list((folder / "out/pictures").iterdir())) == 2
    found = json.loads((folder / "out/predictions.json").read_text())["annotations"]
    with open(folder / "out/predictions.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(found) == len(lines) == summary.num_detections
    return detector, found, lines


@THEIRS
def test_detectron2s_detectors_are_used_without_levels_and_branches(tmp_path, overrides):
    weights, model = checkpoint(tmp_path, overrides)
    detector, found, lines = predicted(tmp_path, weights)
    assert detector.class_names == NAMES and detector.category_ids == [3, 7, 20]
    assert detector.level_names == detector.branch_names == []
    assert not any({"level", "branch"} & x.keys() for x in found)
    assert {x["level"] + x["branch"] for x in lines} == {""}
    image = photo()
    (prepared,) = [detector.prepare(image)]
    with torch.no_grad():
        inputs = {"image": prepared.resized, "height": image.shape[0], "width": image.shape[1]}
        expected = model([inputs])[0]["instances"]
    assert torch.equal(detector(image, min_score=0).scores, expected.scores)


@THEIRS
def test_detectron2s_detectors_are_not_exported(tmp_path, overrides):
    weights, _ = checkpoint(tmp_path, overrides)
    name = overrides["MODEL__META_ARCHITECTURE"]
    with pytest.raises(ValueError, match=rf"detectron2's {name} .*has no suppression") as error:
        write_program(load_detector(weights, device="cpu"), tmp_path / "a.onnx", "onnx")
    assert "\n" not in str(error.value) and not (tmp_path / "a.onnx").exists()


def test_three_branches_are_told_apart(tmp_path):
    weights, _ = checkpoint(tmp_path, THREE)
    detector, found, lines = predicted(tmp_path, weights)
    assert detector.branch_names == BRANCHES and detector.level_names == LEVELS
    assert {x["branch"] for x in found} == {x["branch"] for x in lines} <= {*BRANCHES}
    assert {x["level"] for x in found} <= {*LEVELS}
    instances = detector(photo(), min_score=0)
    assert [BRANCHES[i] for i in instances.pred_branches] == [
        x["branch"] for x in found if x["image_id"] == 1
    ]


@pytest.mark.parametrize("overrides", [THREE, RCNN], ids=["three", "faster_rcnn"])
def test_the_number_of_classes_is_that_of_the_detectors_own_key(tmp_path, overrides):
    weights, _ = checkpoint(tmp_path, overrides, class_names=["a", "b"])
    key = "ROI_HEADS" if overrides is RCNN else "RETINANET"
    words = rf"2 class names .* has 3 classes \(MODEL\.{key}\.NUM_CLASSES\)"
    with pytest.raises(ValueError, match=words):
        load_detector(weights, device="cpu")


@pytest.mark.slow
def test_faster_rcnn_goes_from_own_data_to_predictions_by_commands(tmp_path):
    def run(*words):
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)

    own, output = write_coco(tmp_path / "own"), tmp_path / "out"
    of_data = ("DATASETS.TRAIN", "DATASETS.TEST", "MODEL.ROI_HEADS.NUM_CLASSES")
    of_others = ("MODEL.RETINANET", "MODEL.FSAF")
    values = {**OVERRIDES, **{key.replace("__", "."): value for key, value in RCNN.items()}}
    values = {k: v for k, v in values.items() if k not in of_data and not k.startswith(of_others)}
    values.update({"OUTPUT_DIR": output, "SOLVER.MAX_ITER": 2})
    keys = [str(word) for pair in values.items() for word in pair]
    config = ROOT / "configs/Base-FSAF-small.yaml"
    data = ("--train-data", own, "--val-data", own)
    result = run("train_net.py", "--config-file", config, *data, *keys)
    assert result.returncode == 0, result.stderr
    assert "MODEL.ROI_HEADS.NUM_CLASSES: 80 -> 3, as in data set 'own_train'." in result.stdout
    weights = output / "model_final.pth"
    command = (
        "--weights",
        weights,
        "--recursive",
        "--input",
        own / "images",
        "--output",
        tmp_path / "found",
    )
    result = run("tools/predict.py", *command, "--min-score", "0")
    assert result.returncode == 0, result.stderr
    assert load_detector(weights).class_names == [*CLASSES]
    data = json.loads((tmp_path / "found/predictions.json").read_text())
    assert [x["name"] for x in data["categories"]] == [*CLASSES] and data["annotations"]
    result = run("tools/export.py", "--weights", weights, "--format", "onnx")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "detectron2's GeneralizedRCNN cannot be exported" in result.stderr
    augmented = ("MODEL.WEIGHTS", weights, "TEST.AUG.ENABLED", "True", "OUTPUT_DIR", tmp_path / "e")
    evaluation = ("--eval-only", "--val-data", own, *keys, *augmented)
    result = run("train_net.py", "--config-file", config, *evaluation)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "TEST.AUG.ENABLED must be False for detectron2's GeneralizedRCNN" in result.stderr
