"""Faults of disk and data, in trainings by the program: what is said, and that nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import programs
import pytest
import torch
from models import ROOT
from runs import OVERRIDES

from fsaf_d2.data.reading.digits import make_digits
from fsaf_d2.weights.atomic_writing import find_damage

pytestmark = pytest.mark.slow
STEPS = 12
# A file system of its own, as the program's only output folder, which no other process sees.
MOUNT = """
mount -t tmpfs -o "$1" none "$2"
mkdir -p "$2/run"
[ -z "$3" ] || head -c "$3" /dev/zero > "$2/filler"
[ -z "$4" ] || mount -o remount,ro "$2"
shift 4
"$@"
status=$?
cp -r "$OUT/run" "$KEPT"
exit $status
"""


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_digits(root, num_train=6, num_val=2, image_size=128)
    return root


def command(output: Path, *options: str, **overrides: object) -> list[str]:
    values = {
        **{key: value for key, value in OVERRIDES.items() if not key.startswith("DATASETS")},
        "SOLVER.MAX_ITER": STEPS,
        "DETERMINISTIC": True,
        "OUTPUT_DIR": output,
        **{key.replace("__", "."): value for key, value in overrides.items()},
    }
    words = [str(word) for pair in values.items() for word in pair]
    config = str(ROOT / "configs/demo/digits.yaml")
    return [str(ROOT / "train_net.py"), "--config-file", config, *options, *words]


def run(words: list[str], data_root: Path) -> tuple[int, str]:
    return outcome(programs.run(*words, env={"DETECTRON2_DATASETS": str(data_root)}))


def outcome(result: subprocess.CompletedProcess) -> tuple[int, str]:
    """Exit code, and the sentence at the end if there is one."""
    assert "Traceback" not in result.stdout
    last = result.stderr.rstrip().rpartition("\n")[2]
    return result.returncode, last if "error: " in last else result.stderr


def on_a_small_disk(
    tmp_path: Path, data_root: Path, words: list[str], *, mib: int, filler: str = "", ro: str = ""
) -> tuple[int, str, Path]:
    """Run with ``tmp_path/disk`` a file system of so many MiB; also gives a copy of its folder."""
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "x", "/mnt"]).returncode:
        pytest.skip("no rights to mount a file system")
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    shell = ["unshare", "-rm", "sh", "-c", MOUNT, "sh", f"size={mib}m", str(disk), filler, ro]
    places = {"DETECTRON2_DATASETS": data_root, "OUT": disk, "KEPT": kept}
    result = subprocess.run(
        [*shell, sys.executable, *words],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **{k: str(x) for k, x in places.items()}},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return *outcome(result), kept


def model_of(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)["model"]


def test_a_full_disk(data_root, tmp_path):
    words = command(tmp_path / "disk" / "run")
    status, message, kept = on_a_small_disk(tmp_path, data_root, words, mib=6)
    assert status == 1
    assert "MiB are needed" in message and "go on with --resume" in message
    whole = sorted(file.name for file in kept.glob("model_*.pth"))
    assert whole and all(find_damage(kept / name) is None for name in whole)
    assert (kept / "last_checkpoint").read_text() == whole[-1]
    assert not list(kept.glob(".*.part"))

    # With room, the run ends as one that had it from the start.
    assert run(command(kept, "--resume"), data_root)[0] == 0
    assert run(command(tmp_path / "alone"), data_root)[0] == 0
    one, other = (model_of(folder / "model_final.pth") for folder in (kept, tmp_path / "alone"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_disk_that_is_full_from_the_start(data_root, tmp_path):
    words = command(tmp_path / "disk" / "run")
    status, message, _ = on_a_small_disk(tmp_path, data_root, words, mib=1, filler="1048576")
    assert status == 1
    assert "Nothing can be written to OUTPUT_DIR" in message and "make room" in message


def test_a_folder_that_cannot_be_written_to(data_root, tmp_path):
    words = command(tmp_path / "disk" / "run")
    status, message, _ = on_a_small_disk(tmp_path, data_root, words, mib=1, ro="ro")
    assert status == 1
    assert "OUTPUT_DIR" in message and "Read-only file system" in message


def behind_the_first_checkpoint(output: Path, action) -> None:
    def wait_and_act():
        while not (output / "last_checkpoint").exists():
            time.sleep(0.02)
        action()

    threading.Thread(target=wait_and_act, daemon=True).start()


def test_a_folder_that_vanishes(data_root, tmp_path):
    output, moved = tmp_path / "run", tmp_path / "moved"
    behind_the_first_checkpoint(output, lambda: output.rename(moved))
    status, message = run(command(output, SOLVER__MAX_ITER=400), data_root)
    assert status == 1
    assert str(output) in message and "go on with --resume" in message
    assert all(find_damage(file) is None for file in moved.glob("model_*.pth"))
    assert (moved / "last_checkpoint").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_vanishes(data_root, tmp_path, workers):
    own_root, output = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data_root, own_root)
    image = own_root / "digits/train/000003.jpg"
    behind_the_first_checkpoint(output, image.unlink)
    options = {"DATALOADER__NUM_WORKERS": workers, "SOLVER__MAX_ITER": 400}
    status, message = run(command(output, **options), own_root)
    assert status == 1
    assert f"Image '{image}' is not there." in message and "MAX_UNREADABLE" in message
    checkpoints = sorted(output.glob("model_*.pth"))
    assert checkpoints and all(find_damage(file) is None for file in checkpoints)


def test_weights_that_explode_are_not_saved(data_root, tmp_path):
    """A learning rate far too high: the weights of the last checkpoint are still good."""
    status, message = run(
        command(tmp_path, SOLVER__BASE_LR=1e30, SOLVER__WARMUP_ITERS=0), data_root
    )
    assert status == 1
    assert "is not finite" in message and "tools/replay_step.py" in message
    for file in tmp_path.glob("model_*.pth"):
        assert all(torch.isfinite(x.float()).all() for x in model_of(file).values())
