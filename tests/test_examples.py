"""The example runs from its data to the exported file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/own_data_to_onnx.py"


def test_it_is_a_notebook_in_percent_form():
    lines = EXAMPLE.read_text().splitlines()
    assert lines[0] == "# %% [markdown]"
    titles = [line.removeprefix("# %% ")[:2] for line in lines if line.startswith("# %%")]
    assert titles == ["[m", "Se", "1.", "2.", "3.", "4.", "5.", "6."]


@pytest.mark.slow
def test_from_own_data_to_an_exported_file(tmp_path):
    text = EXAMPLE.read_text()
    for old, new in (
        ("STEPS = 300", "STEPS = 3"),
        ("num_train=200, num_val=40", "num_train=8, num_val=3"),
        ('CONFIG = "', f'CONFIG = "{ROOT}/'),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (tmp_path / "example.py").write_text(text)
    result = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    output = tmp_path / "output/own_data_to_onnx"
    assert "equal detections in 3 images" in result.stdout and "AP50" in result.stdout
    assert len(json.loads((output / "detector.onnx.json").read_text())["class_names"]) == 10
    assert (output / "drawn.jpg").is_file() and (output / "detector.onnx").is_file()
