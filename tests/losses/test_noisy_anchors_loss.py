"""Soft labels, weights and the focal loss of noisy anchors (arXiv 1912.05086)."""

import math
import sys

import pytest
import torch
from fvcore.nn import sigmoid_focal_loss
from models import NUM_CLASSES

from fsaf_d2.losses import (
    AnchorPlaces,
    noisy_anchors_focal_loss,
    reweighted_sum,
    soft_labels_and_weights,
)

module = sys.modules[noisy_anchors_focal_loss.__module__]
FOCAL = {"alpha": 0.5, "gamma": 2.0}


def labels_and_weights(ious, scores, image=None, num_images=1, mix=0.75):
    image = torch.zeros(len(ious), dtype=torch.int64) if image is None else torch.tensor(image)
    ious, scores = torch.tensor(ious).double(), torch.tensor(scores).double()
    found = soft_labels_and_weights(ious, scores, image, num_images=num_images, mix=mix)
    return [x.tolist() for x in found]


def test_the_cards_vector():
    """Means .7 and 1/3: quality .75 (.9, .7, .5) / .7 + .25 (.6, .3, .1) / (1/3).

    = (1.414286, .975, .610714), from .7 to 1: .7 + .3 (.975 - .610714) / .803571 = .836.
    1 / (1 - IoU) = (10, 3.333, 2), 1 / (1 - score) = (2.5, 1.428571, 1.111111).
    """
    soft, weights = labels_and_weights([0.9, 0.7, 0.5], [0.6, 0.3, 0.1])
    assert soft == pytest.approx([1.0, 0.836, 0.7], abs=1e-6)
    assert weights == pytest.approx([1.839439, 0.701729, 0.458833], abs=1e-6)
    assert sum(weights) / 3 == pytest.approx(1)


def test_each_image_has_its_own():
    """Mixed up, and an image between them without any."""
    one = labels_and_weights([0.9, 0.7, 0.5], [0.6, 0.3, 0.1])
    two = labels_and_weights([0.2, 0.4], [0.1, 0.7])
    found = labels_and_weights(
        [0.9, 0.2, 0.7, 0.4, 0.5], [0.6, 0.1, 0.3, 0.7, 0.1], [2, 0, 2, 0, 2], num_images=4
    )
    for both, first, second in zip(found, one, two):
        assert [both[0], both[2], both[4]] == pytest.approx(first)
        assert [both[1], both[3]] == pytest.approx(second)


@pytest.mark.parametrize("count", [1, 3])
def test_equal_ones_are_all_the_best(count):
    soft, weights = labels_and_weights([0.4] * count, [0.1] * count)
    assert soft == [1] * count and weights == pytest.approx([1] * count)


@pytest.mark.parametrize(("ious", "scores"), [([0.0, 0.0], [0.2, 0.4]), ([0.3, 0.6], [0.0, 0.0])])
def test_where_all_are_nothing_the_other_decides(ious, scores):
    soft, weights = labels_and_weights(ious, scores)
    assert soft == pytest.approx([sum(ious) / 2, 1])
    assert all(map(math.isfinite, weights)) and sum(weights) == pytest.approx(2)


def test_no_positives_at_all():
    assert labels_and_weights([], [], num_images=2) == [[], []]


@pytest.mark.parametrize(("iou", "score"), [(1.0, 0.5), (0.5, 1.0), (1.0, 1.0), (1 + 1e-6, 0.5)])
def test_a_perfect_one_has_a_finite_weight(iou, score):
    """1 / 1e-6 beside 1 / .5: nearly all of the image's, which is 3, by its share."""
    _, weights = labels_and_weights([iou, 0.5, 0.5], [score, 0.5, 0.5])
    assert sum(weights) == pytest.approx(3)
    expected = 1 + 2 * (0.75 * (iou >= 1) + 0.25 * (score >= 1))
    assert weights[0] == pytest.approx(expected, abs=1e-4)


def test_the_mix_is_the_share_of_the_iou():
    soft, weights = labels_and_weights([0.8, 0.2], [0.1, 0.5], mix=1.0)
    assert soft == pytest.approx([1, 0.5]) and weights == pytest.approx([1.6, 0.4])
    soft, weights = labels_and_weights([0.8, 0.2], [0.1, 0.5], mix=0.0)
    assert soft == pytest.approx([0.5, 1])
    assert weights == pytest.approx([10 / 14, 18 / 14])  # 1 / .9 and 1 / .5


def test_nothing_learns_by_labels_and_weights():
    ious, scores = (torch.rand(4, requires_grad=True) for _ in range(2))
    image = torch.zeros(4, dtype=torch.int64)
    found = soft_labels_and_weights(ious, scores, image, num_images=1, mix=0.75)
    assert not any(x.requires_grad for x in found)


def loss_of_one(logits, soft, **focal):
    """Of one anchor alone, an object of class 0."""
    place = [AnchorPlaces(*torch.zeros(4, 1, dtype=torch.int64))]
    args = place, torch.tensor([0]), torch.tensor([soft]), torch.tensor([1.0])
    return noisy_anchors_focal_loss(
        [logits[None, :, None, None]], *args, num_classes=len(logits), **focal
    )


