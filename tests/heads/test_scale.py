import pytest
import torch

from fsaf_d2.heads.scale import LevelScales


def test_every_level_has_a_factor_of_its_own():
    scales = LevelScales(3)
    maps = [torch.full((1, 4, 2, 2), float(i)) for i in (1, 2, 3)]
    assert all(torch.equal(one, other) for one, other in zip(scales(maps), maps))
    for parameter, value in zip(scales.parameters(), (2.0, 5.0, -1.0), strict=True):
        torch.nn.init.constant_(parameter, value)
    assert [x.unique().tolist() for x in scales(maps)] == [[2.0], [10.0], [-3.0]]


def test_a_factor_learns_from_its_level_alone():
    """d(sum of factor * x) / d(factor) is the sum of x: 16 ones, and none elsewhere."""
    scales = LevelScales(2)
    scales([torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 1, 1)])[0].sum().backward()
    assert [p.grad if p.grad is None else p.grad.item() for p in scales.scales] == [16.0, None]


def test_other_numbers_of_levels_are_refused():
    with pytest.raises(ValueError, match="zip"):
        LevelScales(3)([torch.ones(1)] * 2)
