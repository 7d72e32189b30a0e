import pickle

import pytest
from detectron2.config import get_cfg
from models import ROOT

from fsaf_d2 import add_fsaf_config, load_config
from fsaf_d2.config_keys import (
    _INSTEAD,
    derive,
    flat,
    given,
    meant_key,
    warnings_of_dead_keys,
)


@pytest.fixture
def leaf(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {BASE_LR: 0.5, MAX_ITER: 7}\nSEED: 3\n")
    (tmp_path / "leaf.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 7}\n")
    return tmp_path / "leaf.yaml"


def place(cfg, key: str) -> str | None:
    found = given(cfg, key)
    return found and found.place


def test_where_keys_were_given(leaf):
    cfg = load_config(leaf, ["SEED", "3"])
    assert place(cfg, "SOLVER.BASE_LR") == f"'{leaf.parent}/base.yaml'"
    assert place(cfg, "SOLVER.MAX_ITER") == f"'{leaf}'"
    assert place(cfg, "SEED") == "the command line"
    assert place(cfg, "SOLVER.GAMMA") is None
    cfg.SOLVER.GAMMA = 0.5
    assert place(cfg, "SOLVER.GAMMA") == "Python code"
    assert given(cfg, "SEED").order > given(cfg, "SOLVER.MAX_ITER").order
    assert given(cfg, "SOLVER.MAX_ITER").order > given(cfg, "SOLVER.BASE_LR").order


def test_copies_and_other_processes_know_it_too(leaf):
    cfg = load_config(leaf)
    cfg.freeze()
    for other in (cfg.clone(), pickle.loads(pickle.dumps(cfg))):
        assert place(other, "SOLVER.MAX_ITER") == f"'{leaf}'"
        assert other == cfg and other.dump() == cfg.dump()


def test_what_was_derived_was_not_given(leaf):
    cfg = load_config(leaf)
    derive(cfg, "SOLVER.MAX_ITER", 9)
    assert (cfg.SOLVER.MAX_ITER, place(cfg, "SOLVER.MAX_ITER")) == (9, None)


def test_a_config_of_another_origin():
    cfg = get_cfg()
    add_fsaf_config(cfg)
    cfg.SEED = 5
    assert place(cfg, "SEED") == "Python code" and place(cfg, "SOLVER.MAX_ITER") is None


DEAD = {
    "MODEL.ROI_HEADS.NUM_CLASSES": ("3", "MODEL.RETINANET.NUM_CLASSES does that"),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": ("0.5", "MODEL.RETINANET.SCORE_THRESH_TEST does that"),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": ("0.6", "MODEL.RETINANET.NMS_THRESH_TEST does that"),
    "MODEL.RPN.NMS_THRESH": ("0.6", "MODEL.RETINANET.NMS_THRESH_TEST does that"),
    "MODEL.RPN.IOU_THRESHOLDS": ("[0.1, 0.2]", "MODEL.RETINANET.IOU_THRESHOLDS does that"),
    "MODEL.RPN.POST_NMS_TOPK_TEST": ("50", "TEST.DETECTIONS_PER_IMAGE does that"),
    "MODEL.ROI_BOX_HEAD.NORM": ("'GN'", "MODEL.RETINANET.NORM does that"),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": ("128", "Nothing here does that"),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN", "Nothing here does that"),
    "MODEL.MASK_ON": ("True", "Nothing here does that"),
}


@pytest.mark.parametrize("key", DEAD)
@pytest.mark.parametrize("in_file", [False, True])
def test_keys_that_do_nothing_are_named_with_those_that_do(tmp_path, key, in_file):
    value, remedy = DEAD[key]
    base = "MODEL: {META_ARCHITECTURE: FSAF}\n"
    text = value
    for part in reversed(key.split(".")[1:]):
        text = f"{{{part}: {text}}}"
    (tmp_path / "base.yaml").write_text(base)
    (tmp_path / "leaf.yaml").write_text(f"_BASE_: base.yaml\nMODEL: {text}\n")
    file = tmp_path / ("leaf.yaml" if in_file else "base.yaml")
    cfg = load_config(file, [] if in_file else [key, value])
    lines = warnings_of_dead_keys(cfg, load_config(""))
    if in_file and value == "RPN":
        # The default, as in every config that a run has written.
        assert lines == []
        return
    (line,) = lines
    assert line.startswith(f"{key} (") and "does nothing for FSAF" in line and remedy in line
    words = remedy.split()[0].split(".")
    cfg_key = load_config("")
    for word in words if "." in remedy.split()[0] else ():
        cfg_key = cfg_key[word]


def test_the_config_that_a_run_has_written_gives_no_warning(tmp_path):
    cfg = load_config("", ["MODEL.META_ARCHITECTURE", "FSAF"])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert warnings_of_dead_keys(load_config(tmp_path / "config.yaml"), load_config("")) == []


def test_detectors_that_read_these_keys_give_no_warning():
    cfg = load_config("", ["MODEL.ROI_HEADS.NUM_CLASSES", "3"])
    assert cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    assert warnings_of_dead_keys(cfg, load_config("")) == []


TWO_STAGES = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"]
DETECTRON2 = ["MODEL.META_ARCHITECTURE", "RetinaNet"]


