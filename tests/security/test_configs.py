"""Configs are plain YAML: tags run nothing."""

import contextlib
import os

import pytest
import yaml

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
    with pytest.raises(ValueError, match=r"config\.yaml' is refused: it is not plain YAML"):
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
