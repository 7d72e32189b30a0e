"""A branch from outside the package: how commands find it, and what is said if it is wrong."""

import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from models import ROOT, batch, random_instances, tiny_cfg, tiny_model

from fsaf_d2 import load_config
from fsaf_d2.assignment.anchors import locate
from fsaf_d2.assignment.grid import Grid
from fsaf_d2.detectors import BRANCHES, Branch, LossTerm, register_branch


class Said(NamedTuple):
    said: list


class OddBranch(Branch):
    """Says whatever a test wants."""

    loss_names = ("loss_odd",)
    terms = staticmethod(dict)
    output = staticmethod(lambda maps: Said(maps))

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.layer = torch.nn.Conv2d(input_shape[0].channels, 1, 1)

    def forward(self, class_features, box_features):
        return self.output([self.layer(x) for x in class_features])

    def losses(self, predictions, objects, grid):
        return self.terms()

    def decode(self, predictions, grid):
        return []


@pytest.fixture
def odd():
    register_branch("odd")(OddBranch)
    model = tiny_model(
        *("MODEL.META_ARCHITECTURE", "OneStageDetector", "MODEL.BRANCHES", "['anchor', 'odd']")
    )
    yield model.train()
    del BRANCHES["odd"]


ONE = torch.ones(())


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({}, r"'odd' gives the losses \[\], but its loss_names are \['loss_odd'\]"),
        ({"loss_cls": LossTerm(ONE, ONE)}, r"gives the losses \['loss_cls'\]"),
        ({"loss_odd": ONE}, r"gives 'loss_odd' as Tensor: it must be a LossTerm"),
        ({"loss_odd": LossTerm(ONE, 3)}, "of two tensors"),
    ],
)
def test_losses_must_be_those_that_are_named(odd, monkeypatch, terms, words):
    monkeypatch.setattr(OddBranch, "terms", staticmethod(lambda: terms))
    with pytest.raises(ValueError, match=words):
        odd(batch(random_instances(2)))


def test_predictions_must_have_names(odd, monkeypatch):
    monkeypatch.setattr(OddBranch, "output", staticmethod(lambda maps: (maps,)))
    with pytest.raises(ValueError, match=r"NamedTuple of lists.*not a tuple"):
        odd(batch(random_instances(2)))


def test_places_must_come_level_by_level():
    grid = Grid.of([8, 16], [(4, 4), (2, 2)], torch.device("cpu"))
    image = torch.zeros(3, dtype=torch.int64)
    locate(image, torch.tensor([3, 17, 18]), 1, grid, torch.device("cpu"))
    with pytest.raises(ValueError, match="level by level"):
        locate(image, torch.tensor([17, 3, 18]), 1, grid, torch.device("cpu"))


def test_unknown_branches_and_keys_say_how_a_file_is_imported():
    words = ["MODEL.META_ARCHITECTURE", "OneStageDetector", "MODEL.BRANCHES", "['peg']"]
    with pytest.raises(ValueError, match=r"'peg', which is unknown.*DETECTOR_BRANCHES"):
        tiny_model(*words)
    with pytest.raises(ValueError, match=r"MODEL\.PEG.*DETECTOR_BRANCHES"):
        load_config("", ["MODEL.PEG.SIDE", "3"])
    assert tiny_cfg().MODEL.BRANCHES == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "is_there"), [("peg_branch", True), ("no_such_file", False)])
def test_files_that_the_environment_names_are_imported(tmp_path, name, is_there):
    (tmp_path / "peg_branch.py").write_text("from fsaf_d2 import load_config\nprint('imported')\n")
    paths = f"{ROOT}{os.pathsep}{tmp_path}"
    result = subprocess.run(
        [sys.executable, "-c", "import fsaf_d2"],
        env={**os.environ, "PYTHONPATH": paths, "DETECTOR_BRANCHES": name},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode == 0) == is_there
    if is_there:
        assert "imported" in result.stdout
    else:
        assert "DETECTOR_BRANCHES names 'no_such_file'" in result.stderr
