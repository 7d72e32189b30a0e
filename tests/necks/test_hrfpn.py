"""HRNet's pyramid: what its levels are made of, and one map of high resolution."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_model
from models import ROOT, batch, random_instances

from fsaf_d2 import load_config
from fsaf_d2.necks import HRFPN

CONFIG = ROOT / "configs/timm/hrnet_w18_HRFPN_1x.yaml"
SINGLE = ROOT / "configs/timm/hrnet_w18_single_map_1x.yaml"
SMALL = ["MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "hrnet_w18_small", "MODEL.TIMM.NORM", "BN"]
SMALL += ["MODEL.FPN.OUT_CHANNELS", "32", "MODEL.RETINANET.NUM_CONVS", "1"]


class Maps(Backbone):
    """Maps of the strides 4 and 8 that are what it is given, instead of a backbone."""

    size_divisibility = 8

    def __init__(self) -> None:
        super().__init__()
        self._out_features = ["res2", "res3"]
        self._out_feature_strides = {"res2": 4, "res3": 8}
        self._out_feature_channels = {"res2": 1, "res3": 1}

    def forward(self, maps):
        return maps


def sums(*out_strides: int) -> HRFPN:
    """A pyramid of one channel whose convolutions do no more than to add both maps."""
    pyramid = HRFPN(
        bottom_up=Maps(), in_features=["res2", "res3"], out_channels=1, out_strides=out_strides
    )
    for parameter in pyramid.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.ones_(pyramid.reduction.weight)
    for convolution in pyramid.outputs:
        convolution.weight.data[:, :, 1, 1] = 1
    return pyramid


def test_levels_are_averages_of_the_sum_of_all_maps():
    fine, coarse = torch.rand(2, 1, 6, 10), torch.full((2, 1, 3, 5), 7.0)
    levels = sums(4, 8, 16)({"res2": fine, "res3": coarse})
    assert {name: tuple(x.shape[2:]) for name, x in levels.items()} == {
        "p2": (6, 10),
        "p3": (3, 5),
        # Rounded up, as P6 and P7 of RetinaNet.
        "p4": (2, 3),
    }
    torch.testing.assert_close(levels["p2"], fine + 7)
    for name, window in (("p3", 2), ("p4", 4)):
        for y in range(levels[name].shape[2]):
            for x in range(levels[name].shape[3]):
                # At the border of what there is.
                cells = fine[:, :, window * y : window * (y + 1), window * x : window * (x + 1)]
                torch.testing.assert_close(levels[name][:, :, y, x], cells.mean((2, 3)) + 7)


def test_maps_are_enlarged_between_the_centres_of_their_cells():
    coarse = torch.tensor([[[[0.0, 4.0]]]])
    levels = sums(4)({"res2": torch.zeros(1, 1, 2, 4), "res3": coarse})
    # Centres of the fine cells lie 1/4 and 3/4 of a coarse cell from the coarse centres.
    assert levels["p2"].tolist() == [[[[0, 1, 3, 4]] * 2]]


def test_a_level_finer_than_the_backbone():
    levels = sums(1, 2)({"res2": torch.rand(1, 1, 4, 6), "res3": torch.rand(1, 1, 2, 3)})
    assert {name: tuple(x.shape[2:]) for name, x in levels.items()} == {
        "p0": (16, 24),
        "p1": (8, 12),
    }


def test_shapes_are_what_is_said_of_them():
    backbone = build_model(load_config(CONFIG, SMALL)).backbone
    assert backbone.size_divisibility == 32
    levels = backbone(torch.zeros(1, 3, 96, 160))
    assert backbone.output_shape() == {
        f"p{k}": ShapeSpec(channels=32, stride=2**k) for k in range(3, 8)
    }
    sizes = [tuple(x.shape) for x in levels.values()]
    assert sizes == [(1, 32, -(-96 // 2**k), -(-160 // 2**k)) for k in range(3, 8)]


@pytest.mark.parametrize("strides", [[], [3], [8, 4], [4, 4], [0], [-8]])
def test_strides_that_are_refused(strides):
    with pytest.raises(ValueError, match=r"MODEL\.HRFPN\.OUT_STRIDES must be powers of two"):
        sums(*strides)


@pytest.mark.parametrize(
    "words", [("RELU_BEFORE_P7", "False"), ("P6_FROM", "p5"), ("FUSE_TYPE", "avg")]
)
def test_keys_that_would_do_nothing_are_refused(words):
    with pytest.raises(ValueError, match=f"MODEL.FPN.{words[0]} .* does nothing"):
        build_model(load_config(CONFIG, [*SMALL, f"MODEL.FPN.{words[0]}", words[1]]))


def test_a_level_that_the_pyramid_lacks_is_named():
    words = ["MODEL.HRFPN.OUT_STRIDES", "[8, 16]"]
    with pytest.raises(ValueError, match=r"IN_FEATURES .* names 'p5'.*MODEL\.HRFPN\.OUT_STRIDES"):
        build_model(load_config(CONFIG, [*SMALL, *words]))


@pytest.mark.parametrize(("stride", "level"), [(4, "p2"), (2, "p1"), (1, "p0")])
def test_one_map_trains_and_detects(stride, level):
    words = [
        "MODEL.HRFPN.OUT_STRIDES",
        f"[{stride}]",
        "MODEL.RETINANET.IN_FEATURES",
        f"['{level}']",
    ]
    model = build_model(load_config(SINGLE, [*SMALL, *words]))
    size = (64, 96)
    inputs = batch(random_instances(4, size), random_instances(0, size))
    seen = []
    model.branches.point.register_forward_hook(lambda *x: seen.append(x[-1].point_logits))
    losses = model(inputs)
    assert set(losses) == {"loss_point_cls", "loss_point_box_reg"}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert [tuple(x.shape[2:]) for x in seen[0]] == [(64 // stride, 96 // stride)]
    model.branches.point.score_thresh = 0.0
    found = model.eval()(inputs)[0]["instances"]
    assert len(found) > 0 and not found.pred_levels.any() and not found.pred_branches.any()


def test_norm_behind_each_convolution():
    backbone = build_model(load_config(CONFIG, [*SMALL, "MODEL.FPN.NORM", "GN"])).backbone
    kinds = [type(convolution.norm) for convolution in (backbone.reduction, *backbone.outputs)]
    assert kinds == [torch.nn.GroupNorm] * 6
    # Levels of a single cell too, which groups of one channel could not have.
    sum(x.sum() for x in backbone(torch.rand(1, 3, 32, 64)).values()).backward()
