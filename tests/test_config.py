from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from fsaf_d2 import FSAF, OneStageDetector, add_fsaf_config, load_config

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml"))

# Table 1 of the paper: (anchor branch, anchor-free branch, level selection)
TABLE_1 = {
    "anchors_only": (True, False, "online"),
    "anchor_free_heuristic": (False, True, "heuristic"),
    "anchor_free_online": (False, True, "online"),
    "joint_heuristic": (True, True, "heuristic"),
    "joint_online": (True, True, "online"),
}


def test_defaults_are_the_papers():
    cfg = get_cfg()
    add_fsaf_config(cfg)
    assert dict(cfg.MODEL.FSAF) == {
        "EFFECTIVE_SCALE": 0.2,
        "IGNORE_SCALE": 0.5,
        "BOX_NORMALIZER": 4.0,
        "POINT_OFFSET": 0.5,
        "LEVEL_SELECTION": "online",
        "CANONICAL_LEVEL": 5,
        "CANONICAL_BOX_SIZE": 224,
        "HEURISTIC_STEPS": 0,
        "LOSS_WEIGHT": 0.5,
        "BBOX_BIAS": 0.1,
        "ANCHOR_BRANCH": True,
        "ANCHOR_FREE_BRANCH": True,
        "NMS_PER_LEVEL": False,
    }


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_every_config_builds(file):
    model = build_model(load_config(CONFIGS / file, ["MODEL.DEVICE", "cpu"]))
    assert isinstance(model, OneStageDetector)


@pytest.mark.parametrize(("row", "expected"), TABLE_1.items())
def test_ablations_are_the_rows_of_table_1(row, expected):
    cfg = load_config(CONFIGS / f"ablations/{row}_R_50_FPN_1x.yaml")
    branches = FSAF.branch_names(cfg)
    found = ("anchor" in branches, "point" in branches, cfg.MODEL.FSAF.LEVEL_SELECTION)
    assert expected == found


def test_ablations_differ_from_the_recipe_in_the_model_alone():
    recipe = load_config(CONFIGS / "fsaf_R_50_FPN_1x.yaml")
    for row in TABLE_1:
        cfg = load_config(CONFIGS / f"ablations/{row}_R_50_FPN_1x.yaml")
        cfg.MODEL.FSAF, cfg.MODEL.BRANCHES = recipe.MODEL.FSAF, recipe.MODEL.BRANCHES
        assert cfg == recipe


def test_the_papers_schedule():
    cfg = load_config(CONFIGS / "fsaf_R_50_FPN_1x.yaml")
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (16, 0.01)
    assert (cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER) == ((60000, 80000), 90000)
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP) == ((800,), "horizontal")


def test_overrides_come_last():
    cfg = load_config(CONFIGS / "Base-FSAF.yaml", ["MODEL.FSAF.LOSS_WEIGHT", "0.25"])
    assert cfg.MODEL.FSAF.LOSS_WEIGHT == 0.25


@pytest.mark.parametrize("base", [False, True])
def test_python_tags_are_refused_and_not_executed(tmp_path, base):
    victim, marker = tmp_path / "evil.yaml", tmp_path / "executed"
    victim.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{marker}']\n")
    config = victim
    if base:
        config = tmp_path / "leaf.yaml"
        config.write_text("_BASE_: evil.yaml\nSEED: 1\n")
    with pytest.raises(ValueError, match="!!python"):
        load_config(config)
    assert not marker.exists()


def test_no_config_of_ours_has_a_tag():
    for file in FILES:
        assert "!!" not in (CONFIGS / file).read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("MODEL:\n  FSAF:\n    EFECTIVE_SCALE: 0.3\n", ["EFECTIVE_SCALE"]),
        ("MODEL:\n  FSAF:\n    LOSS_WEIGHT: heavy\n", ["LOSS_WEIGHT", "heavy"]),
        ("MODEL: [\n", ["not YAML"]),
        ("SEED: !!python/name:os.getcwd\n", ["plain YAML", "!!python"]),
        ("- a\n- b\n", ["mapping"]),
        ("", []),
    ],
)
def test_wrong_files_are_named(tmp_path, text, words):
    config = tmp_path / "wrong.yaml"
    config.write_text(text)
    with pytest.raises(ValueError) as error:
        load_config(config)
    assert all(word in str(error.value) for word in ["wrong.yaml", *words]), error.value


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    leaf = tmp_path / "leaf.yaml"
    (tmp_path / "Base-small.yaml").touch()
    with pytest.raises(FileNotFoundError, match=r"Did you mean '.*Base-small\.yaml'\?"):
        load_config(tmp_path / "Base_small.yaml")
    leaf.write_text("_BASE_: nowhere.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_config(leaf)


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (
            ["MODEL.FSAF.LOSS_WEIGTH", "1.0"],
            r"LOSS_WEIGTH.* Did you mean MODEL\.FSAF\.LOSS_WEIGHT\?",
        ),
        (["MODEL.FSAF.LOSS_WEIGHT", "1"], r"LOSS_WEIGHT.* 1\.0 for a float"),
        (["DATASETS.TEST", "digits_val"], r"DATASETS\.TEST.* for a tuple"),
        (["MODEL.FSAF.LOSS_WEIGHT"], r"pairs.*'MODEL\.FSAF\.LOSS_WEIGHT' has no value"),
        (["SEED", "3", "SOLVER.BASE_LR=0.1"], r"Write 'SOLVER\.BASE_LR 0\.1' for 'SOLVER"),
        (["SEED", "3", "SOLVER.BASE_LR", "INPUT.FORMAT", "RGB"], r"'SOLVER\.BASE_LR' has no value"),
        (["SEED", "3", "4"], r"odd number of words: SEED 3 4\.$"),
        (["MODEL.FSAF.LOSS_WEIGHT", "heavy"], "LOSS_WEIGHT"),
    ],
)
def test_wrong_overrides_are_named(overrides, word):
    with pytest.raises(ValueError, match=word):
        load_config("", overrides)
