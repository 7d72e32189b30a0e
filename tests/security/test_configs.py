"""Configs are plain YAML: tags run nothing."""

import contextlib
import os

import pytest
import yaml
from models import ROOT

from fsaf_d2 import load_config

TAGS = {
    "apply": "!!python/object/apply:os.mkdir ['{marker}']",
    "new": "!!python/object/new:type "
    "{{args: [x, !!python/tuple [], {{}}], state: !!python/object/apply:os.mkdir ['{marker}']}}",
    "apply with keywords": "!!python/object/apply:os.mkdir {{kwds: {{path: '{marker}'}}}}",
    "eval": '!!python/object/apply:eval [\'__import__("os").mkdir("{marker}")\']',
    "in a list": "[1, [!!python/object/apply:os.mkdir ['{marker}']]]",
    "process": "!!python/object/apply:subprocess.check_call [['mkdir', '{marker}']]",
    "long name": "!<tag:yaml.org,2002:python/object/apply:os.mkdir> ['{marker}']",
    "as a key": "{{? !!python/object/apply:os.mkdir ['{marker}'] : 1}}",
}
HARMLESS = {
    "name": "!!python/name:os.system",
    "module": "!!python/module:antigravity",
    "tuple": "!!python/tuple [1, 2]",
    "own tag": "!mine 3",
}


@pytest.mark.parametrize("place", ["file", "base"])
@pytest.mark.parametrize("kind", [*TAGS, *HARMLESS])
def test_tags_are_refused(tmp_path, kind, place):
    text = {**TAGS, **HARMLESS}[kind].format(marker=tmp_path / "marker")
    config = tmp_path / "config.yaml"
    (tmp_path / "base.yaml").write_text(f"SEED: {text}\n")
    config.write_text("_BASE_: base.yaml\n" if place == "base" else f"SEED: {text}\n")
    with pytest.raises(ValueError, match=r"config\.yaml'.* is refused: it is not plain YAML"):
        load_config(config)
    assert sorted(os.listdir(tmp_path)) == ["base.yaml", "config.yaml"]


@pytest.mark.parametrize("kind", TAGS)
def test_the_tags_would_run(tmp_path, kind):
    # What comes after the folder was made does not matter.
    with contextlib.suppress(yaml.YAMLError, TypeError, AttributeError):
        yaml.unsafe_load(TAGS[kind].format(marker=tmp_path / "marker"))
    assert os.listdir(tmp_path) == ["marker"]


@pytest.mark.parametrize("value", ["__import__('os').mkdir('marker')", "[x for x in ()]", "f'{1}'"])
def test_overrides_are_not_run(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    cfg = load_config("", ["OUTPUT_DIR", value])
    assert value == cfg.OUTPUT_DIR and os.listdir(tmp_path) == []


def test_a_config_is_not_fetched(tmp_path):
    (tmp_path / "config.yaml").write_text("_BASE_: https://example.com/base.yaml\n")
    with pytest.raises(ValueError, match=r"config\.yaml.*example\.com/base\.yaml' .*not fetched"):
        load_config(tmp_path / "config.yaml")


def test_configs_do_not_go_round_in_circles(tmp_path):
    (tmp_path / "one.yaml").write_text("_BASE_: two.yaml\n")
    (tmp_path / "two.yaml").write_text("_BASE_: one.yaml\n")
    with pytest.raises(ValueError, match=r"one\.yaml.*its own _BASE_"):
        load_config(tmp_path / "one.yaml")


@pytest.mark.parametrize("place", ["file", "base"])
def test_aliases_do_not_unfold(tmp_path, place):
    """A billion laughs."""
    lines = ["a0: &a0 [lol]"]
    lines += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    (tmp_path / "base.yaml").write_text("\n".join(lines))
    (tmp_path / "config.yaml").write_text("_BASE_: base.yaml\n")
    with pytest.raises(ValueError, match=r"base\.yaml'.* unfolds its YAML aliases"):
        load_config(tmp_path / ("base.yaml" if place == "file" else "config.yaml"))


def test_a_value_that_holds_itself_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("MODEL: &a {B: *a}\n")
    with pytest.raises(ValueError, match="unfolds its YAML aliases"):
        load_config(tmp_path / "config.yaml")


def test_the_config_that_a_run_has_written_can_be_read(tmp_path):
    """PyYAML writes aliases for values that stand in two places."""
    cfg = load_config(ROOT / "configs/demo/digits.yaml")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = load_config(tmp_path / "config.yaml")
    assert "*id0" in cfg.dump() and yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


@pytest.mark.parametrize("text", ["_BASE_: 3\n", "_BASE_: [1, [2]]\n", "_BASE_: {a: b}\n"])
def test_a_base_is_a_file_name(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        load_config(tmp_path / "config.yaml")
