"""DR loss (arXiv 1907.10156) of logits as they lie in memory."""

import math

import pytest
import torch
from reference import dr_loss as reference

from fsaf_d2.losses import (
    AnchorPlaces,
    RankingSettings,
    anchor_class_places,
    distributional_ranking,
    distributional_ranking_loss,
)
from fsaf_d2.losses.logits_memory import memory_index

NOTHING = torch.zeros(0, dtype=torch.int64)
OTHERS = RankingSettings(0.3, 0.2, 2.0, 3.0, 0.25)


def loss_of(logits, positives, ignored=(), settings=None):
    logits = torch.as_tensor(logits, dtype=torch.float64)
    places = [torch.tensor(x, dtype=torch.int64) for x in (positives, ignored)]
    args = ([logits], *([x] for x in places))
    return distributional_ranking_loss(*args, *([settings] if settings else []))


def dense(levels, positives, ignored, settings):
    """The equations over all scores at once."""
    scores = torch.cat([x.flatten() for x in levels]).sigmoid()
    starts = [0]
    for level in levels:
        starts.append(starts[-1] + level.numel())
    kinds = torch.zeros(len(scores), dtype=torch.int64)
    for kind, lists in ((1, positives), (2, ignored)):
        for start, index in zip(starts, lists):
            kinds[start + index] = kind
    negative, positive = scores[kinds == 0], scores[kinds == 1]
    n = (torch.softmax(negative / settings.lambda_negative, dim=0) * negative).sum()
    p = (torch.softmax(-positive / settings.lambda_positive, dim=0) * positive).sum()
    p = p if len(positive) else 1
    inner = torch.exp(settings.smoothness * (n - p + settings.margin))
    return settings.tau / settings.smoothness * torch.log(1 + inner)


def case(seed, dtype=torch.float64, shapes=((2, 6, 3, 4), (2, 6, 2, 2), (2, 6, 1, 1))):
    torch.manual_seed(seed)
    levels = [(torch.randn(shape, dtype=dtype) * 3).requires_grad_() for shape in shapes]
    positives, ignored = [], []
    for level in levels:
        order = torch.randperm(level.numel())
        positives.append(order[:3])
        ignored.append(order[3:8])
    return levels, positives, ignored


def test_the_cards_vectors():
    """lambda- = .1 / ln 3.5 = .0798236; n = .6173919, p = .6022413.

    4 / 6 ln(1 + exp(6 (.0151506 + .5))) = 2.0902407; without positives p = 1; with all scores .5
    4 / 6 ln(1 + exp(3)) = 2.0323916.
    """
    assert RankingSettings().lambda_negative == pytest.approx(0.0798236, abs=1e-7)
    negatives = [-1, 0.5, -2]
    assert loss_of([0, 1, *negatives], [0, 1]).item() == pytest.approx(2.0902407, abs=1e-7)
    assert loss_of(negatives, []).item() == pytest.approx(0.7373971, abs=1e-7)
    assert loss_of([0.0] * 9, [2, 5]).item() == pytest.approx(2.0323916, abs=1e-7)


def test_ignored_ones_are_no_negatives_and_may_be_anything():
    for value in (0.3, 50.0, float("inf"), float("nan")):
        logits = torch.tensor([value, 0, 1, -1, 0.5, -2]).double().requires_grad_()
        loss = loss_of(logits, [1, 2], [0])
        assert loss.item() == pytest.approx(2.0902407, abs=1e-7)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient[0] == 0 and torch.isfinite(gradient).all()


def test_without_negatives_their_expectation_is_nothing():
    logits = torch.tensor([0.0, 0.0, 9.0]).requires_grad_()
    loss = loss_of(logits, [0, 1], [2])
    assert loss.item() == pytest.approx(4 / 6 * math.log(2))  # p = .5 = margin
    assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


@pytest.mark.parametrize("settings", [RankingSettings(), OTHERS])
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_are_the_dense_ones(seed, settings):
    levels, positives, ignored = case(seed)
    if seed == 2:
        positives = [NOTHING] * 3
    loss = distributional_ranking_loss(levels, positives, ignored, settings)
    expected = dense(levels, positives, ignored, settings)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(2 * x, levels) for x in (loss, expected)]
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("counts", [(3, 40), (1, 30), (0, 20), (4, 0)])
def test_value_and_gradient_are_the_references(counts):
    torch.manual_seed(sum(counts))
    logits = (torch.randn(sum(counts), dtype=torch.float64) * 3).requires_grad_()
    positive = torch.randperm(len(logits))[: counts[0]]
    loss = distributional_ranking_loss([logits], [positive], [NOTHING])
    negative = torch.ones(len(logits), dtype=torch.bool).index_fill(0, positive, False)
    expected = reference.dr_loss(logits[positive], logits[negative])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = (torch.autograd.grad(x, logits)[0] for x in (loss, expected))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-14)


