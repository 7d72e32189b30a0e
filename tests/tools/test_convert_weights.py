import runpy
import sys

import mmdet_fsaf
import pytest
import torch
from detectron2.modeling import build_model
from models import ROOT

from fsaf_d2 import load_config
from fsaf_d2.training import SafeCheckpointer, load_weights

SCRIPT = ROOT / "tools/convert_weights.py"
WORDS = ["MODEL.RETINANET.NUM_CLASSES", "3", "MODEL.DEVICE", "cpu"]


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_what_it_writes_loads_as_the_original_does(run, tmp_path, caplog):
    weights = {**mmdet_fsaf.random_weights(50, num_classes=3), "extra.weight": torch.zeros(1)}
    source, target = tmp_path / "source.pth", tmp_path / "target.pth"
    torch.save({"meta": {}, "state_dict": weights}, source)
    output = run(source, target)
    for name in weights:
        assert name in output
    assert f"{len(weights) - 1} tensors of '{source}' are converted" in output
    assert "MODEL.FPN.RELU_BEFORE_P7 False; MODEL.FSAF.POINT_OFFSET 0.0" in output

    cfg = load_config(ROOT / "configs/zoo/mmdet_fsaf_R_50_FPN_1x.yaml", WORDS)
    states = []
    for file in (source, target):
        checkpointer = SafeCheckpointer(build_model(cfg))
        load_weights(checkpointer, str(file), resume=False, cfg=cfg, complete=True)
        states.append(checkpointer.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    # The converted file still says what it needs.
    assert "were trained with" not in caplog.text
    cfg.MODEL.FSAF.POINT_OFFSET = 0.5
    load_weights(checkpointer, str(target), resume=False, cfg=cfg)
    assert "MODEL.FSAF.POINT_OFFSET is 0.5, but" in caplog.text


def test_the_source_is_not_written_over(run, tmp_path):
    source = tmp_path / "source.pth"
    torch.save({"state_dict": mmdet_fsaf.random_weights(50, num_classes=3)}, source)
    before = source.read_bytes()
    (tmp_path / "link.pth").symlink_to(source)
    for target in (source, tmp_path / "link.pth"):
        with pytest.raises(SystemExit, match=r"'.*\.pth' is the file of the weights: name another"):
            run(source, target)
    assert source.read_bytes() == before


def test_what_needs_no_conversion_is_refused(run, tmp_path):
    torch.save({"model": {"a.weight": torch.zeros(1)}}, tmp_path / "net.pth")
    with pytest.raises(SystemExit, match=r"net\.pth' is in no layout .* mmdetection's FSAF"):
        run(tmp_path / "net.pth", tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()
