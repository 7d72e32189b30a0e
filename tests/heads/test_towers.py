import pytest
import torch

from fsaf_d2.heads.towers import ConvTowers


def test_convolutions_before_a_norm_can_do_without_biases():
    towers = ConvTowers(in_channels=8, conv_dims=[8, 8], num_levels=2, norm="GN", bias=False)
    names = [name for name, _ in towers.cls_subnet.named_parameters()]
    assert names == [
        f"{i}.{x}" for i in (0, 1, 3, 4) for x in ("weight", "bias") if i % 3 or x == "weight"
    ]
    found = towers([torch.rand(1, 8, 4, 4)] * 2)
    assert [len(x) for x in found] == [2, 2]


def test_neither_norm_nor_bias_is_refused():
    with pytest.raises(ValueError, match=r"MODEL\.TOWERS\.BIAS False needs a norm"):
        ConvTowers(in_channels=8, conv_dims=[8], num_levels=1, bias=False)
