import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fsaf_d2.data.digits import make_digits

ROOT = Path(__file__).parents[1]
QUICK = [
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "1", "SOLVER.CHECKPOINT_PERIOD", "3"),
    *("DATALOADER.NUM_WORKERS", "0"),
]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_digits(root, num_train=6, num_val=4, image_size=128)
    return root


def run(data_root: Path, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "train_net.py"), *map(str, args)],
        env={**os.environ, "DETECTRON2_DATASETS": str(data_root), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )


def train(data_root: Path, output: Path, steps: int, *args: str) -> subprocess.CompletedProcess:
    """Train the demo's detector for a few steps."""
    result = run(
        data_root,
        *("--config-file", ROOT / "configs/demo/digits.yaml"),
        *args,
        *("OUTPUT_DIR", output, "SOLVER.MAX_ITER", steps, *QUICK),
    )
    assert result.returncode == 0, result.stderr
    return result


def iterations(output: Path) -> list[int]:
    lines = (output / "metrics.json").read_text().splitlines()
    return [json.loads(line)["iteration"] for line in lines]


@pytest.mark.slow
def test_trains_evaluates_and_resumes(data_root, tmp_path):
    first = train(data_root, tmp_path, 3)
    assert first.stdout.startswith("No GPU found: running on the CPU.\n")
    assert "AP50" in first.stdout
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 2
    momenta = checkpoint["trainer"]["_trainer"]["optimizer"]["state"]
    assert len(momenta) > 0 and momenta[0]["step"] == 3

    resumed = train(data_root, tmp_path, 6, "--resume")
    assert "Starting training from iteration 3" in resumed.stdout
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 5
    # The optimizer went on, it did not start again.
    assert checkpoint["trainer"]["_trainer"]["optimizer"]["state"][0]["step"] == 6
    assert iterations(tmp_path) == sorted(iterations(tmp_path))

    evaluated = run(
        data_root,
        *("--config-file", ROOT / "configs/demo/digits.yaml", "--eval-only"),
        *("MODEL.WEIGHTS", tmp_path / "model_final.pth", "OUTPUT_DIR", tmp_path / "evaluated"),
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert (tmp_path / "evaluated/inference/digits_val/predictions.json").exists()

    def ap_line(stdout: str) -> str:
        lines = [
            line.split("copypaste: ")[1] for line in stdout.splitlines() if "copypaste:" in line
        ]
        return lines[lines.index("Task: bbox") + 2]

    assert ap_line(evaluated.stdout) == ap_line(resumed.stdout)


@pytest.mark.slow
def test_the_log_has_losses_levels_and_positives(data_root, tmp_path):
    train(data_root, tmp_path, 2)
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    record = {name: value for line in lines for name, value in json.loads(line).items()}
    for name in ("loss_cls", "loss_box_reg", "loss_anchor_free_cls", "loss_anchor_free_box_reg"):
        assert math.isfinite(record[name])
    assert {
        "num_pos_anchors",
        "num_pos_points",
        *(f"num_objects_p{i}" for i in range(3, 8)),
    } <= set(record)


def refused(data_root: Path, *args) -> str:
    result = run(data_root, *args)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    # A library may have warned before.
    _, message = result.stderr.split("train_net.py: error: ")
    return message


@pytest.mark.slow
def test_missing_data_set_is_named_with_the_remedy(data_root, tmp_path):
    message = refused(
        data_root,
        *("--config-file", ROOT / "configs/fsaf_R_50_FPN_1x.yaml", "--eval-only"),
        *("MODEL.WEIGHTS", "", "OUTPUT_DIR", tmp_path),
    )
    for word in ("coco_2017_val", "instances_val2017.json", "DETECTRON2_DATASETS", "DATASETS.TEST"):
        assert word in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["--config-file"]),
        (["--config-file", "nowhere.yaml"], ["nowhere.yaml"]),
        (["MODEL.FSAF.LOSS_WEIGTH", "1"], ["LOSS_WEIGTH"]),
        (["MODEL.WEIGHTS", "nowhere.pth"], ["nowhere.pth", "MODEL.WEIGHTS"]),
        (["DATASETS.TEST", "('digit_val',)"], ["digit_val", "digits_val"]),
        (["--num-gpus", "2"], ["--num-gpus 2"]),
        (["MODEL.FSAF.LEVEL_SELECTION", "best"], ["LEVEL_SELECTION"]),
        (["SOLVER.OPTIMIZER", "LION"], ["SOLVER.OPTIMIZER", "ADAMW"]),
        (["MODEL.RETINANET.NUM_CLASSES", "5"], ["NUM_CLASSES is 5", "10 classes"]),
    ],
)
def test_mistakes_end_in_one_sentence(data_root, tmp_path, args, words):
    config = [] if args[:1] == ["--config-file"] or not args else ["--config-file"]
    config = config and [*config, ROOT / "configs/demo/digits.yaml"]
    output = ["OUTPUT_DIR", tmp_path] if args and args[0] != "--num-gpus" else []
    message = refused(data_root, *config, *args, *output)
    assert all(word in message for word in words), message