@pytest.mark.parametrize(
    ("architecture", "key", "value", "remedy"),
    [
        (TWO_STAGES, "MODEL.RETINANET.NUM_CLASSES", "3", "MODEL.ROI_HEADS.NUM_CLASSES does that"),
        (TWO_STAGES, "MODEL.RETINANET.TOPK_CANDIDATES_TEST", "9", "MODEL.RPN.PRE_NMS_TOPK_TEST"),
        (TWO_STAGES, "MODEL.FSAF.LOSS_WEIGHT", "1.0", "Nothing here does that"),
        (TWO_STAGES, "MODEL.FCOS.CENTER_RADIUS", "2.5", "Nothing here does that"),
        (TWO_STAGES, "MODEL.BRANCHES", "['anchor']", "Nothing here does that"),
        (TWO_STAGES, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3", "MODEL.ROI_HEADS.NUM_CLASSES does"),
        (DETECTRON2, "MODEL.FSAF.LOSS_WEIGHT", "1.0", "Nothing here does that"),
        (DETECTRON2, "MODEL.BRANCHES", "['anchor']", "Nothing here does that"),
        (DETECTRON2, "MODEL.RPN.NMS_THRESH", "0.6", "MODEL.RETINANET.NMS_THRESH_TEST does that"),
    ],
)
def test_what_does_nothing_depends_on_the_detector(architecture, key, value, remedy):
    cfg = load_config("", [*architecture, key, value])
    (line,) = warnings_of_dead_keys(cfg, load_config(""))
    assert line.startswith(f"{key} (") and f"does nothing for {architecture[1]}: {remedy}" in line


def test_what_is_said_to_do_the_job_of_a_key_is_a_key():
    keys = dict(flat(load_config("")))
    assert all(key in keys for section in _INSTEAD.values() for key in section.values())


def test_no_config_of_the_project_has_keys_that_do_nothing():
    defaults = load_config("")
    files = sorted((ROOT / "configs").rglob("*.yaml"))
    found = {file.stem: warnings_of_dead_keys(load_config(file), defaults) for file in files}
    assert len(found) > 20 and not any(found.values()), found


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("SOLVER.LR", "SOLVER.BASE_LR"),
        ("SOLVER.LEARNING_RATE", "SOLVER.BASE_LR"),
        ("SOLVER.BATCH_SIZE", "SOLVER.IMS_PER_BATCH"),
        ("SOLVER.EPOCHS", "SOLVER.MAX_ITER, which counts batches"),
        ("MODEL.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"),
        ("MODEL.FSAF.NUM_CLASSES", "MODEL.RETINANET.NUM_CLASSES"),
        ("MODEL.ROI_HEADS.NUM_CLASES", "MODEL.ROI_HEADS.NUM_CLASSES"),
        ("MODEL.ROI_HEADS.SCORE_TRESH_TEST", "MODEL.ROI_HEADS.SCORE_THRESH_TEST"),
        ("MODEL.RPN.NMS_TRESH", "MODEL.RPN.NMS_THRESH"),
        ("MODEL.ROI_HEADS.CLASSES", "MODEL.ROI_HEADS.NUM_CLASSES"),
        ("MODEL.ROI_HEADS.NC", "MODEL.ROI_HEADS.NUM_CLASSES"),
        ("MODEL.ROI_HEADS.CONF", "MODEL.ROI_HEADS.SCORE_THRESH_TEST"),
        ("MODEL.ROI_HEAD.NUM_CLASSES", "MODEL.ROI_HEADS.NUM_CLASSES"),
        ("MODEL.ROI_BOX_HEAD.NUM_CONVS", "MODEL.ROI_BOX_HEAD.NUM_CONV"),
        ("MODEL.RPN.IN_FEATURE", "MODEL.RPN.IN_FEATURES"),
        ("MODEL.RETINANET.NUM_CONV", "MODEL.RETINANET.NUM_CONVS"),
        ("MODEL.RETINANET.SCORE_THRESH", "MODEL.RETINANET.SCORE_THRESH_TEST"),
        ("MODEL.FSAF.LOSS_WEIGTH", "MODEL.FSAF.LOSS_WEIGHT"),
        ("DATASETS.VAL", "DATASETS.TEST"),
        ("solver.base_lr", "SOLVER.BASE_LR"),
        ("RETINANET.NUM_CONVS", "MODEL.RETINANET.NUM_CONVS"),
        ("SOLVR", "SOLVER"),
        ("XYZ.QQQ", None),
    ],
)
def test_the_key_that_a_wrong_name_means(wrong, right):
    assert meant_key(wrong, load_config("")) == right
    words = rf"{wrong}\. Did you mean {right}\?" if right else rf"{wrong}$"
    with pytest.raises(ValueError, match=words):
        load_config("", [wrong, "1"])


def test_a_word_without_its_section_means_the_key_that_the_detector_reads(tmp_path):
    file = tmp_path / "c.yaml"
    for name, section in (("FSAF", "RETINANET"), ("GeneralizedRCNN", "ROI_HEADS")):
        file.write_text(f"MODEL: {{META_ARCHITECTURE: {name}}}")
        with pytest.raises(ValueError, match=rf"Did you mean MODEL\.{section}\.NUM_CLASSES\?"):
            load_config(file, ["MODEL.NUM_CLASSES", "3"])
