"""Numbers of METHODS for AutoAssign, and properties of its sums over bags."""

import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou
from fvcore.nn import giou_loss

from fsaf_d2.losses.autoassign_loss import (
    bag_losses,
    bag_shares,
    best_ious,
    center_prior,
    prior_losses,
    prior_table,
)
from fsaf_d2.losses.iou_loss import paired_giou
from fsaf_d2.losses.product_focal_loss import product_background_loss_sum

ONE_BAG = torch.zeros(3, dtype=torch.int64)
P = torch.tensor([0.6, 0.2, 0.05], dtype=torch.float64)
G = (-torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)).exp()


def test_the_loss_of_a_bag():
    """exp(3P) G: 6.0496, 1.8221 * .6065 = 1.1052, 1.1618 * .1353 = .1572; weights are their shares.

    w = .827353, .151144, .021504, and .6 * .827353 + .2 * .151144 + .05 * .021504 = .527715.
    """
    assert bag_losses(P, G, ONE_BAG, 1).item() == pytest.approx(0.639198, abs=1e-6)
    # As a check of the weights themselves: a bag's derivative by G_i is w_i (P_i - bag) / G_i.
    prior = G.clone().requires_grad_()
    bag_losses(P, prior, ONE_BAG, 1).sum().backward()
    w = torch.tensor([0.827353, 0.151144, 0.021504], dtype=torch.float64)
    expected = -w * (P - 0.527715) / G / 0.527715
    torch.testing.assert_close(prior.grad, expected, rtol=1e-4, atol=1e-6)


def test_confidence_within_the_weights_has_a_gradient():
    """d bag / d P_i = w_i (1 + 3 (P_i - bag)), where weights that were constants gave w_i."""
    confidence = P.clone().requires_grad_()
    bag_losses(confidence, G, ONE_BAG, 1).sum().backward()
    w = torch.tensor([0.827353, 0.151144, 0.021504], dtype=torch.float64)
    expected = -w * (1 + 3 * (P - 0.527715)) / 0.527715
    torch.testing.assert_close(confidence.grad, expected, rtol=1e-4, atol=1e-6)


def test_bags_do_not_mix():
    bag = torch.tensor([1, 0, 0, 1, 0, 1])
    losses = bag_losses(P.repeat_interleave(2), G.repeat_interleave(2), bag, 2)
    for index in range(2):
        mine = bag == index
        alone = bag_losses(P.repeat_interleave(2)[mine], G.repeat_interleave(2)[mine], ONE_BAG, 1)
        torch.testing.assert_close(losses[index], alone[0])


def test_a_bag_that_finds_nothing_has_a_finite_loss_and_gradient():
    confidence = torch.zeros(3, requires_grad=True)
    loss = bag_losses(confidence, torch.zeros(3), ONE_BAG, 1).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(confidence.grad).all()


def test_shares_of_a_bag():
    """1 / (1 - IoU): 10, 2.5, 1.4286; less 1.4286, over 8.5714: 1, .125, 0."""
    shares = bag_shares(torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64), ONE_BAG, 1)
    torch.testing.assert_close(1 - shares, torch.tensor([0.0, 0.875, 1.0]).double())


def test_shares_are_stretched_within_each_bag():
    iou, bag = torch.tensor([0.9, 0.2, 0.6, 0.1, 0.3]).double(), torch.tensor([0, 1, 0, 1, 0])
    shares = bag_shares(iou, bag, 2)
    torch.testing.assert_close(shares, torch.tensor([1.0, 1, 0.125, 0, 0]).double())


@pytest.mark.parametrize("ious", [[0.4], [0.0, 0.0], [1.0, 1.0]])
def test_locations_that_are_all_alike_are_the_objects(ious):
    bag = torch.zeros(len(ious), dtype=torch.int64)
    assert bag_shares(torch.tensor(ious), bag, 1).tolist() == [1.0] * len(ious)


def test_a_perfect_box_leaves_the_others_nothing():
    shares = bag_shares(torch.tensor([1.0, 0.9, 0.0]), ONE_BAG, 1)
    assert shares[0] == 1 and (shares[1:] < 1e-6).all()


def test_the_centre_prior():
    """d = (1, -2), mu = (.5, 0), sigma = (1, 2): exp(-.5^2 / 2) exp(-2^2 / 8) = exp(-.625).

    Class 1 of two; a box of centre (40, 64) px, on stride 8 at (5, 8), on 16 at (2.5, 4).
    """
    mean, sigma = torch.tensor([[9.0, 9], [0.5, 0]]), torch.tensor([[9.0, 9], [1, 2]])
    centers = torch.tensor([[[5.0, 2.5]], [[8.0, 4.0]]])  # (2, one bag, two levels)
    table = prior_table(centers, mean, sigma, torch.tensor([1]))
    points = torch.tensor([[6.0, 3.5], [6.0, 2.0]])
    prior = center_prior(points, *table.split(2))
    torch.testing.assert_close(prior, torch.full((2,), -0.625).exp())


def test_the_loss_of_priors():
    """Three bags: two of the first image with the sum 1.5 + 2.5, one of another with 0.5.

    The first has two objects, the other one.
    """
    losses = prior_losses(
        torch.tensor([1.5, 0.5, 2.5]), torch.tensor([0, 1, 0]), torch.tensor([2, 1])
    )
    assert losses.tolist() == [0.5, 2.0]


