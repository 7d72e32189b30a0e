"""The config in a checkpoint is text from whoever made the checkpoint."""

import os

import pytest
import torch
import yaml
from models import tiny_cfg

from fsaf_d2 import load_config, load_detector
from fsaf_d2.config import load_stored_config

HARMFUL = {
    "apply": "!!python/object/apply:os.mkdir ['{marker}']",
    "eval": '!!python/object/apply:eval [\'__import__("os").mkdir("{marker}")\']',
    "long name": "!<tag:yaml.org,2002:python/object/apply:os.mkdir> ['{marker}']",
    "as a key": "{{? !!python/object/apply:os.mkdir ['{marker}'] : 1}}",
    "name": "!!python/name:os.system",
    "own tag": "!mine 3",
}


@pytest.mark.parametrize("section", ["MODEL", "SOLVER", "SEED"])
@pytest.mark.parametrize("kind", HARMFUL)
def test_tags_are_refused_wherever_they_stand(tmp_path, kind, section):
    text = HARMFUL[kind].format(marker=tmp_path / "marker")
    with pytest.raises(ValueError, match=r"config in 'a\.pth' is refused: it is not plain YAML"):
        load_stored_config(f"{section}: {text}\n", "a.pth")
    assert os.listdir(tmp_path) == []


LAUGHS = ["a0: &a0 [lol]"]
LAUGHS += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 40)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n".join(LAUGHS), "unfolds its YAML aliases"),
        ("a: &a {b: *a}", "unfolds its YAML aliases"),
        ("_BASE_: /etc/passwd", "_BASE_.* never opened"),
        ("_BASE_: https://example.com/base.yaml", "_BASE_.* never opened"),
        ("MODEL: {RETINANET: {NUM_CLASES: 3}}", r"NUM_CLASES.*Did you mean .*NUM_CLASSES\?"),
        ("MODEL: {RETINANET: {NUM_CLASSES: many}}", "Type mismatch"),
        ("MODEL: {RETINANET: {NUM_CLASSES: 2001-01-01}}", "NUM_CLASSES"),
        ("INPUT: {FORMATS: BGR}", r"INPUT\.FORMATS"),
        ("MODEL: 3", "MODEL must be a mapping"),
        ("MODEL: {RETINANET: 3}", "cannot be used"),
        ("- 3", "must be a mapping"),
        ("", "must be a mapping"),
        ("a: [", "is not YAML"),
        ("a: \0", "is not YAML"),
        ("[" * 1500, "nested more than 50 deep"),
        ("MODEL: {WEIGHTS: x, DEVICE: '" + "(" * 9000 + "'}", None),
    ],
)
def test_what_is_no_config_is_refused(text, message):
    if message is None:
        load_stored_config(text, "a.pth")
        return
    with pytest.raises(ValueError, match=rf"(?s)config in 'a\.pth'.*{message}"):
        load_stored_config(text, "a.pth")


def test_only_what_describes_the_model_is_taken():
    cfg = tiny_cfg("TEST.DETECTIONS_PER_IMAGE", "7", "INPUT.MIN_SIZE_TEST", "99")
    cfg.MODEL.WEIGHTS = "https://example.com/other.pth"
    cfg.MODEL.COMPILE = True
    cfg.INPUT.MAX_PIXELS = 2**60
    cfg.OUTPUT_DIR = "/etc"
    cfg.DATALOADER.NUM_WORKERS = 10**6
    found, default = load_stored_config(cfg.dump(), "a.pth"), load_config("")
    assert found.TEST.DETECTIONS_PER_IMAGE == 7 and found.INPUT.MIN_SIZE_TEST == 99
    assert found.MODEL.RETINANET.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES
    assert found.MODEL.WEIGHTS == "" and found.MODEL.COMPILE is False
    for section, key in (("INPUT", "MAX_PIXELS"), ("DATALOADER", "NUM_WORKERS")):
        assert found[section][key] == default[section][key]
    assert found.OUTPUT_DIR == default.OUTPUT_DIR


