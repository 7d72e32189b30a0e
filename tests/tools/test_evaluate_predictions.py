import json
import runpy
import sys
from pathlib import Path

import pytest
from toy_sets import perfect, random_set

SCRIPT = Path(__file__).parents[2] / "tools" / "evaluate_predictions.py"


@pytest.fixture
def data() -> dict:
    """Category ids 1 to 3, as exports of data sets have them."""
    return random_set(category_ids=(1, 2, 3), crowds=0)[0]


@pytest.fixture
def run(data, tmp_path, monkeypatch, capsys):
    """Runs the script on predictions for the data."""

    def run(predictions: object, *options: str) -> str:
        (tmp_path / "truth.json").write_text(json.dumps(data))
        (tmp_path / "found.json").write_text(json.dumps(predictions))
        files = [str(tmp_path / "truth.json"), str(tmp_path / "found.json")]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *files, *options])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_a_perfect_file_has_ap_100(data, run):
    output = run(perfect(data))
    assert "| all detections | 100.0 |  100.0 |  100.0 |" in output
    assert "AP is" not in output


def test_shifted_ids_are_said(data, run):
    output = run([{**x, "category_id": x["category_id"] - 1} for x in perfect(data)])
    assert output.startswith(f"{sum(x['category_id'] == 1 for x in perfect(data))} predictions")
    assert "with category ids shifted by one (each id + 1) it would be 100.0: " in output


def test_a_swapped_box_format_is_said(data, run):
    found = perfect(data)
    for entry in found:
        x, y, width, height = entry["bbox"]
        entry["bbox"] = [x, y, x + width, y + height]
    output = run(found)
    assert "with boxes read as (x0, y0, x1, y1) it would be 100.0: " in output


def test_files_are_written(data, run, tmp_path):
    run(perfect(data), "--output", str(tmp_path / "out"), "--max-detections", "3")
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert evaluation["overall"]["joint"]["AP"] < 99
    assert (tmp_path / "out" / "confusion.png").exists()


def test_errors_are_one_sentence(run):
    with pytest.raises(SystemExit, match=r"^evaluate_predictions: error: .*found\.json.*a list"):
        run({})