def test_the_loss_of_priors_that_vanish_is_finite():
    sums = torch.zeros(1, requires_grad=True)
    loss = prior_losses(sums, torch.tensor([0]), torch.tensor([2])).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(sums.grad).all()


def random_boxes(count: int) -> torch.Tensor:
    low, size = torch.rand(2, count, 2, dtype=torch.float64) * 5
    return torch.cat([low, low + size], dim=1)


def test_giou_is_fvcores():
    boxes, targets = random_boxes(40), random_boxes(40)
    giou = paired_giou(boxes.T, targets.T)
    torch.testing.assert_close(1 - giou, giou_loss(boxes, targets), rtol=1e-5, atol=1e-6)


def test_giou_of_a_box_of_no_size_has_a_finite_gradient():
    boxes = torch.tensor([[1.0, 1, 1, 1]]).T.requires_grad_()
    giou = paired_giou(boxes, torch.tensor([[0.0, 0, 4, 4]]).T)
    giou.sum().backward()
    assert giou.item() == 0 and torch.isfinite(boxes.grad).all()


@pytest.mark.parametrize("chunk", [1 << 18, 50])
def test_the_best_iou_is_that_with_any_object_of_the_image(chunk, monkeypatch):
    monkeypatch.setattr("fsaf_d2.losses.autoassign_loss.CHUNK", chunk)
    boxes, targets = random_boxes(3 * 20), random_boxes(9)
    found = best_ious(boxes.T.reshape(4, 3, 20), targets.T, [7, 0, 2])
    expected = torch.zeros(3, 20, dtype=torch.float64)
    iou = pairwise_iou(Boxes(boxes), Boxes(targets)).view(3, 20, 9)
    expected[0], expected[2] = iou[0, :, :7].amax(dim=1), iou[2, :, 7:].amax(dim=1)
    torch.testing.assert_close(found, expected)


def test_the_best_iou_with_boxes_of_no_size_is_0():
    flat = torch.tensor([[1.0, 1, 1, 1]]).T
    assert best_ious(flat[:, None], torch.cat([flat, flat + 1], dim=1), [2]).tolist() == [[0.0]]


NONE = torch.zeros(0, dtype=torch.int64)


def background(logits, objectness, planes=NONE, shares=None, gamma=2.0):
    shares = logits.new_zeros(0, logits.shape[2]) if shares is None else shares
    return product_background_loss_sum(logits, objectness, planes, shares, gamma=gamma)


def test_the_loss_of_a_product():
    """sigmoid(a) = .8, sigmoid(b) = .5, share .2: p = .32, .32^2 * -ln .68 = .0394918."""
    logit, objectness = torch.tensor([[[0.8]]]).logit(), torch.tensor([[0.5]]).logit()
    loss = background(logit, objectness, torch.tensor([0]), torch.tensor([[0.2]]))
    assert loss.item() == pytest.approx(0.0394918, abs=1e-6)


@pytest.mark.parametrize("gamma", [2.0, 0.0, 1.5])
def test_the_sum_is_that_of_all_written_out(gamma, monkeypatch):
    monkeypatch.setattr("fsaf_d2.losses.product_focal_loss.CHUNK", 64)  # several chunks
    logits = torch.randn(2, 7, 20, dtype=torch.float64).requires_grad_()
    objectness = torch.randn(2, 20, dtype=torch.float64).requires_grad_()
    planes = torch.tensor([0, 3, 4, 5, 6, 9, 13])
    shares = torch.rand(7, 20, dtype=torch.float64)
    everywhere = torch.zeros(14, 20, dtype=torch.float64)
    everywhere[planes] = shares
    p = logits.sigmoid() * objectness.sigmoid()[:, None] * (1 - everywhere.view(2, 7, 20))
    expected = -(p**gamma * (1 - p).log()).sum()
    found = background(logits, objectness, planes, shares, gamma)
    torch.testing.assert_close(found, expected)
    leaves = logits, objectness
    for one, other in zip(
        torch.autograd.grad(3 * found, leaves), torch.autograd.grad(3 * expected, leaves)
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("value", [30.0, 1e4, -1e4, float("inf"), -float("inf")])
def test_large_logits_have_a_finite_gradient(value):
    logits = torch.full((1, 2, 3), value, requires_grad=True)
    objectness = torch.full((1, 3), value, requires_grad=True)
    background(logits, objectness).backward()
    assert torch.isfinite(logits.grad).all() and torch.isfinite(objectness.grad).all()


def test_sure_mistakes_cost_what_they_should():
    """Both logits 12: 1 - p = 2 sigmoid(-12) - sigmoid(-12)^2, far below what 1 - p rounds to."""
    logits, objectness = torch.full((1, 1, 1), 12.0), torch.full((1, 1), 12.0)
    miss = torch.tensor(-12.0, dtype=torch.float64).sigmoid()
    expected = -((1 - miss) ** 4) * (2 * miss - miss**2).log()
    assert background(logits, objectness).item() == pytest.approx(expected.item(), rel=1e-6)
