import math

import pytest
import torch

from fsaf_d2.losses import distribution_focal_loss, expected_bin

BINS = torch.arange(17.0)
PEAK = torch.zeros(17)
PEAK[4], PEAK[5] = 3.0, 2.0


# METHODS [D].
def test_vectors():
    target = torch.tensor(4.3)
    uniform = distribution_focal_loss(torch.zeros(17), target)
    assert uniform.item() == pytest.approx(math.log(17), abs=1e-6)
    assert distribution_focal_loss(PEAK, target).item() == pytest.approx(1.0489061, abs=1e-6)
    assert expected_bin(PEAK, BINS).item() == pytest.approx(5.7513777, abs=1e-5)


def test_the_nearer_bin_has_the_larger_share():
    """0.7 of ln(p4), 0.3 of ln(p5); the gradient is softmax - shares."""
    logits = torch.randn(17, dtype=torch.float64, requires_grad=True)
    loss = distribution_focal_loss(logits, torch.tensor(4.3, dtype=torch.float64))
    p = logits.detach().softmax(0)
    assert loss.item() == pytest.approx(-0.7 * math.log(p[4]) - 0.3 * math.log(p[5]))
    shares = torch.zeros(17, dtype=torch.float64)
    shares[4], shares[5] = 0.7, 0.3
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], p - shares)


def test_whole_targets_are_one_bins_and_the_last_bin_is_reached():
    logits = torch.randn(3, 17)
    loss = distribution_focal_loss(logits, torch.tensor([0.0, 7.0, 15.9]))
    log_p = logits.log_softmax(1)
    expected = [-log_p[0, 0], -log_p[1, 7], -0.1 * log_p[2, 15] - 0.9 * log_p[2, 16]]
    torch.testing.assert_close(loss, torch.stack(expected))


def test_the_mean_of_a_sharp_distribution_is_its_bin():
    logits = torch.full((17, 17), -100.0).fill_diagonal_(100.0)
    torch.testing.assert_close(expected_bin(logits, BINS), BINS)
