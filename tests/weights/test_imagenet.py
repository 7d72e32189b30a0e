"""ImageNet weights of torchvision's and timm's ResNets compute the same features here."""

import logging

import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from models import ROOT

from fsaf_d2 import load_config
from fsaf_d2.training import SafeCheckpointer, load_weights

RGB = [
    *("INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]"),
    *("MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]", "MODEL.RESNETS.STRIDE_IN_1X1", "False"),
]
SHALLOW = ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.DEPTH"]
NETS = {
    "resnet18": [*SHALLOW, "18"],
    "resnet34": [*SHALLOW, "34"],
    "resnet50": ["MODEL.RESNETS.DEPTH", "50"],
    "resnext101_32x8d": [
        *("MODEL.RESNETS.DEPTH", "101", "MODEL.RESNETS.NUM_GROUPS", "32"),
        *("MODEL.RESNETS.WIDTH_PER_GROUP", "8"),
    ],
}


def make(name: str) -> torch.nn.Module:
    """A net with random statistics of batch norm."""
    net = getattr(torchvision.models, name)(weights=None).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.3, 0.8)
    return net


def config(*words: str):
    return load_config(ROOT / "configs/Base-FSAF.yaml", ["MODEL.DEVICE", "cpu", *words])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_features_are_torchvisions(name, tmp_path, caplog):
    net, cfg = make(name), config(*RGB, *NETS[name])
    torch.save(net.state_dict(), tmp_path / "net.pth")
    model = build_model(cfg).eval()
    checkpointer = SafeCheckpointer(model)
    with caplog.at_level(logging.WARNING):
        load_weights(checkpointer, str(tmp_path / "net.pth"), resume=False, cfg=cfg)
    assert "were trained with" not in caplog.text
    backbone = [key for key in model.state_dict() if key.startswith("backbone.bottom_up.")]
    report = checkpointer.report
    assert sorted(report.converted) == sorted(backbone) and not report.unexpected
    assert {*report.converted.values(), *report.needless} == set(net.state_dict())
    assert {"fc.weight", "fc.bias", "bn1.num_batches_tracked"} <= set(report.needless)

    image = torch.randint(0, 256, (3, 96, 128)).float()
    mean, std = (torch.tensor(cfg.MODEL[f"PIXEL_{x}"])[:, None, None] for x in ("MEAN", "STD"))
    with torch.no_grad():
        found = model.backbone.bottom_up(model.preprocess_image([{"image": image}]).tensor)
        x = net.maxpool(net.relu(net.bn1(net.conv1(((image - mean) / std)[None]))))
        for stage in range(2, 6):
            x = getattr(net, f"layer{stage - 1}")(x)
            if stage > 2:
                torch.testing.assert_close(found[f"res{stage}"], x, rtol=1e-4, atol=1e-4)


def test_another_preprocessing_is_warned_of(tmp_path, caplog):
    torch.save(make("resnet50").state_dict(), tmp_path / "net.pth")
    cfg = config("MODEL.RESNETS.DEPTH", "50")
    checkpointer = SafeCheckpointer(build_model(cfg))
    load_weights(checkpointer, str(tmp_path / "net.pth"), resume=False, cfg=cfg)
    for words in (
        "INPUT.FORMAT is 'BGR', but weights in the layout of torchvision's and timm's ResNet were "
        "trained with 'RGB'",
        "MODEL.PIXEL_MEAN is",
        "MODEL.PIXEL_STD is",
        "MODEL.RESNETS.STRIDE_IN_1X1 is True",
    ):
        assert words in caplog.text


def test_a_deep_stem_is_not_taken_for_one(tmp_path):
    """Of timm's resnet50d, which detectron2's ResNet cannot be."""
    weights = make("resnet18").state_dict()
    weights["conv1.0.weight"] = weights.pop("conv1.weight")
    torch.save(weights, tmp_path / "net.pth")
    checkpointer = SafeCheckpointer(build_model(config(*RGB, *NETS["resnet18"])))
    with pytest.raises(ValueError, match=r"net\.pth' fits nothing in the model"):
        load_weights(checkpointer, str(tmp_path / "net.pth"), resume=False)
