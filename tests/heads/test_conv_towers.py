import pytest
import torch
from models import tiny_model
from torch import nn

from fsaf_d2.heads.towers import ConvTowers


def towers(norm: str) -> ConvTowers:
    return ConvTowers(in_channels=8, conv_dims=[8, 8], num_levels=2, norm=norm)


@pytest.mark.parametrize(("norm", "kinds"), [("", []), ("GN", [nn.GroupNorm])])
def test_both_towers_have_the_norm_behind_every_convolution(norm, kinds):
    expected = [nn.Conv2d, *kinds, nn.ReLU] * 2
    built = towers(norm)
    for tower in (built.cls_subnet, built.bbox_subnet):
        assert [type(layer) for layer in tower] == expected


def test_each_tower_gives_its_own_maps_of_all_levels():
    built = towers("GN")
    levels = [torch.randn(1, 8, 4, 4), torch.randn(1, 8, 2, 2)]
    class_features, box_features = built(levels)
    for level, one, other in zip(levels, class_features, box_features, strict=True):
        assert torch.equal(one, built.cls_subnet(level))
        assert torch.equal(other, built.bbox_subnet(level))
        assert not torch.equal(one, other)


def test_their_depth_is_that_of_the_config():
    for count in (1, 3):
        built = tiny_model("MODEL.RETINANET.NUM_CONVS", str(count)).towers
        for tower in (built.cls_subnet, built.bbox_subnet):
            assert sum(isinstance(layer, nn.Conv2d) for layer in tower) == count


def test_initial_weights_are_retinanets():
    """N(0, 0.01), and no bias (arXiv 1708.02002, Sec. 4.1)."""
    built = ConvTowers(in_channels=32, conv_dims=[32], num_levels=1)
    for conv in (built.cls_subnet[0], built.bbox_subnet[0]):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
        assert not conv.bias.any()
