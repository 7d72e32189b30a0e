"""What is said of published weights agrees with itself, and asks for no network."""

import re
import socket

import programs
import pytest
import torch
from detectron2.utils.file_io import PathManager
from models import ROOT

from fsaf_d2 import load_config, model_zoo
from fsaf_d2.data.reading.digits import make_digits
from fsaf_d2.training import SafeCheckpointer, Trainer, load_weights

DOCS = (ROOT / "docs/model_zoo.md").read_text(encoding="utf-8")
NAME = "retinanet_R_50_FPN_1x"


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", model_zoo.MODELS)
def test_config_hash_and_docs_agree(name, monkeypatch):
    model = model_zoo.get(name)
    asked = []
    monkeypatch.setattr(
        "iopath.common.file_io.HTTPURLHandler._get_local_path",
        lambda self, path, **_: asked.append(path),
    )
    PathManager.get_local_path(load_config(ROOT / model.config).MODEL.WEIGHTS)
    assert asked == [model.url]
    assert re.fullmatch(rf".*[-_](?=[0-9a-f]{{6,8}}\.){model.hash}\.(pkl|pth)", model.file_name)
    row = next(line for line in DOCS.splitlines() if model.url in line)
    for part in (model.licence, f"{model.ap:.1f}"):
        assert f"| {part} |" in row
    assert f"--config-file {model.config} --eval-only" in DOCS


def test_every_zoo_config_is_listed():
    configs = {f"configs/zoo/{file.name}" for file in (ROOT / "configs/zoo").glob("[!B]*.yaml")}
    assert configs == {model.config for model in model_zoo.MODELS.values()}
    with pytest.raises(KeyError, match=r"'nothing' is not known.*retinanet_R_50_FPN_1x"):
        model_zoo.get("nothing")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("here/model_final_bfca0b.pkl", NAME),
        (model_zoo.get(NAME).url, NAME),
        ("fsaf_r50_fpn_1x_coco-94ccc51f.pth?matching_heuristics=True", "mmdet_fsaf_R_50_FPN_1x"),
        ("mine-94ccc51f.pth", "mmdet_fsaf_R_50_FPN_1x"),
        ("output/model_final.pth", None),
        ("94ccc51f.pth", None),
        ("", None),
    ],
)
def test_files_are_known_by_name_or_hash(file, name):
    found = model_zoo.find(file)
    assert (found and found[0]) == name


def test_expected_stands_beside_measured():
    results = {"one": {"bbox": {"AP": 37.44}}, "two": {}}
    assert model_zoo.compare("model_final_bfca0b.pkl", results, ("one", "two")) == [
        f"{NAME} on one: AP 37.4 measured; 37.4 expected on coco_2017_val (detectron2, "
        "MODEL_ZOO.md).",
    ]
    assert len(model_zoo.compare("model_final_bfca0b.pkl", results["one"], ("one",))) == 1
    assert model_zoo.compare("model_final.pth", results["one"], ("one",)) == []


def test_a_missing_network_is_said():
    checkpointer = SafeCheckpointer(torch.nn.Linear(1, 1))
    for name in (NAME, "mmdet_fsaf_R_50_FPN_1x"):
        address = load_config(ROOT / model_zoo.get(name).config).MODEL.WEIGHTS
        with pytest.raises(ValueError, match=rf"'{address}' could not.*an address needs a network"):
            load_weights(checkpointer, address, resume=False)


@pytest.mark.slow
def test_an_evaluation_prints_expected_beside_measured(tmp_path):
    make_digits(tmp_path, num_train=2, num_val=2, image_size=128)
    config = ROOT / "configs/demo/digits.yaml"
    cfg = load_config(config, ["MODEL.DEVICE", "cpu"])
    # Its name has a hash that only the published file has; this one is known by the same digits.
    file = tmp_path / "mine_bfca0b.pth"
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, file)
    result = programs.run(
        *(ROOT / "train_net.py", "--eval-only"),
        *("--config-file", config, "MODEL.WEIGHTS", file),
        *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.001"),
        *("OUTPUT_DIR", tmp_path / "output", "DATALOADER.NUM_WORKERS", "0"),
        env={"DETECTRON2_DATASETS": str(tmp_path)},
    )
    assert result.returncode == 0, result.stderr
    assert re.search(
        rf"^{NAME} on digits_val: AP \d+\.\d measured; 37\.4 expected on coco_2017_val",
        result.stdout,
        flags=re.MULTILINE,
    )
