import pytest
import torch

from fsaf_d2.layers.group_norm import group_norm


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(256, 32), (64, 32), (32, 8), (24, 6), (18, 3), (16, 4), (4, 1), (3, 1), (1, 1), (100, 25)],
)
def test_groups_of_group_norm(channels, groups):
    assert group_norm(channels).num_groups == groups
    # An image's coarsest map may have a single cell.
    if channels // groups > 1:
        assert group_norm(channels)(torch.randn(1, channels, 1, 1)).isfinite().all()
