"""A detector comes from its checkpoint alone, and nothing in it is taken for granted."""

import json
import pickle

import cv2
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultPredictor
from models import ROOT
from predictions import MORE, NAMES, content_of, photo, tiny_run

import fsaf_d2
from fsaf_d2 import load_config, load_detector
from fsaf_d2.data.loading.mapper import build_mapper
from fsaf_d2.training import Trainer

AS_DETECTRON2 = ["MODEL.CHANNELS_LAST", "False"]
FIELDS = ("pred_classes", "scores", "pred_levels", "pred_branches")


def same(one, other) -> bool:
    return torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor) and all(
        torch.equal(one.get(field), other.get(field)) for field in FIELDS
    )


@pytest.fixture
def dataset(tmp_path):
    """Three images of different shapes, one of them turned by its EXIF orientation."""
    images = []
    for index, (height, width) in enumerate([(90, 120), (120, 80), (61, 200)]):
        file = tmp_path / f"{index}.jpg"
        cv2.imwrite(str(file), photo(height, width, index))
        if index == 1:
            exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
            data = file.read_bytes()
            size = (len(exif) + 2).to_bytes(2, "big")
            file.write_bytes(data[:2] + b"\xff\xe1" + size + exif + data[2:])
            height, width = width, height
        images.append({"id": index, "file_name": file.name, "height": height, "width": width})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    data = {"images": images, "annotations": [], "categories": categories}
    (tmp_path / "own.json").write_text(json.dumps(data))
    register_coco_instances("to_predict", {}, str(tmp_path / "own.json"), str(tmp_path))
    yield tmp_path
    DatasetCatalog.remove("to_predict")
    MetadataCatalog.remove("to_predict")


def test_finds_what_evaluation_finds(save, content, dataset):
    cfg = tiny_run(dataset)
    model = Trainer.build_model(cfg).eval()
    model.load_state_dict(content["model"])
    detector = load_detector(save(), device="cpu")
    count = 0
    for inputs in Trainer.build_test_loader(cfg, "to_predict"):
        with torch.no_grad():
            expected = model(inputs)[0]["instances"]
        found = detector(inputs[0]["file_name"], min_score=0)
        assert found.image_size == expected.image_size == (inputs[0]["height"], inputs[0]["width"])
        assert len(found) > 20 and same(found, expected)
        count += 1
    assert count == 3


def test_equals_detectron2s_predictor(save, content, tmp_path):
    cfg = tiny_run(tmp_path, MODEL__WEIGHTS=str(save()), DATASETS__TEST="()")
    image = photo(200, 160)
    # An image that becomes smaller: both resize it with Pillow.
    expected = DefaultPredictor(cfg)(image)["instances"]
    detector = load_detector(save(), overrides=AS_DETECTRON2, device="cpu")
    assert same(detector(image, min_score=0), expected)


def test_is_offered_by_the_package(weights):
    assert fsaf_d2.load_detector is load_detector
    with pytest.raises(AttributeError, match="no attribute 'load_nothing'"):
        fsaf_d2.load_nothing  # noqa: B018


def test_the_checkpoint_says_all(detector):
    assert detector.class_names == NAMES and detector.category_ids == [3, 7, 20]
    assert detector.thresholds.tolist() == pytest.approx([0.35, 0.4, 0.5])
    assert detector.level_names == ["p3", "p4", "p5", "p6", "p7"]
    assert detector.notes == []


def test_what_it_does_not_say_is_assumed_and_said(save):
    detector = load_detector(save(class_names=None), device="cpu")
    assert detector.class_names == ["0", "1", "2"] and detector.category_ids == [1, 2, 3]
    assert detector.thresholds.tolist() == [0.5, 0.5, 0.5]
    names, ids, threshold = detector.notes
    assert "does not name its classes" in names and "called 0 to 2" in names
    assert "ids of its categories" in ids and "1 to 3" in ids
    assert "no score threshold: 0.5" in threshold


def test_a_class_without_threshold_is_named(save):
    detector = load_detector(save(**{**MORE, "thresholds": {"dog": 0.25}}), device="cpu")
    assert detector.thresholds.tolist() == [0.5, 0.25, 0.5]
    assert len(detector.notes) == 1 and "for cat, bird" in detector.notes[0]


