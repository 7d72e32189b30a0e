"""Configs are found by path and, where there is no such file, by the name of one of the package."""

from pathlib import Path

import pytest

from fsaf_d2 import config_names, load_config
from fsaf_d2.config_names import find_config, packaged_configs
from fsaf_d2.training.lazy_config import load_lazy_config

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Outside of the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "family/gfl_R_50_FPN_1x",
        "family/gfl_R_50_FPN_1x.yaml",
        "gfl_R_50_FPN_1x",
        "gfl_R_50_FPN_1x.yaml",
        "configs/family/gfl_R_50_FPN_1x.yaml",
        "./configs/family/gfl_R_50_FPN_1x",
    ],
)
def test_a_name_may_lack_folder_and_ending(name):
    assert Path(find_config(name)) == CONFIGS / "family/gfl_R_50_FPN_1x.yaml"


def test_every_config_has_its_name_and_points_in_it_are_no_ending():
    found = {Path(find_config(name)) for name in packaged_configs()}
    assert found == set(CONFIGS.rglob("*.yaml"))
    assert {x.stem for x in found} >= {"Base-FSAF-lite", "mmdet_fsaf_ignore_0.5_R_50_FPN_1x"}


def test_bases_of_a_named_config_are_found():
    cfg = load_config("gfl_R_50_FPN_1x", ["SEED", "3"])
    assert cfg == load_config(CONFIGS / "family/gfl_R_50_FPN_1x.yaml", ["SEED", "3"])


def test_a_file_comes_before_a_name_and_a_folder_does_not(tmp_path):
    (tmp_path / "Base-FSAF-lite.yaml").write_text("SEED: 7\n")
    (tmp_path / "digits").mkdir()
    assert load_config("Base-FSAF-lite.yaml").SEED == 7
    assert Path(find_config("digits")) == CONFIGS / "demo/digits.yaml"
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="Config file 'mine' cannot be read"):
        load_config("mine")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Base-FSAF-lit", "'Base-FSAF-lite'"),
        ("configs/family/gfl_R50_FPN_1x.yaml", "'family/gfl_R_50_FPN_1x'"),
        ("glf_R_50_FPN_1x", "'family/gfl_R_50_FPN_1x'"),
        ("zoo/gfl_R_50_FPN_1x", "'family/gfl_R_50_FPN_1x'"),
        ("nowhere/mine.yaml", None),
    ],
)
def test_near_names_of_an_unknown_one_are_told(name, near):
    with pytest.raises(FileNotFoundError) as error:
        load_config(name)
    message = str(error.value)
    assert message.startswith(f"Config file '{name}' does not exist") and "\n" not in message
    assert near in message if near else "Did you mean" not in message


def test_a_near_file_comes_before_near_names(tmp_path):
    (tmp_path / "Base-FSAF-lite2.yaml").touch()
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'Base-FSAF-lite2\.yaml'\?$"):
        load_config("Base-FSAF-lite3.yaml")


def test_a_name_of_two_configs_is_refused(monkeypatch, tmp_path):
    named = {"one/x": tmp_path, "two/x": tmp_path}
    monkeypatch.setattr(config_names, "packaged_configs", lambda ending: named)
    with pytest.raises(ValueError, match="'x' may be 'one/x' and 'two/x' of the package"):
        find_config("x")


def test_python_configs_have_names_for_their_own_program_alone():
    cfg = load_lazy_config("configs/lazy/ablations/anchors_only_R_50_FPN_1x.py", [])
    assert "train" in cfg
    with pytest.raises(ValueError, match="is Python code, which is not run here"):
        load_config("lazy/fsaf_R_50_FPN_1x.py")
    with pytest.raises(FileNotFoundError, match="Did you mean 'lazy/fsaf_R_50_FPN_1x'"):
        load_lazy_config("lazy/fsaf_R_50_FPN_1.py", [])