def test_gradients_are_the_differences():
    levels, positives, ignored = case(5)
    assert torch.autograd.gradcheck(
        lambda *x: distributional_ranking_loss(x, positives, ignored, OTHERS), levels
    )


def test_places_are_those_of_the_memory():
    levels, positives, ignored = case(1)
    moved = [x.detach().to(memory_format=torch.channels_last).requires_grad_() for x in levels]
    lists = []
    for places in (positives, ignored):
        indices = [torch.unravel_index(y, x.shape) for x, y in zip(levels, places)]
        lists.append([memory_index(x, *y) for x, y in zip(moved, indices)])
    settings = RankingSettings()
    loss = distributional_ranking_loss(moved, *lists)
    expected = dense(levels, positives, ignored, settings)
    torch.testing.assert_close(loss, expected)
    pairs = zip(torch.autograd.grad(loss, moved), torch.autograd.grad(expected, levels))
    for one, other in pairs:
        torch.testing.assert_close(one, other)
        assert one.is_contiguous(memory_format=torch.channels_last)


def test_pieces_change_nothing(monkeypatch):
    levels, positives, ignored = case(2)
    expected = distributional_ranking_loss(levels, positives, ignored)
    monkeypatch.setattr("fsaf_d2.losses.distributional_ranking.CPU_CHUNK", 7)
    loss = distributional_ranking_loss(levels, positives, ignored)
    torch.testing.assert_close(loss, expected)
    pairs = zip(torch.autograd.grad(loss, levels), torch.autograd.grad(expected, levels))
    for one, other in pairs:
        torch.testing.assert_close(one, other)


def test_logits_are_left_as_they_are():
    for dtype in (torch.float32, torch.float64):
        levels, positives, ignored = case(3, dtype)
        before = [x.detach().clone() for x in levels]
        distributional_ranking_loss(levels, positives, ignored).backward()
        assert all(torch.equal(x, y) for x, y in zip(levels, before))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_computed_in_float32(dtype):
    levels, positives, ignored = case(4, dtype)
    loss = distributional_ranking_loss(levels, positives, ignored)
    wide = [x.detach().double().requires_grad_() for x in levels]
    expected = dense(wide, positives, ignored, RankingSettings())
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-6)
    found = torch.autograd.grad(loss, levels)
    for one, other in zip(found, torch.autograd.grad(expected, wide)):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=1e-2, atol=1e-6)


def test_a_lambda_near_nothing_makes_it_the_worst_scores():
    """exp(score / .0001) is beyond any number: only what is below the highest counts."""
    settings = RankingSettings(lambda_positive=1e-4, lambda_negative=1e-4)
    logits = torch.tensor([2.0, 0.0, -3.0, 1.0, -9.0, 30.0]).double()
    found = loss_of(logits, [0, 1], [5], settings).item()
    worst = torch.tensor(1.0).double().sigmoid() - 0.5 + 0.5
    assert found == pytest.approx(4 / 6 * math.log(1 + math.exp(6 * worst)), rel=1e-9)
    low = torch.full((1000,), -20.0).double()
    assert loss_of(low, [], (), settings).item() == pytest.approx(
        4 / 6 * math.log(1 + math.exp(-3))
    )


def test_logits_with_gaps_are_refused():
    with pytest.raises(ValueError, match="dense"):
        distributional_ranking_loss([torch.rand(4, 6)[:, ::2]], [NOTHING], [NOTHING])


def test_places_of_classes_are_those_of_logits_without_gaps():
    """Anchor 1 of (2, 3) in image 1, class 4 of 5; all classes of anchor 0 of (0, 1) in image 0."""
    logits = torch.randn(2, 2 * 5, 4, 12)[..., ::2]
    positive = AnchorPlaces(*torch.tensor([[1, 1, 2, 3]]).T)
    ignored = AnchorPlaces(*torch.tensor([[0, 0, 0, 1]]).T)
    ((level, one, others),) = anchor_class_places(
        [logits], [positive], torch.tensor([4]), [ignored], num_classes=5
    )
    assert torch.equal(level, logits)
    assert level.flatten()[one].tolist() == [logits[1, 9, 2, 3]]
    assert torch.equal(level.flatten()[others], logits[0, :5, 0, 1])


def test_nothing_of_the_logits_size_is_kept_for_the_gradient():
    logits = torch.zeros(1, 80, 200, 100).requires_grad_()
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        distributional_ranking_loss([logits], [NOTHING], [NOTHING])
    assert sizes.count(logits.numel()) == 1 and sum(sizes) < logits.numel() + 100
    assert logits.numel() > distributional_ranking.CPU_CHUNK
