"""Networks of timm as backbones: sizes, maps, steps, norms, what is frozen, what is refused."""

import pytest
import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from models import ROOT, batch, random_instances

from fsaf_d2 import load_config
from fsaf_d2.backbones import TimmBackbone
from fsaf_d2.config_keys import warnings_of_dead_keys

SIZE = (64, 96)
SMALL = "hrnet_w18_small"
CLASSIFIER = 1000
# timm's own numbers, with the classifier of 1000 classes on so many channels.
WITH_CLASSIFIER = {
    "cspresnet50": (21_616_168, 1024),
    "cspresnext50": (20_569_896, 2048),
    "cspdarknet53": (27_642_184, 1024),
}
# HRNet without the classifier's layers; with HRFPN and FSAF's anchor-free head alone.
HRNETS = {"hrnet_w18": (9_562_260, 17_496_296), "hrnet_w32": (29_305_536, 37_293_332)}
NAMES = [*WITH_CLASSIFIER, *HRNETS]


def config(name: str, *words: str):
    return load_config(ROOT / f"configs/timm/{name}_1x.yaml", ["MODEL.DEVICE", "cpu", *words])


def size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def assert_trains(model: torch.nn.Module) -> None:
    """Train a step, and check that all that can learn does."""
    for module in model.modules():
        # timm starts residual blocks with the weight 0, behind which nothing learns at first.
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(learning.values(), lr=1e-2)
    loss = sum(model(batch(random_instances(3, SIZE), random_instances(2, SIZE))).values())
    assert torch.isfinite(loss)
    loss.backward()
    assert [name for name, p in learning.items() if p.grad is None or not p.grad.any()] == []
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in learning.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_network_trains_and_has_its_size(name):
    model = build_model(config(f"{name}_FPN"))
    backbone = model.backbone.bottom_up
    if name in HRNETS:
        assert size(backbone) == HRNETS[name][0]
    else:
        total, channels = WITH_CLASSIFIER[name]
        assert size(backbone) == total - (channels + 1) * CLASSIFIER
    assert_trains(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", HRNETS)
def test_hrnets_pyramid_trains_and_has_its_size(name):
    model = build_model(config(f"{name}_HRFPN", "MODEL.FSAF.ANCHOR_BRANCH", "False"))
    assert size(model) == HRNETS[name][1]
    assert all(p.requires_grad for p in model.parameters())
    assert_trains(model)


@pytest.mark.parametrize("name", ["cspresnet50", "cspdarknet53", "mobilenetv3_small_050"])
def test_maps_are_the_whole_networks(name):
    backbone = TimmBackbone(name=name).eval()
    whole = timm.create_model(name).eval()
    own = backbone.net.state_dict()
    for key, value in whole.state_dict().items():
        for other in (key, key.replace(".", "_", 1)):
            if other in own:
                own[other].copy_(value)
    found, seen = backbone(torch.ones(1, 3, *SIZE)), {}
    for stride, module in zip((8, 16, 32), _last_of_each_stride(whole)):
        module.register_forward_hook(lambda *x, stride=stride: seen.update({stride: x[-1]}))
    with torch.no_grad():
        whole(torch.ones(1, 3, *SIZE))
    assert list(found) == ["res3", "res4", "res5"]
    for (feature, value), expected in zip(found.items(), seen.values(), strict=True):
        torch.testing.assert_close(value, expected)
        shape = backbone.output_shape()[feature]
        assert (value.shape[1], SIZE[0] // value.shape[2]) == (shape.channels, shape.stride)


def _last_of_each_stride(whole: torch.nn.Module) -> list[torch.nn.Module]:
    strides = {entry["reduction"]: entry["module"] for entry in whole.feature_info}
    return [whole.get_submodule(strides[stride]) for stride in (8, 16, 32)]


def test_maps_with_channels_last_are_turned():
    backbone = TimmBackbone(name="mambaout_femto")
    assert [tuple(x.shape[1:]) for x in backbone(torch.zeros(1, 3, 64, 96)).values()] == [
        (96, 8, 12),
        (192, 4, 6),
        (288, 2, 3),
    ]


def test_layers_that_no_map_needs_are_not_trained():
    # The last exchange to the branch of stride 4, which this pyramid has no use for.
    backbone = TimmBackbone(name=SMALL)
    sum(x.sum() for x in backbone(torch.rand(2, 3, *SIZE)).values()).backward()
    assert all(p.requires_grad == (p.grad is not None) for p in backbone.parameters())
    fixed = [name for name, p in backbone.named_parameters() if not p.requires_grad]
    assert fixed and all(".fuse_layers.0." in name for name in fixed)


NORM_KINDS = {
    "": {"BatchNorm2d", "BatchNormAct2d"},
    "BN": {"BatchNorm2d", "BatchNormAct2d"},
    "SyncBN": {"SyncBatchNorm", "SyncBatchNormAct"},
    "FrozenBN": {"FrozenBatchNorm2d", "FrozenBatchNormAct2d"},
    "GN": {"GroupNorm", "GroupNormAct"},
}


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORM_KINDS)
@pytest.mark.parametrize("name", ["cspresnet50", SMALL])
def test_norm(name, norm):
    backbone = TimmBackbone(name=name, norm=norm, out_features=["res2", "res3", "res4", "res5"])
    kinds = {type(module).__name__ for module in backbone.modules()}
    assert {kind for kind in kinds - {"ConvNormAct"} if "Norm" in kind} <= NORM_KINDS[norm]
    expected = TimmBackbone(name=name, out_features=["res5"])
    if norm != "GN":
        expected.net.load_state_dict(backbone.net.state_dict(), strict=False)
        image = torch.rand(1, 3, *SIZE)
        with torch.no_grad():
            maps = backbone.eval()(image), expected.eval()(image)
        # Activations within batch norm are still there.
        torch.testing.assert_close(maps[0]["res5"], maps[1]["res5"])
    before = {name: x.clone() for name, x in backbone.named_buffers() if "running" in name}
    backbone.train()
    sum(x.square().sum() for x in backbone(torch.rand(2, 3, *SIZE)).values()).backward()
    changed = {
        name for name, x in backbone.named_buffers() if not torch.equal(x, before.get(name, x))
    }
    assert bool(changed) == (norm in ("", "BN", "SyncBN"))
    affine = [p for name, p in backbone.named_parameters() if "bn" in name]
    assert bool(affine) == (norm != "FrozenBN")


@pytest.mark.parametrize(
    ("name", "freeze_at", "fixed"),
    [
        ("cspresnet50", 0, set()),
        ("cspresnet50", 1, {"stem_conv1"}),
        ("cspresnet50", 2, {"stem_conv1", "stages_0"}),
        ("resnet18", 1, {"conv1", "bn1"}),
        ("resnet18", 3, {"conv1", "bn1", "layer1", "layer2"}),
        ("mobilenetv3_small_050", 2, {"conv_stem", "bn1", "blocks.0"}),
    ],
)
def test_what_is_frozen(name, freeze_at, fixed):
    backbone = TimmBackbone(name=name, freeze_at=freeze_at)
    before = {key: value.clone() for key, value in backbone.net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    sum(x.square().mean() for x in backbone(torch.rand(2, 3, *SIZE)).values()).backward()
    optimizer.step()
    moved = {
        key
        for key, value in backbone.net.state_dict().items()
        if "running_mean" in key and not torch.equal(value, before[key])
    }
    frozen = {key for key in before if any(key.startswith(f"{start}.") for start in fixed)}
    assert moved == {key for key in before if "running_mean" in key} - frozen
    learning = {key for key, p in backbone.net.named_parameters() if p.requires_grad}
    assert not learning & frozen and len(learning) > 20


REFUSED = {
    "unknown": ({"name": "hrnet_w19"}, "no network of timm .* Near: .*hrnet_w18"),
    "empty": ({"name": ""}, "MODEL.TIMM.NAME is empty"),
    "address": ({"name": "hf-hub:timm/resnet18"}, "never fetched"),
    "repository": ({"name": "timm/resnet18"}, "never fetched"),
    "folder": ({"name": "local-dir:/tmp/net"}, "never fetched or read"),
    "tag": ({"name": "hrnet_w18.foo"}, r"no weights with that tag.*hrnet_w18\.ms"),
    "no pyramid": ({"name": "vit_tiny_patch16_224"}, "strides 16, but .* needs 8, 32"),
    "one size": ({"name": "swin_tiny_patch4_window7_224"}, "images of every size"),
    "feature": ({"name": SMALL, "out_features": ["p3"]}, "res1 .stride 2."),
    "order": ({"name": SMALL, "out_features": ["res5", "res4"]}, "from fine to coarse"),
    "twice": ({"name": SMALL, "out_features": ["res4", "res4"]}, "from fine to coarse"),
    "norm": ({"name": SMALL, "norm": "LN"}, "MODEL.TIMM.NORM must be one of"),
    "no batch norm": (
        {"name": "convnext_atto", "norm": "FrozenBN"},
        "has LayerNorm.* set it to ''",
    ),
    "parallel": ({"name": SMALL, "freeze_at": 2}, "FREEZE_AT 2 .* set it to 0"),
    "no such map": ({"name": "convnext_atto", "freeze_at": 1}, "only 2, 3, 4, 5 can be frozen"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    arguments, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        TimmBackbone(**arguments)


def test_without_timm_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'timm>=1.0'"):
        TimmBackbone(name=SMALL)


def test_images_of_one_channel():
    cfg = config("hrnet_w18_FPN", "MODEL.TIMM.NAME", "resnet18")
    backbone = build_backbone(cfg, ShapeSpec(channels=1))
    assert list(backbone(torch.zeros(1, 1, *SIZE))) == ["p3", "p4", "p5", "p6", "p7"]


def test_keys_of_timm_without_its_builder_are_named():
    file = ROOT / "configs/Base-FSAF.yaml"
    cfg = load_config(file, ["MODEL.TIMM.NAME", "hrnet_w18"])
    (line,) = warnings_of_dead_keys(cfg, load_config(""))
    assert "MODEL.TIMM.NAME" in line and "build_timm_fpn_backbone" in line
    cfg = config("hrnet_w18_FPN", "MODEL.RESNETS.DEPTH", "101")
    (line,) = warnings_of_dead_keys(cfg, load_config(""))
    assert "MODEL.RESNETS.DEPTH" in line and "MODEL.TIMM" in line
