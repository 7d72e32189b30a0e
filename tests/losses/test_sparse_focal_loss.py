import pytest
import torch
from fvcore.nn import sigmoid_focal_loss

from fsaf_d2.losses import focal_loss, sparse_focal_loss_sum
from fsaf_d2.losses.logits_memory import dense as compact
from fsaf_d2.losses.logits_memory import memory_index

FOCAL = {"alpha": 0.25, "gamma": 2.0}


def case(shape=(2, 12, 5, 7), memory_format=torch.contiguous_format):
    """Logits, and distinct places of positives and of ignored ones, with dense masks of both."""
    logits = (torch.randn(shape) * 3).to(memory_format=memory_format)
    order = torch.randperm(logits.numel())
    chosen = torch.zeros(logits.numel())
    chosen[order[:20]], chosen[order[20:90]] = 1, 2
    chosen = chosen.view(shape)
    places = [memory_index(logits, *(chosen == kind).nonzero(as_tuple=True)) for kind in (1, 2)]
    return logits.requires_grad_(), *places, chosen == 1, chosen == 2


def dense(logits, positive, ignored, alpha, gamma):
    losses = sigmoid_focal_loss(logits, positive.float(), alpha=alpha, gamma=gamma)
    return losses.masked_fill(ignored, 0).sum()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.5), (-1, 2.0), (0.5, 0.0)])
def test_value_and_gradient_are_the_dense_ones(memory_format, alpha, gamma):
    logits, positives, ignored, *masks = case(memory_format=memory_format)
    loss = sparse_focal_loss_sum(logits, positives, ignored, alpha=alpha, gamma=gamma)
    expected = dense(logits, *masks, alpha, gamma)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(2 * x, logits)[0] for x in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_weight_of_nothing(alpha):
    logits, positives, ignored, *masks = case()
    loss = sparse_focal_loss_sum(logits, positives, ignored, alpha=alpha, gamma=2.0)
    torch.testing.assert_close(loss, dense(logits, *masks, alpha, 2.0), rtol=1e-6, atol=0)
    assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


def test_ignored_logits_have_exactly_no_gradient():
    logits, positives, ignored, _, mask = case()
    sparse_focal_loss_sum(logits, positives, ignored, **FOCAL).backward()
    assert (logits.grad[mask] == 0).all() and (logits.grad[~mask] != 0).all()


def test_chunks_change_nothing(monkeypatch):
    logits, positives, ignored, *_ = case()
    expected = sparse_focal_loss_sum(logits, positives, ignored, **FOCAL)
    (gradient,) = torch.autograd.grad(expected, logits)
    monkeypatch.setattr("fsaf_d2.losses.sparse_focal_loss.CHUNK", 37)
    loss = sparse_focal_loss_sum(logits, positives, ignored, **FOCAL)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], gradient)


def test_half_precision_is_computed_in_float32():
    logits, positives, ignored, *_ = case()
    half = logits.detach().bfloat16().requires_grad_()
    loss = sparse_focal_loss_sum(half, positives, ignored, **FOCAL)
    single = sparse_focal_loss_sum(half.float(), positives, ignored, **FOCAL)
    assert loss.dtype == torch.float32 and torch.equal(loss, single)
    assert torch.autograd.grad(loss, half)[0].dtype == torch.bfloat16


def test_logits_with_gaps_in_memory_are_refused():
    gaps = torch.randn(2, 12, 5, 14)[..., ::2]
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="dense"):
        sparse_focal_loss_sum(gaps, none, none, **FOCAL)
    loss = sparse_focal_loss_sum(compact(gaps), none, none, **FOCAL)
    nothing = torch.zeros_like(gaps, dtype=torch.bool)
    torch.testing.assert_close(loss, dense(gaps, nothing, nothing, **FOCAL))


def test_extreme_logits_have_finite_loss_and_gradient():
    logits = torch.tensor([-1e4, 1e4, -1e4, 1e4, 90.0, -90.0], requires_grad=True)
    loss = sparse_focal_loss_sum(logits, torch.tensor([2, 3]), torch.tensor([4]), **FOCAL)
    # -ln p: 1e4 for the background at 1e4 and the object at -1e4
    assert loss.item() == pytest.approx(0.75e4 + 0.25e4)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.tolist() == pytest.approx([0, 0.75, -0.25, 0, 0, 0])


def test_an_infinite_logit_of_the_wrong_side_is_seen():
    loss = sparse_focal_loss_sum(
        torch.tensor([float("inf"), 0.0]), torch.tensor([1]), torch.tensor([], dtype=int), **FOCAL
    )
    assert not torch.isfinite(loss)


@pytest.mark.parametrize("label", [0, 1])
def test_one_label_for_all(label):
    logits = torch.randn(40) * 4
    expected = sigmoid_focal_loss(logits, torch.full_like(logits, label), 0.25, 2.0)
    torch.testing.assert_close(focal_loss(logits, label, **FOCAL), expected)