@pytest.mark.parametrize(("alpha", "gamma"), [(0.5, 2.0), (0.25, 1.5), (-1, 2.0)])
def test_it_is_the_focal_loss_for_hard_labels_and_between_them_for_others(alpha, gamma):
    for x in (torch.randn(9) * 4).split(3):
        hard = [sigmoid_focal_loss(x[0], torch.tensor(y), alpha, gamma) for y in (1.0, 0.0)]
        rest = sigmoid_focal_loss(x[1:], torch.zeros(2), alpha, gamma).sum()
        for y in (1.0, 0.0, 0.3):
            found = loss_of_one(x, y, alpha=alpha, gamma=gamma)
            expected = y * hard[0] + (1 - y) * hard[1] + rest
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("logit", "share"), [(-200.0, 0.6), (200.0, 0.4)])
def test_large_logits_have_finite_losses(logit, share):
    logits = torch.tensor([logit, -300.0], requires_grad=True)
    loss = loss_of_one(logits, 0.6, **FOCAL)
    assert loss.item() == pytest.approx(0.5 * share * 200)
    loss.backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[0] != 0


def test_weights_change_gradients_but_not_the_sum_of_an_image():
    """Losses 1, 2 with weights 3, .5 and a rest of 4: 8 in place of 7, so all times 7 / 8.

    Of another image, .05 with weight 2 and a rest of .01: 6 / 11. A third has a rest alone.
    """
    losses = torch.tensor([1.0, 0.05, 2.0], requires_grad=True)
    rest = torch.tensor([4.0, 0.01, 9.0], requires_grad=True)
    image = torch.tensor([0, 1, 0])
    total = reweighted_sum(losses, torch.tensor([3.0, 2.0, 0.5]), image, rest)
    total.backward()
    assert total.item() == pytest.approx(7 + 0.06 + 9)
    torch.testing.assert_close(rest.grad, torch.tensor([7 / 8, 6 / 11, 1]))
    torch.testing.assert_close(losses.grad, torch.tensor([3 * 7 / 8, 12 / 11, 0.5 * 7 / 8]))


def test_losses_of_nothing_are_nothing():
    losses = torch.zeros(2, requires_grad=True)
    total = reweighted_sum(losses, torch.ones(2), torch.tensor([0, 0]), torch.zeros(2))
    total.backward()
    assert total == 0 and torch.isfinite(losses.grad).all()


@pytest.mark.parametrize("chunk", [1 << 18, 1, 17, 100])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_value_and_gradient_are_those_of_dense_losses(memory_format, chunk, monkeypatch):
    """Weights are of an anchor, for the losses of all its classes."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    torch.manual_seed(0)
    levels = [
        (torch.randn(2, 3 * NUM_CLASSES, *size) * 2).to(memory_format=memory_format)
        for size in ((4, 5), (2, 3))
    ]
    levels = [x.requires_grad_() for x in levels]
    places = [
        AnchorPlaces(*torch.tensor([[0, 2, 1, 4], [1, 0, 3, 0], [1, 1, 3, 0]]).T),
        AnchorPlaces(*torch.tensor([[1, 2, 0, 2]]).T),
    ]
    classes = torch.tensor([0, 6, 3, 2])
    soft, weights = torch.tensor([1.0, 0.4, 0.7, 0.9]), torch.tensor([0.2, 2.5, 1.3, 0.6])
    loss = noisy_anchors_focal_loss(
        levels, places, classes, soft, weights, num_classes=NUM_CLASSES, **FOCAL
    )
    plain = weighted = first = 0
    for level, (image, anchor, y, x) in zip(levels, places):
        by_class = level.unflatten(1, (3, NUM_CLASSES))
        targets, factors = torch.zeros_like(by_class), torch.ones_like(by_class)
        for i in range(len(image)):
            place = image[i], anchor[i], slice(None), y[i], x[i]
            targets[place][classes[first + i]] = soft[first + i]
            factors[place] = weights[first + i]
        p = by_class.sigmoid()
        losses = -targets * 0.5 * (1 - p) ** 2 * p.log()
        losses = losses - (1 - targets) * 0.5 * p**2 * (1 - p).log()
        plain = plain + losses.flatten(1).sum(dim=1)
        weighted = weighted + (losses * factors).flatten(1).sum(dim=1)
        first += len(image)
    torch.testing.assert_close(loss, plain.sum(), rtol=1e-5, atol=0)
    expected = (weighted * (plain / weighted).detach()).sum()
    expected = torch.autograd.grad(expected, levels)
    for one, other in zip(torch.autograd.grad(loss, levels), expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_logits_with_gaps_in_memory():
    logits = torch.randn(2, 3 * NUM_CLASSES, 4, 10)[..., ::2]
    places = [AnchorPlaces(*torch.tensor([[1, 2, 3, 4]]).T)]
    args = (places, torch.tensor([5]), torch.tensor([0.7]), torch.tensor([1.0]))
    found, expected = (
        noisy_anchors_focal_loss([x], *args, num_classes=NUM_CLASSES, **FOCAL)
        for x in (logits, logits.contiguous())
    )
    torch.testing.assert_close(found, expected)
