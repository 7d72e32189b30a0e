"""The trainer's evaluation tells what each branch is worth, from one pass."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import register_coco_instances
from runs import run_cfg

from fsaf_d2.inference.augmented import AugmentedDetector
from fsaf_d2.training import Trainer, compare_augmented

SETTINGS = {"MODEL__RETINANET__SCORE_THRESH_TEST": 0.0, "DATASETS__TEST": "('found_val',)"}
BRANCHES = {"anchor_branch": "ANCHOR_FREE_BRANCH", "point_branch": "ANCHOR_BRANCH"}


def model_of(cfg, state=None) -> torch.nn.Module:
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    if state:
        model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model


@pytest.fixture
def found_val(digits, tmp_path):
    """Two images, whose objects are where a random detector of either branch finds some."""
    records = get_detection_dataset_dicts(["runs_val"], filter_empty=False)
    cfg = run_cfg(tmp_path / "a", **{**SETTINGS, "DATASETS__TEST": "('runs_val',)"})
    state, annotations = model_of(cfg).state_dict(), []
    for switch in BRANCHES.values():
        single = run_cfg(tmp_path / "b", **SETTINGS, **{f"MODEL__FSAF__{switch}": False})
        model = model_of(single, state).eval()
        for inputs in Trainer.build_test_loader(cfg, "runs_val"):
            with torch.no_grad():
                found = model(inputs)[0]["instances"][::4]
            for box, category in zip(found.pred_boxes.tensor.tolist(), found.pred_classes.tolist()):
                width, height = box[2] - box[0], box[3] - box[1]
                annotations.append(
                    {
                        **{"id": len(annotations) + 1, "image_id": inputs[0]["image_id"]},
                        **{"category_id": category, "bbox": [*box[:2], width, height]},
                        **{"area": width * height, "iscrowd": 0},
                    }
                )
    data = {
        "images": [
            {
                "id": record["image_id"],
                "file_name": record["file_name"],
                "height": record["height"],
                "width": record["width"],
            }
            for record in records
        ],
        "categories": [{"id": k, "name": f"class {k}"} for k in range(10)],
        "annotations": annotations,
    }
    file = tmp_path / "found.json"
    file.write_text(json.dumps(data))
    register_coco_instances("found_val", {}, str(file), "")
    yield state
    DatasetCatalog.remove("found_val")
    MetadataCatalog.remove("found_val")


def test_the_ablation_from_one_pass_equals_separate_evaluations(found_val, tmp_path):
    cfg = run_cfg(tmp_path / "joint", **SETTINGS)
    model, passes = model_of(cfg, found_val), []
    model.backbone.register_forward_hook(lambda *_: passes.append(1))
    results = Trainer.test(cfg, model)
    assert list(results) == ["bbox", *BRANCHES]
    assert len(passes) == 2 and not model.detects_each_branch
    for name, switch in BRANCHES.items():
        folder = tmp_path / name
        single = run_cfg(folder, **SETTINGS, **{f"MODEL__FSAF__{switch}": False})
        alone = Trainer.test(single, model_of(single, found_val))
        assert list(alone) == ["bbox"]
        both = (
            {key: x[key] for key in ("AP", "AP50", "AP75")} for x in (alone["bbox"], results[name])
        )
        one, other = both
        assert one == other and 0 < one["AP"] < 100
    saved = json.loads((tmp_path / "joint/inference/found_val/evaluation.json").read_text())
    assert saved["overall"]["joint"]["AP"] == results["bbox"]["AP"]
    assert [level["name"] for level in saved["levels"]] == ["p3", "p4", "p5", "p6", "p7"]
    assert sum(level["num_detections"] for level in saved["levels"]) == 200


def test_the_limit_of_detections_is_the_evaluators(found_val, tmp_path):
    """More than 100 in an image count."""
    cfg = run_cfg(tmp_path / "many", **SETTINGS, TEST__DETECTIONS_PER_IMAGE=150)
    Trainer.test(cfg, model_of(cfg, found_val))
    saved = json.loads((tmp_path / "many/inference/found_val/evaluation.json").read_text())
    assert sum(level["num_detections"] for level in saved["levels"]) == 300


def test_ap_and_time_without_and_with_augmentation_are_printed(found_val, tmp_path, caplog):
    keys = {"TEST__AUG__MIN_SIZES": "(128,)", "TEST__AUG__FLIP": True}
    cfg = run_cfg(tmp_path / "both", **SETTINGS, **keys)
    model = AugmentedDetector(cfg, model_of(cfg, found_val))
    with caplog.at_level("INFO", "detectron2.fsaf_d2.training"):
        results = compare_augmented(Trainer, cfg, model)
    assert list(results) == ["bbox", *BRANCHES, "bbox_TTA", *(f"{name}_TTA" for name in BRANCHES)]
    said = [x.getMessage() for x in caplog.records if getattr(x, "for_terminal", False)]
    assert "2 views of each image: short side 128 px" in said[0]
    assert "2 images about 0.0 minutes" in said[1] and len(said) == 2
    table = next(text for text in caplog.messages if text.startswith("Without and with"))
    assert results["bbox"]["AP"] == Trainer.test(cfg, model.model)["bbox"]["AP"]
    assert results["bbox_TTA"]["AP"] != results["bbox"]["AP"]
    once, views = table.splitlines()[-2:]
    assert once.split()[:2] == ["found_val", "once"]
    assert views.split()[:4] == ["found_val", "in", "2", "views"]
    for line, name in ((once, "bbox"), (views, "bbox_TTA")):
        assert line.split()[-7] == f"{results[name]['AP']:.2f}" and float(line.split()[-1]) > 0
    folder = tmp_path / "both/test_time_augmentation/inference/found_val"
    assert (folder / "evaluation.json").exists()