def test_other_names_keep_the_thresholds(save):
    detector = load_detector(save(**MORE), class_names=["Katze", "Hund", "Vogel"], device="cpu")
    assert detector.class_names == ["Katze", "Hund", "Vogel"] and detector.notes == []
    assert detector.thresholds.tolist() == pytest.approx([0.35, 0.4, 0.5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ["cat", "dog"]}, r"2 class names \(cat, dog\).* 3 classes"),
        ({"class_names": ["cat", "dog", 3]}, "class_names must be 1 to 65536 texts"),
        ({"class_names": ["cat", "dog", "x" * 201]}, "class_names .*200 letters"),
        ({"category_ids": [1, 2]}, "category_ids must be 3, as the classes, not 2"),
        ({"category_ids": [1, 2, 2]}, "category_ids must be different whole numbers"),
        ({"category_ids": [1, 2, True]}, "category_ids must be different whole numbers"),
        ({"category_ids": {1: 1, 2: 2, 3: 3}}, "category_ids must be different whole numbers"),
        ({"thresholds": [0.5, 0.5, 0.5]}, "thresholds must be a number from 0 to 1"),
        ({"thresholds": {"cat": float("nan")}}, "thresholds must be a number from 0 to 1"),
        ({"thresholds": {"cat": "0.5"}}, "thresholds must be a number from 0 to 1"),
        ({"input_format": "RGB"}, "images in 'RGB', but INPUT.FORMAT is 'BGR'"),
        ({"config": 3}, "config must be a text .*, not 3"),
        ({"config": None}, r"does not hold the config.*--config-file.*--class-names"),
    ],
)
def test_contradictions_are_errors(save, changes, message):
    with pytest.raises(ValueError, match=rf"(?s)model_final\.pth.*{message}|{message}") as error:
        load_detector(save(**changes))
    assert "model_final.pth" in str(error.value)


def test_control_characters_do_not_reach_the_terminal(save):
    names = ["cat\r", "\x1b[31mdog", "bird\nfish"]
    detector = load_detector(save(class_names=names), device="cpu")
    assert detector.class_names == ["cat?", "?[31mdog", "bird?fish"]


def test_weights_without_a_config_take_one(save, tmp_path, content):
    config = tmp_path / "config.yaml"
    config.write_text(content["config"])
    plain = tmp_path / "plain.pth"
    torch.save(content["model"], plain)
    with pytest.raises(ValueError, match="--config-file"):
        load_detector(plain)
    detector = load_detector(plain, config_file=config, class_names=NAMES, device="cpu")
    image = photo()
    assert same(detector(image, min_score=0), load_detector(save())(image, min_score=0))


def test_overrides_come_last(save):
    detector = load_detector(save(), overrides=["TEST.DETECTIONS_PER_IMAGE", "4"], device="cpu")
    assert len(detector(photo(), min_score=0)) == 4
    with pytest.raises(ValueError, match=r"INPUT\.MIN_SIZE_TES\b.*Did you mean"):
        load_detector(save(), overrides=["INPUT.MIN_SIZE_TES", "4"])


def test_names_and_ids_of_known_data_sets(tmp_path):
    """For weights of detectron2's model zoo: COCO's 80 classes, whose ids go to 90."""
    content = content_of(tmp_path, MODEL__RETINANET__NUM_CLASSES=80)
    config, weights = tmp_path / "config.yaml", tmp_path / "weights.pth"
    config.write_text(content["config"].replace("runs_train", "coco_2017_train"))
    torch.save(content["model"], weights)
    detector = load_detector(weights, config_file=config, device="cpu")
    assert detector.class_names[-1] == "toothbrush" and detector.category_ids[-1] == 90
    # Not for a config in a checkpoint, which anybody may have written.
    torch.save({**content, "config": config.read_text(), "class_names": []}, weights)
    assert load_detector(weights, device="cpu").class_names[-1] == "79"


def test_detectron2s_retinanet(tmp_path):
    """A file as of the model zoo: arrays in a pickle, the anchor branch alone."""
    words = ["MODEL.META_ARCHITECTURE", "RetinaNet"]
    cfg = tiny_run(tmp_path)
    cfg.merge_from_list(words)
    model = build_and_wake(cfg)
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    weights, config = tmp_path / "model.pkl", tmp_path / "config.yaml"
    weights.write_bytes(pickle.dumps({"model": arrays, "__author__": "zoo"}))
    config.write_text(tiny_run(tmp_path).dump())
    options = {"config_file": config, "class_names": NAMES, "device": "cpu"}
    off = ["MODEL.BRANCHES", "['anchor']"]
    words = r"MODEL\.BRANCHES \"\['anchor'\]\" evaluates.*configs/zoo/retinanet_"
    with pytest.raises(ValueError, match=words):
        load_detector(weights, **options)
    found = load_detector(weights, overrides=off + AS_DETECTRON2, **options)(
        photo(200, 160), min_score=0
    )
    cfg.merge_from_list(["DATASETS.TEST", "()", "MODEL.WEIGHTS", str(weights)])
    expected = DefaultPredictor(cfg)(photo(200, 160))["instances"]
    assert len(found) > 20 and torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert not found.pred_branches.any()
    # detectron2's own detector takes the same file, and does not tell levels and branches.
    config.write_text(cfg.dump())
    detector = load_detector(weights, overrides=AS_DETECTRON2, **options)
    found = detector(photo(200, 160), min_score=0)
    assert torch.equal(found.scores, expected.scores)
    assert detector.level_names == detector.branch_names == []


