"""What the README says can be done, can be done."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from fsaf_d2 import load_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_file_it_names_exists():
    named = set(re.findall(r"(?:configs|docs|tools|fsaf_d2|tests)/[\w./-]*\w", README))
    assert len(named) > 10
    for name in named:
        assert list(ROOT.glob(f"{name}*")), name


def test_its_keys_and_defaults_are_those_of_the_code():
    fsaf = load_config("").MODEL.FSAF
    table = README[README.index("New under `MODEL.FSAF`") : README.index("And beside them")]
    stated = {}
    for keys, defaults in re.findall(r"^\| (`[A-Z].*?) \| (.*?) \|", table, flags=re.MULTILINE):
        values = [value.strip(" `") for value in defaults.split(",")]
        stated.update(zip(re.findall(r"`(\w+)`", keys), values))
    assert stated == {key: str(value) for key, value in fsaf.items()}


def write_images(folder: Path) -> None:
    """Four images of a bright square each, in COCO format."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for index in range(4):
        image = np.zeros((64, 96, 3), np.uint8)
        image[10:40, 20:60] = 255
        cv2.imwrite(str(folder / "images" / f"{index}.png"), image)
        images.append({"id": index, "file_name": f"{index}.png", "width": 96, "height": 64})
        box = {"bbox": [20, 10, 40, 30], "area": 1200, "iscrowd": 0, "category_id": 1 + index % 3}
        annotations.append({"id": index + 1, "image_id": index, **box})
    categories = [{"id": index, "name": f"class {index}"} for index in (1, 2, 3)]
    text = json.dumps(
        {"info": {}, "images": images, "annotations": annotations, "categories": categories}
    )
    for name in ("train", "val"):
        (folder / f"{name}.json").write_text(text)


@pytest.mark.slow
def test_own_data_trains_as_shown(tmp_path, monkeypatch):
    code, use = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    sizes = "INPUT.MIN_SIZE_TRAIN (96,) INPUT.MIN_SIZE_TEST 96"
    code = code.replace("MAX_ITER 1000", f"MAX_ITER 2 DATALOADER.NUM_WORKERS 0 {sizes}")
    write_images(tmp_path / "my")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    use = use.replace("output/demo/", "output/mine/")
    use = use.replace("datasets/digits/val/000003.jpg", "my/images/0.png")
    exec(code, {})
    assert (tmp_path / "output/mine/report.html").exists()
    exec(use, namespace := {})
    assert {"pred_levels", "pred_branches"} <= set(namespace["found"].get_fields())
    assert (tmp_path / "drawn.jpg").exists()


@pytest.mark.slow
def test_own_data_pass_through_the_commands_as_shown(tmp_path):
    write_images(tmp_path / "my" / "data" / "train")
    folder = tmp_path / "my" / "data"
    for split in ("train", "val"):
        images = folder / split
        images.mkdir(exist_ok=True)
        for index in range(4):
            image = (folder / "train" / "images" / f"{index}.png").read_bytes()
            (images / f"{index}.png").write_bytes(image + (b"" if split == "train" else b"\0"))
        annotations = (folder / "train" / "train.json").read_text()
        (images / "_annotations.coco.json").write_text(annotations)
    shutil.rmtree(folder / "train" / "images")
    for name in ("train", "val"):
        (folder / "train" / f"{name}.json").unlink()
    (tmp_path / "photos").mkdir()
    shutil.copy(folder / "val" / "0.png", tmp_path / "photos")
    block = README[README.index("## Your own data") :]
    block = re.search(r"((?:^    .*\n)+)", block, flags=re.MULTILINE).group(1)
    small = "SOLVER.MAX_ITER 2 DATALOADER.NUM_WORKERS 0"
    small += " INPUT.MIN_SIZE_TRAIN (96,) INPUT.MIN_SIZE_TEST 96"
    assert "SOLVER.MAX_ITER 1000" in block
    block = block.replace("SOLVER.MAX_ITER 1000", small)
    for line in block.replace("\\\n", "").strip().splitlines():
        program, script, *args = line.split()
        assert program == "python"
        args = [str(ROOT / arg) if arg.startswith("configs/") else arg for arg in args]
        result = subprocess.run(
            [sys.executable, str(ROOT / script), *args],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, (line, result.stdout, result.stderr)
    assert {"0.jpg", "predictions.json", "predictions.csv"} <= {
        file.name for file in (tmp_path / "found").rglob("*")
    }
