"""The protections hold in the program, not only in its parts."""

import json
import os
import pickle
import re
import socket
from pathlib import Path

import programs
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager
from models import tiny_cfg

from fsaf_d2 import load_config
from fsaf_d2.commands.train_command import argument_parser
from fsaf_d2.data.reading.digits import make_digits
from fsaf_d2.training import prepare

ROOT = Path(__file__).parents[2]


def test_weights_are_not_trusted_unless_asked():
    parse = argument_parser().parse_args
    assert parse(["--config-file", "x"]).trust_weights is False
    assert parse(["--trust-weights", "SEED", "1"]).trust_weights is True


@pytest.mark.parametrize("config", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda p: p.stem)
def test_reading_a_config_asks_for_no_network(config, monkeypatch):
    asked = []
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, lambda *words, **_: asked.append(words))
    monkeypatch.setattr(PathManager, "get_local_path", lambda *words, **_: asked.append(words))
    assert load_config(config).MODEL.META_ARCHITECTURE and not asked


@pytest.mark.parametrize("eval_only", [True, False])
def test_a_run_does_not_begin_with_an_image_from_elsewhere(tmp_path, eval_only):
    (tmp_path / "images").mkdir()
    image = {"id": 1, "file_name": "../../etc/passwd", "width": 9, "height": 9}
    data = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "own.json").write_text(json.dumps(data))
    register_coco_instances("passwd", {}, str(tmp_path / "own.json"), str(tmp_path / "images"))
    try:
        cfg = tiny_cfg("DATASETS.TRAIN", "('passwd',)", "DATASETS.TEST", "('passwd',)")
        cfg.MODEL.RETINANET.NUM_CLASSES = 1
        with pytest.raises(ValueError, match=r"own\.json': image 1 .*'\.\./\.\./etc/passwd'"):
            prepare(cfg, eval_only=eval_only)
    finally:
        DatasetCatalog.remove("passwd")
        MetadataCatalog.remove("passwd")


class Folder:
    """Pickles as the making of a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.slow
@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("mode", ["--eval-only", "--resume", "--num-gpus=1"])
def test_code_in_weights_is_run_only_if_trusted(tmp_path, mode, trusted):
    make_digits(tmp_path / "data", num_train=4, num_val=2, image_size=128)
    marker, output = tmp_path / "marker", tmp_path / "output"
    output.mkdir()
    content = {"model": {"x": Folder(marker)}, "__author__": "x"}
    if mode == "--resume":
        weights = output / "model_0000001.pth"
        torch.save(content, weights)
        (output / "last_checkpoint").write_text(weights.name)
    else:
        weights = tmp_path / "weights.pkl"
        weights.write_bytes(pickle.dumps(content))
    result = programs.run(
        *(ROOT / "train_net.py", mode),
        *("--config-file", ROOT / "configs/demo/digits.yaml"),
        *(["--trust-weights"] if trusted else []),
        *("OUTPUT_DIR", output, "DATALOADER.NUM_WORKERS", "0"),
        *([] if mode == "--resume" else ["MODEL.WEIGHTS", weights]),
        env={"DETECTRON2_DATASETS": str(tmp_path / "data")},
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"{weights.name}' could not be loaded" in result.stderr
    assert marker.exists() == trusted
    assert ("--trust-weights: code in" in result.stdout) == trusted


# What reads weights, images and YAML without the limits of this project, and where it is meant:
# of images the header alone is read, or they are a run's own; of YAML, what plain_yaml has read.
UNLIMITED = {
    r"\bDetectionCheckpointer\(": {"fsaf_d2/weights/checkpointer.py"},
    r"\bDefaultPredictor\(": set(),
    r"\bpickle\.loads?\(": set(),
    r"\btorch\.load\(": {"fsaf_d2/weights/weights_files.py", "tools/soak.py"},
    r"\bimport read_image|utils\.read_image\(": {
        "fsaf_d2/data/loading/mapper.py",
        "benchmarks/data_loading.py",
    },
    r"\b(cv2\.imread|Image\.open)\(": {
        "fsaf_d2/data/checking/images.py",
        "fsaf_d2/data/reading/image_headers.py",
        "fsaf_d2/evaluation/run_report.py",
    },
    r"\byaml\.(unsafe_|full_)?load\(": {"fsaf_d2/data/reading/formats/yolo_yaml.py"},
}


@pytest.mark.parametrize("pattern", UNLIMITED)
def test_nothing_is_read_without_limits_elsewhere(pattern):
    files = [ROOT / "train_net.py"]
    for folder in ("fsaf_d2", "tools", "benchmarks"):
        files += (ROOT / folder).rglob("*.py")
    found = {
        str(file.relative_to(ROOT))
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(pattern, line) and not re.search(r"mapper import.*read_image", line)
    }
    assert found <= UNLIMITED[pattern]