RCNN = [
    *("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "3", "MODEL.RPN.POST_NMS_TOPK_TEST", "77"),
]


def test_a_detector_of_two_stages_keeps_what_it_reads():
    found = load_stored_config(tiny_cfg(*RCNN).dump(), "a.pth").MODEL
    assert (found.ROI_HEADS.NAME, found.ROI_HEADS.NUM_CLASSES) == ("StandardROIHeads", 3)
    assert found.RPN.POST_NMS_TOPK_TEST == 77


@pytest.mark.parametrize(
    ("overrides", "section", "is_read"),
    [
        ([], "RETINANET", True),
        ([], "ROI_HEADS", False),
        ([], "SEM_SEG_HEAD", False),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], "RETINANET", True),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], "FSAF", False),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], "RPN", False),
        (RCNN, "RETINANET", False),
        (RCNN, "FSAF", False),
        (RCNN, "PANOPTIC_FPN", False),
        (RCNN, "ROI_HEADS", True),
        (RCNN, "RPN", True),
        (RCNN, "ROI_BOX_HEAD", True),
    ],
)
def test_keys_of_another_detectron2_stand_in_the_way_only_where_they_are_read(
    overrides, section, is_read
):
    content = yaml.safe_load(tiny_cfg(*overrides).dump())
    content["MODEL"][section]["OF_ANOTHER_VERSION"] = 1
    text = yaml.safe_dump(content)
    if is_read:
        with pytest.raises(ValueError, match=rf"MODEL\.{section}\.OF_ANOTHER_VERSION"):
            load_stored_config(text, "a.pth")
    else:
        load_stored_config(text, "a.pth")


def test_overrides_go_over_it():
    words = ["INPUT.MAX_PIXELS", "9", "MODEL.RETINANET.NUM_CLASSES", "4"]
    cfg = load_stored_config(tiny_cfg().dump(), "a.pth", words)
    assert cfg.INPUT.MAX_PIXELS == 9 and cfg.MODEL.RETINANET.NUM_CLASSES == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("META_ARCHITECTURE: FSAF", "META_ARCHITECTURE: GeneralizedRCNN"),
        ("META_ARCHITECTURE: FSAF", "META_ARCHITECTURE: os.system"),
        ("NAME: build_resnet_fpn_p6p7_backbone", "NAME: os.system"),
        ("RES2_OUT_CHANNELS: 32", "RES2_OUT_CHANNELS: -32"),
    ],
)
def test_a_config_that_builds_no_detector_is_named(tmp_path, line, message):
    text = tiny_cfg().dump()
    assert text.count(line) == 1
    file = tmp_path / "a.pth"
    torch.save({"model": {}, "config": text.replace(line, message)}, file)
    with pytest.raises(ValueError, match=rf"The config of '{file}' builds"):
        load_detector(file)


@pytest.mark.parametrize("name", ["GeneralizedRCNN", "FSAF", "RetinaNet", "OneStageDetector"])
def test_a_detectors_own_keys_come_back_and_those_of_others_do_not_disturb(name):
    """Three classes in StandardROIHeads came back as Res5ROIHeads with 80."""
    words = ["MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.NUM_CLASSES", "3"]
    words += ["MODEL.RPN.NMS_THRESH", "0.6", "MODEL.BRANCHES", "['fcos']"]
    cfg = load_config("", ["MODEL.META_ARCHITECTURE", name, *words])
    text = cfg.dump()
    section = "RETINANET" if name == "GeneralizedRCNN" else "ROI_BOX_HEAD"
    text = text.replace(f"  {section}:", f"  {section}:\n    OF_ANOTHER_VERSION: 3")
    heads = load_stored_config(text, "a.pth").MODEL.ROI_HEADS
    expected = ("StandardROIHeads", 3) if name == "GeneralizedRCNN" else ("Res5ROIHeads", 80)
    assert expected == (heads.NAME, heads.NUM_CLASSES)
    section = "ROI_HEADS" if name == "GeneralizedRCNN" else "RETINANET"
    text = cfg.dump().replace(f"  {section}:", f"  {section}:\n    NUM_CLASES: 3")
    with pytest.raises(ValueError, match=rf"Did you mean MODEL\.{section}\.NUM_CLASSES"):
        load_stored_config(text, "a.pth")
