"""Backbones that are config alone build, have the papers' sizes and train."""

import pytest
import torch
from detectron2.modeling import build_model
from models import ROOT, TINY, batch, random_instances

from fsaf_d2 import load_config

SHALLOW = ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64"]
X_101 = ["MODEL.RESNETS.DEPTH", "101", "MODEL.RESNETS.NUM_GROUPS"]
BACKBONES = {
    "R_18": ([*SHALLOW, "MODEL.RESNETS.DEPTH", "18"], 21_603_720),
    "R_34": ([*SHALLOW, "MODEL.RESNETS.DEPTH", "34"], 31_711_880),
    "R_50": (["MODEL.RESNETS.DEPTH", "50"], 38_162_312),
    "R_101": (["MODEL.RESNETS.DEPTH", "101"], 57_154_440),
    "X_101_32x8d": ([*X_101, "32", "MODEL.RESNETS.WIDTH_PER_GROUP", "8"], 101_396_616),
    "X_101_64x4d": ([*X_101, "64", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"], 96_060_552),
}
SIZE = (64, 96)


def step(*words: str) -> torch.nn.Module:
    """Build from the base config, train a step, and check that all that can learn has learnt."""
    cfg = load_config(ROOT / "configs/Base-FSAF.yaml", ["MODEL.DEVICE", "cpu", *words])
    model = build_model(cfg)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(learning.values(), lr=1e-3)
    losses = model(batch(random_instances(3, SIZE), random_instances(2, SIZE)))
    loss = sum(losses.values())
    assert torch.isfinite(loss)
    loss.backward()
    assert not [name for name, p in learning.items() if p.grad is None or not p.grad.any()]
    optimizer.step()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_trains_and_has_its_size(name):
    words, num_parameters = BACKBONES[name]
    model = step(*words, "MODEL.PIXEL_STD", "[64.0, 64.0, 64.0]")
    # Frozen batch norm keeps its weight and bias as buffers.
    state = model.state_dict()
    assert num_parameters == sum(
        value.numel()
        for name, value in state.items()
        if "running_" not in name and not name.endswith("loss_normalizer")
    )


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "GN"])
def test_a_backbone_trains_from_scratch(norm):
    words = [*TINY, "MODEL.RETINANET.NORM", norm, "MODEL.FPN.NORM", norm]
    words += ["MODEL.RESNETS.NORM", norm, "MODEL.RESNETS.STRIDE_IN_1X1", "False"]
    # Of 24 channels group norm cannot have 32 groups.
    words += ["MODEL.RESNETS.STEM_OUT_CHANNELS", "24", "MODEL.RESNETS.WIDTH_PER_GROUP", "16"]
    model = step(*words)
    kind = {"BN": "BatchNorm2d", "SyncBN": "SyncBatchNorm", "GN": "GroupNorm"}[norm]
    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    kinds = {type(module).__name__ for module in norms} - {"CycleBatchNormList"}
    assert kinds == {kind} and all(p.requires_grad for module in norms for p in module.parameters())
