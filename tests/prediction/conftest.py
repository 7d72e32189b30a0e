from __future__ import annotations

from pathlib import Path

import pytest
import torch
from predictions import MORE, content_of

from fsaf_d2 import load_detector


@pytest.fixture(scope="session")
def content(tmp_path_factory) -> dict:
    """What a checkpoint of today holds."""
    return content_of(tmp_path_factory.mktemp("run"))


@pytest.fixture
def save(tmp_path, content):
    """Writes a checkpoint that differs by some entries, None for no entry; gives its path."""

    def save_with(**changes) -> Path:
        changed = {**content, **changes}
        file = tmp_path / "model_final.pth"
        torch.save({key: value for key, value in changed.items() if value is not None}, file)
        return file

    return save_with


@pytest.fixture(scope="session")
def weights(tmp_path_factory, content) -> Path:
    """A checkpoint with all that later ones hold."""
    file = tmp_path_factory.mktemp("weights") / "model_final.pth"
    torch.save({**content, **MORE}, file)
    return file


@pytest.fixture(scope="session")
def detector(weights):
    return load_detector(weights, device="cpu")
