import base64
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from fsaf_d2.evaluation.run_report import CROP_SIDE, crop, write_report

METRICS = {"AP": 41.25, "AP50": 63.0, "AP75": 40.0, "APs": None, "APm": 12.5, "APl": 55.0}

STATISTICS = {
    "images": 1700,
    "boxes": 3,
    "crowds": 0,
    "images_without_objects": 1698,
    "classes": {"<i>": 2, "$_b": 1},
    "sizes": {"small": 3, "medium": 0, "large": 0},
    "sizes_by_class": {name: {"small": 1, "medium": 1, "large": 0} for name in ("<i>", "$_b")},
    "median_box_size": 20.5,
    "median_image_size": [640.0, 480.0],
    "box_size_histogram": {"edges": [1, 16, 32], "counts": [1, 2]},
    "objects_per_image": {"0": 1698, "1": 1, "2": 1},
    "image_sizes": {"640 x 480": 1700},
}


def evaluation(image: Path, name: str) -> dict:
    """What an evaluation of one class with one object leaves."""
    best = {"threshold": 0.43, "precision": 80.0, "recall": 50.0, "f1": 61.5}
    entry = {"image_id": 1, "file_name": str(image), "category": name, "bbox": [10, 12, 20, 16]}
    return {
        "dataset": "own_val",
        "num_images": 1,
        "num_objects": 1,
        "num_objects_by_size": {"small": 0, "medium": 1, "large": 0},
        "class_names": [name],
        "overall": {"joint": METRICS, "anchor_branch": METRICS},
        "per_class": [{"name": name, "num_objects": 1, **METRICS, "best_f1": best}],
        "levels": [{"name": "p3", "num_detections": 4, "AP": 1.0, "AP50": None}],
        "image_root": str(image.parent),
        "misses": [{**entry, "file_name": image.name, "best_score": None}],
        "false_alarms": [{**entry, "score": 0.9, "file_name": "/gone/away.jpg"}],
        "diagnosis": None,
    }


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A run whose names try to be HTML."""
    image = tmp_path / "photo.png"
    cv2.imwrite(str(image), np.full((60, 80, 3), 90, np.uint8))
    folder = tmp_path / "run"
    inference = folder / "inference" / "own_val"
    inference.mkdir(parents=True)
    data = evaluation(image, "<script>alert(1)</script>")
    (inference / "evaluation.json").write_text(json.dumps(data))
    cv2.imwrite(str(inference / "pr_curves.png"), np.zeros((40, 50, 3), np.uint8))
    (folder / "samples").mkdir()
    for step, width in ((100, 30), (1000, 3000)):
        image = np.zeros((20, width, 3), np.uint8)
        cv2.imwrite(str(folder / "samples" / f"step_{step:07d}.jpg"), image)
    (folder / "config.yaml").write_text("SOLVER: {BASE_LR: 0.02}\nOUTPUT_DIR: <b>\n")
    lines = [{"iteration": i, "total_loss": 2.0 - i / 100} for i in range(0, 60, 20)]
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    (folder / "data").mkdir()
    finding = {"severity": "warning", "count": 3, "first": []}
    check = {"findings": {"duplicate box": finding}, "statistics": STATISTICS}
    (folder / "data" / "check_own_train.json").write_text(json.dumps(check))
    return folder


def test_the_page_shows_what_is_there(run_folder):
    (run_folder / "advice.txt").write_text("Train longer.\n")
    page = write_report(run_folder).read_text()
    for text in ("41.2", "63.0", "n/a", "0.43", "Train longer.", "41 training steps", "P3"):
        assert text in page
    for text in (
        "duplicate box",
        "1,700",
        "20.5",
        "640 x 480 (1,700)",
        "n/a",
        "SOLVER.BASE_LR",
        "0.02",
        "all branches",
        "anchor branch alone",
    ):
        assert text in page
    assert "point branch alone" not in page
    assert page.count("the image could not be read") == 1 and "away.jpg" in page
    for plot in ("data/statistics_own_train.png", "training.png"):
        assert base64.b64encode((run_folder / plot).read_bytes()).decode() in page
    assert "objects_per_image" not in page


def test_names_are_text_and_nothing_is_fetched(run_folder):
    page = write_report(run_folder).read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses and all(address.startswith("data:image/") for address in addresses)
    assert "http" not in re.sub(r'src="[^"]*"|http-equiv', "", page)


def test_a_half_written_run_has_a_report(tmp_path):
    (tmp_path / "config.yaml").write_text("SEED: 1\n")
    assert "SEED" in write_report(tmp_path).read_text()


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="OUTPUT_DIR of a training"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    "box", [[10, 12, 20, 16], [-30, -30, 10, 5], [0, 0, 400, 300], [5, 5, 0, 0]]
)
def test_a_crop_has_the_box_in_its_middle(box):
    image = np.zeros((60, 80, 3), np.uint8)
    result = np.asarray(crop(image, box, "red"))
    assert result.shape == (CROP_SIDE, CROP_SIDE, 3)
    rows, columns = np.nonzero((result[..., 0] > 200) & (result[..., 2] < 60))
    assert abs(rows.mean() - CROP_SIDE / 2) < 6 and abs(columns.mean() - CROP_SIDE / 2) < 6