def build_and_wake(cfg):
    from detectron2.modeling import build_model

    torch.manual_seed(0)
    model = build_model(cfg)
    model.head.cls_score.weight.data.mul_(40)
    model.head.cls_score.bias.data.fill_(-2)
    return model


def test_weights_that_do_not_fit_are_refused(save, content):
    model = dict(content["model"])
    model.pop("backbone.fpn_lateral3.weight")
    with pytest.raises(ValueError, match=r"1 weights are missing \(backbone\.fpn_lateral3"):
        load_detector(save(model=model))
    words = ["MODEL.RETINANET.NUM_CLASSES", "4"]
    with pytest.raises(ValueError, match=r"have another shape.*cls_score.*classes"):
        load_detector(save(class_names=["a", "b", "c", "d"]), overrides=words)
    detector = load_detector(save(), overrides=["MODEL.FSAF.ANCHOR_FREE_BRANCH", "False"])
    assert any("4 weights of" in note and "are not used" in note for note in detector.notes)


def test_settings_of_the_training_do_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler")
    content = content_of(tmp_path)
    cfg = tiny_run(tmp_path, MODEL__DEVICE="cuda", SOLVER__AMP__ENABLED=True)
    cfg.MODEL.COMPILE = cfg.SOLVER.BFLOAT16 = True
    cfg.MODEL.WEIGHTS = "https://example.com/net.pth"
    # Of another version of detectron2.
    text = cfg.dump().replace("SOLVER:", "SOLVER:\n  OF_ANOTHER_VERSION: 3\n  X: {Y: [a]}")
    text = text.replace("  ROI_BOX_HEAD:", "  ROI_BOX_HEAD:\n    OF_ANOTHER_VERSION: 3")
    assert text.count("OF_ANOTHER_VERSION") == 2
    torch.save({**content, "config": text}, tmp_path / "model.pth")
    detector = load_detector(tmp_path / "model.pth")
    assert detector.model.device.type == "cpu" and len(detector(photo(), min_score=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "no GPU is found"),
        ({"overrides": ["MODEL.DEVICE", "cuda"]}, "no GPU is found"),
        ({"device": "abacus"}, "'abacus' is not known"),
    ],
)
def test_a_device_that_is_not_there_is_an_error(save, monkeypatch, options, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        load_detector(save(), **options)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth' do not exist"):
        load_detector(tmp_path / "none.pth")
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04" + bytes(99))
    with pytest.raises(ValueError, match=r"broken\.pth' is no whole checkpoint"):
        load_detector(tmp_path / "broken.pth")


def test_code_in_weights_is_not_run(tmp_path, capsys):
    marker, file = tmp_path / "marker", tmp_path / "weights.pkl"

    class Folder:
        def __reduce__(self):
            import os

            return os.mkdir, (str(marker),)

    file.write_bytes(pickle.dumps({"model": {"x": Folder()}, "__author__": "x"}))
    config = ROOT / "configs" / "demo" / "digits.yaml"
    with pytest.raises(ValueError, match="--trust-weights"):
        load_detector(file, config_file=config)
    assert not marker.exists()
    with pytest.raises(ValueError, match=r"weights\.pkl"):
        load_detector(file, config_file=config, trust=True)
    assert marker.exists() and "code in" in capsys.readouterr().out


def test_nothing_but_the_safe_checkpointer_reads_weights(weights, monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(DetectionCheckpointer, "_load_file", refuse)
    assert load_detector(weights).class_names == NAMES


def test_the_demos_config_is_enough_for_weights_without_names(tmp_path):
    cfg = load_config(ROOT / "configs" / "demo" / "digits.yaml", ["MODEL.DEVICE", "cpu"])
    torch.save(Trainer.build_model(cfg).state_dict(), tmp_path / "digits.pth")
    detector = load_detector(
        tmp_path / "digits.pth", config_file=ROOT / "configs" / "demo" / "digits.yaml"
    )
    assert detector.class_names == list("0123456789")
    assert len(detector(np.zeros((50, 40, 3), np.uint8))) == 0


@pytest.mark.parametrize("method", ["auto", "pillow", "opencv"])
@pytest.mark.parametrize("side", [40, 300])
def test_images_are_resized_as_in_evaluation(save, tmp_path, method, side):
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    keys = ["INPUT.RESIZE", method, "INPUT.MIN_SIZE_TEST", str(side)]
    detector = load_detector(save(), device="cpu", overrides=keys)
    cfg = load_config(ROOT / "configs/demo/digits.yaml", [*keys, "INPUT.MAX_SIZE_TEST", "9999"])
    cfg.INPUT.MAX_SIZE_TEST = detector.max_side
    entry = {"file_name": str(tmp_path / "a.png"), "height": 120, "width": 160, "image_id": 1}
    expected = build_mapper(cfg, is_train=False)(entry)["image"]
    assert torch.equal(detector.prepare(tmp_path / "a.png").resized, expected)
    assert detector.resize == method
