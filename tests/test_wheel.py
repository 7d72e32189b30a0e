"""The wheel has all that the commands need: nothing is read from the checkout it was built of."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from formats import write_coco

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SOURCES = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "fsaf_d2", "configs"]
SMALL = [
    *("SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "1"),
    *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "DATALOADER.NUM_WORKERS", "0"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the installed wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source, site = folder / "source", folder / "site"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    install = [*pip, "install", "--no-index", "--no-deps", "--target", site, wheel]
    subprocess.run(install, check=True)
    shutil.rmtree(source)
    return site


@pytest.fixture
def run(site, tmp_path):
    """Runs a command in an empty folder, where the wheel alone is to be found; its output."""
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": ""}

    def run(*words: object, code: int = 0) -> str:
        result = subprocess.run(
            list(map(str, words)),
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == code, result.stderr
        return result.stdout

    return run


def test_configs_are_found_by_name(run, site):
    code = """
import fsaf_d2
from fsaf_d2.config_names import find_config, packaged_configs
print(fsaf_d2.__file__, find_config("Base-FSAF-lite"), sep="\\n")
for name in packaged_configs():
    fsaf_d2.load_config(name)
    fsaf_d2.load_config(f"configs/{name}.yaml")
print(len(packaged_configs()), len(packaged_configs(".py")))
"""
    package, config, numbers = run(sys.executable, "-c", code).splitlines()
    assert Path(package) == site / "fsaf_d2/__init__.py"
    assert Path(config) == site / "fsaf_d2/configs/Base-FSAF-lite.yaml"
    folders = [ROOT / "configs", ROOT / "configs/lazy"]
    files = [list(x.rglob(f"*{y}")) for x, y in zip(folders, (".yaml", ".py"))]
    assert numbers == f"{len(files[0])} {len(files[1])}"


def test_the_help_does_not_wait_for_torch(run):
    code = """
import sys
import fsaf_d2_program
try:
    fsaf_d2_program.main(["--help"])
finally:
    assert not {"torch", "detectron2", "fsaf_d2"} & set(sys.modules)
"""
    assert "evaluate a detector" in run(sys.executable, "-c", code)


def test_own_data_are_checked_trained_on_evaluated_and_predicted(run, site, tmp_path):
    data, program = write_coco(tmp_path / "own"), site / "bin/fsaf-d2"
    assert "4 images" in run(program, "check", data, "--config-file", "Base-FSAF-small")

    named = ("--config-file", "Base-FSAF-small")
    own = ("--train-data", data, "--val-data", data)
    out = tmp_path / "out"
    said = run(program, "train", *named, *own, "OUTPUT_DIR", out, *SMALL)
    assert str(ROOT) not in said and "tools/" not in said and ".py" not in said
    (use,) = re.findall(r"^.*Use it: +(.*)$", said, flags=re.MULTILINE)
    assert use.startswith("fsaf-d2 predict ")
    words = {"fsaf-d2": program, "IMAGES": data / "images", "FOLDER": tmp_path / "found"}
    run(*(words.get(word, word) for word in shlex.split(use)))
    found = json.loads((tmp_path / "found/predictions.json").read_text())
    assert len(found["images"]) == len(list((data / "images").iterdir()))

    weights = ("MODEL.WEIGHTS", out / "model_final.pth", "OUTPUT_DIR", tmp_path / "evaluated")
    command = (sys.executable, "-m", "fsaf_d2", "evaluate")
    assert "AP50" in run(*command, *named, "--val-data", data, *weights, *SMALL)
