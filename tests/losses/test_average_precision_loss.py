import itertools
import multiprocessing
import sys
import time
from pathlib import Path

import pytest
import torch
from reference.ap_loss import ap_loss

from fsaf_d2 import losses

module = sys.modules[losses.average_precision_loss.__module__]


def average_precision_loss(scores, positives, ignored, **delta):
    """Of one level."""
    return losses.average_precision_loss([scores], [positives], [ignored], **delta)


@pytest.fixture(params=["cpu", "gpu"])
def way(request, monkeypatch):
    """How it is computed on a CPU, and how on a GPU, here on the CPU as well."""
    if request.param == "gpu":
        monkeypatch.setattr(module, "on_cpu", lambda _tensor: False)


def loss_and_gradients(positives, negatives, delta=1.0, dtype=torch.float64):
    """The loss, and the gradients of positives and negatives."""
    scores = torch.cat([torch.as_tensor(x, dtype=dtype) for x in (positives, negatives)])
    scores.requires_grad_()
    count = len(positives)
    nothing = torch.tensor([], dtype=torch.int64)
    loss = average_precision_loss(scores, torch.arange(count), nothing, delta=delta)
    loss.backward()
    return loss.item(), scores.grad[:count], scores.grad[count:]


def assert_equal_to_pairs(positives, negatives, delta=1.0):
    """The same as the reference, which compares pair by pair."""
    loss, of_positives, of_negatives = loss_and_gradients(positives, negatives, delta)
    (total, count), *gradients = ap_loss(positives.tolist(), negatives.tolist(), delta)
    assert loss == pytest.approx(total / count, abs=1e-12)
    for found, expected in zip((of_positives, of_negatives), gradients):
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)


# METHODS card 4.2: the paper's code gives these, with d = 1. In the first, the positive at 0 has
# itself and the other above it, 2.0, and of the negatives H(.5) + H(-.5) = 1: precision 2/3; that
# at 1 has 1.0 and H(-.5) = .25: 0.8. The mean loss is .2666667, and the gradients of the positives
# are the halves of 1/3 and .2.
VECTORS = [
    ([1, 0], [0.5, -0.5, -3], 0.2666667, [-0.1, -0.1666667], [0.225, 0.0416667, 0]),
    ([2, -1], [1, 0], 0.25, [0, -0.25], [0.125, 0.125]),
    ([3], [-3, -4], 0, [0], [0, 0]),
    # Without interpolation the loss would be .4423077.
    ([0, 3], [4.2, -0.5, -2], 0.3846154, [-0.1923077, -0.1923077], [0.3461539, 0.0384615, 0]),
]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("positives", "negatives", "loss", "first", "second"), VECTORS)
def test_numbers_of_the_papers_code(positives, negatives, loss, first, second):
    found = loss_and_gradients(positives, negatives)
    assert found[0] == pytest.approx(loss, abs=1e-7)
    assert found[1].tolist() == pytest.approx(first, abs=1e-7)
    assert found[2].tolist() == pytest.approx(second, abs=1e-7)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("delta", [0.01, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("spread", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("counts", [(1, 1), (1, 200), (40, 0), (40, 900), (300, 30)])
def test_lines_give_what_all_pairs_give(counts, spread, delta):
    positives, negatives = (torch.randn(n, dtype=torch.float64) * spread for n in counts)
    assert_equal_to_pairs(positives, negatives, delta)
    assert_equal_to_pairs(positives, negatives - 2 * spread, delta)


@pytest.mark.usefixtures("way")
def test_ties():
    """Of positives, of negatives, of both, and of scores at the ends of ramps."""
    for low, high in ((-1, 2), (-4, 5), (0, 1)):
        positives, negatives = (torch.randint(low, high, (n,)).double() for n in (30, 500))
        assert_equal_to_pairs(positives, negatives)
        assert_equal_to_pairs(positives, negatives / 2)


@pytest.mark.usefixtures("way")
def test_pieces_make_no_difference(monkeypatch):
    positives, negatives = torch.randn(20).double(), torch.randn(1000).double() * 3 - 3
    expected = loss_and_gradients(positives, negatives)
    for size in (1, 7, 1020):
        monkeypatch.setattr(module, "CPU_CHUNK", size)
        monkeypatch.setattr(module, "GPU_CHUNK", size)
        found = loss_and_gradients(positives, negatives)
        assert found[0] == pytest.approx(expected[0], rel=1e-12)
        for one, other in zip(found[1:], expected[1:]):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-15)


def test_a_table_too_small_for_the_ends_makes_no_difference(monkeypatch):
    """One positive far off puts all others into one cell."""
    monkeypatch.setattr(module, "MAX_CELLS", 50)
    positives = torch.randn(40).double()
    positives[3] = 5000.0
    assert_equal_to_pairs(positives, torch.randn(500).double())


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_sum_to_0(dtype):
    for count in (1, 50):
        scores = torch.randn(count), torch.randn(5000) * 2 - 2
        _, first, second = loss_and_gradients(*scores, dtype=dtype)
        assert first.sum() < -0.1 and (first <= 0).all() and (second >= 0).all()
        assert abs(first.double().sum() + second.double().sum()) < (
            1e-12 if dtype == torch.float64 else 1e-6
        )


@pytest.mark.usefixtures("way")
def test_a_negative_below_all_ramps_has_no_gradient_at_all():
    """The lowest positive is at -0.25, so up to -1.25; above 2, all is as there."""
    negatives = torch.tensor([-1.26, -1.25, -50, -torch.inf, -1.24, 2.0, 60, torch.inf])
    _, _, gradient = loss_and_gradients([1.0, -0.25], negatives)
    assert not gradient[:4].any() and (gradient[4:] > 0).all()
    assert gradient[5] == gradient[6] == gradient[7]


@pytest.mark.usefixtures("way")
def test_a_ranking_in_order_is_left_alone():
    loss, first, second = loss_and_gradients(torch.rand(30) + 3, torch.rand(900) - 1)
    assert loss == 0 and not first.any() and not second.any()


@pytest.mark.usefixtures("way")
def test_a_ranking_upside_down():
    """The rank of either positive is H(0) = .5 twice and a half: precision 1.5 / (1.5 + 900)."""
    loss, first, second = loss_and_gradients([-5.0, -5.0], torch.full((900,), 5.0))
    assert loss == pytest.approx(1 - 1.5 / 901.5)
    assert first.tolist() == pytest.approx([-loss / 2] * 2)
    assert second.tolist() == pytest.approx([loss / 900] * 900)


def test_the_order_changes_nothing():
    scores, order = torch.randn(400).double(), torch.randperm(400)
    positives, ignored = torch.randperm(400)[:60].split([25, 35])
    results = []
    for values, places, without in (
        (scores, positives, ignored),
        (scores, positives.flip(0), ignored.roll(5)),
        (scores[order], order.argsort()[positives], order.argsort()[ignored]),
    ):
        leaf = values.clone().requires_grad_()
        loss = average_precision_loss(leaf, places, without)
        loss.backward()
        results.append((loss.item(), leaf.grad))
    assert results[0][0] == pytest.approx(results[1][0]) == pytest.approx(results[2][0])
    torch.testing.assert_close(results[1][1], results[0][1])
    torch.testing.assert_close(results[2][1][order.argsort()], results[0][1])


def test_a_shift_of_all_scores_changes_nothing():
    positives, negatives = torch.randn(20).double(), torch.randn(300).double()
    expected = loss_and_gradients(positives, negatives)
    found = loss_and_gradients(positives - 40, negatives - 40)
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    torch.testing.assert_close(found[2], expected[2])


@pytest.mark.usefixtures("way")
def test_the_ignored_are_not_there():
    """Wherever they lie, and whatever they say."""
    positives, negatives = torch.randn(20).double(), torch.randn(300).double()
    expected = loss_and_gradients(positives, negatives)
    ignored = torch.tensor([30.0, -1, float("nan"), float("inf"), 0.2], dtype=torch.float64)
    scores = torch.cat([ignored, positives, negatives]).requires_grad_()
    loss = average_precision_loss(scores, torch.arange(5, 25), torch.arange(5))
    loss.backward()
    assert loss.item() == pytest.approx(expected[0])
    assert not scores.grad[:5].any()
    torch.testing.assert_close(scores.grad[5:], torch.cat(expected[1:]))


@pytest.mark.usefixtures("way")
def test_float32_is_float64_up_to_rounding():
    positives, negatives = torch.randn(50), torch.randn(20_000) * 2 - 4
    exact = loss_and_gradients(positives, negatives)
    found = loss_and_gradients(positives, negatives, dtype=torch.float32)
    assert found[0] == pytest.approx(exact[0], rel=1e-6)
    for one, other in zip(found[1:], exact[1:]):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("ignored", [[], [1, 2]])
def test_without_a_positive_the_loss_is_0_and_still_has_a_gradient(ignored):
    scores = torch.randn(5, requires_grad=True)
    nothing = torch.tensor([], dtype=torch.int64)
    loss = average_precision_loss(scores, nothing, torch.tensor(ignored, dtype=torch.int64))
    loss.backward()
    assert loss == 0 and scores.grad is not None and not scores.grad.any()


def test_positives_alone_have_a_loss_of_0():
    loss, gradient, _ = loss_and_gradients([1.0, -1.0, 0.3], [])
    assert loss == 0 and not gradient.any()


def test_the_gradient_is_scaled_as_any():
    scores = torch.randn(50).requires_grad_()
    grads = []
    for factor in (1.0, -2.5):
        loss = average_precision_loss(scores, torch.arange(4), torch.arange(4, 9))
        grads.append(torch.autograd.grad(factor * loss, scores)[0])
    torch.testing.assert_close(grads[1], -2.5 * grads[0])


def test_the_scores_stay_as_they_are_and_a_loss_needs_no_gradient():
    scores = torch.randn(50, dtype=torch.float64)
    before = scores.clone()
    loss = average_precision_loss(scores, torch.arange(4), torch.arange(4, 9))
    assert torch.equal(scores, before) and not loss.requires_grad
    leaf = scores.clone().requires_grad_()
    with torch.no_grad():
        assert average_precision_loss(leaf, torch.arange(4), torch.arange(4, 9)) == loss
    average_precision_loss(leaf, torch.arange(4), torch.arange(4, 9)).backward()
    assert torch.equal(leaf.detach(), before)


def test_what_has_no_gradient_takes_no_time_for_it(monkeypatch):
    monkeypatch.setattr(module, "_update", None)
    assert average_precision_loss(torch.randn(50), torch.arange(4), torch.arange(4, 9)) > 0


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
def test_odd_scores_stop_nothing(value):
    """A negative that is not a number shows in the loss; one without end does no harm."""
    for place in (0, 7):
        scores = torch.randn(100)
        scores[place::2] = value
        scores.requires_grad_()
        loss = average_precision_loss(scores, torch.arange(6), torch.arange(6, 7))
        loss.backward()
        assert torch.isfinite(loss) or place == 0 or value != value
        assert torch.isnan(loss) or value == value


@pytest.mark.usefixtures("way")
def test_one_odd_negative_is_seen_or_harmless():
    for value, is_finite in (("nan", False), ("inf", True), ("-inf", True)):
        loss, _, gradient = loss_and_gradients([1.0, -1.0], [0.5, float(value)])
        assert torch.isfinite(torch.tensor(loss)) == is_finite
        assert torch.isfinite(gradient).all() or not is_finite


def large_step(answers) -> None:
    """Of 200,000 anchors and 80 classes, as they are before training: time, memory, gradient."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    scores = (torch.randn(200_000 * 80) * 0.05 - 4.6).requires_grad_()
    positives, ignored = torch.randperm(len(scores))[:200_000].split([5_000, 195_000])
    small = scores[:1000].detach().requires_grad_()
    average_precision_loss(small, torch.arange(9), torch.arange(9, 20)).backward()
    before, start = peak_memory(), time.perf_counter()
    average_precision_loss(scores, positives, ignored).backward()
    seconds = time.perf_counter() - start
    answers.put((peak_memory() - before, seconds, scores.grad.double().sum().item()))


def peak_memory() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_a_step_of_200_000_anchors_and_80_classes():
    """16 million scores are 61 MiB; a matrix of all pairs would have 80 billion entries."""
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=large_step, args=(answers,))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == 0
    memory, seconds, total = answers.get()
    # The copy that becomes the gradient, the bins, and the gradient times that of the loss.
    assert memory < 4 * 61.1
    assert seconds < 20 and abs(total) < 1e-5


def test_levels_are_one_ranking_and_their_gradients_lie_as_they_do():
    """Mixed up over levels of all memory orders, one without a positive, one of one score."""
    whole = torch.randn(2 * 6 * 3 * 4 + 50 + 1, dtype=torch.float64)
    positives, ignored = torch.randperm(len(whole))[:60].split([25, 35])
    expected = whole.clone().requires_grad_()
    loss = average_precision_loss(expected, positives, ignored)
    loss.backward()
    shaped, tail, last = whole.split([144, 50, 1])
    levels = [shaped.view(2, 3, 4, 6).permute(0, 3, 1, 2), tail.view(5, 10), last]
    levels = [x.clone().requires_grad_() for x in levels]
    assert levels[0].is_contiguous(memory_format=torch.channels_last)
    bounds = [0, 144, 194, 195]
    parts = [
        [x[(x >= low) & (x < high)] - low for low, high in itertools.pairwise(bounds)]
        for x in (positives, ignored)
    ]
    found = module.average_precision_loss(levels, *parts)
    found.backward()
    assert found.item() == pytest.approx(loss.item())
    assert levels[0].grad.stride() == levels[0].stride()
    flat = [levels[0].grad.permute(0, 2, 3, 1), levels[1].grad, levels[2].grad]
    torch.testing.assert_close(torch.cat([x.flatten() for x in flat]), expected.grad)


def test_levels_with_gaps_are_refused():
    nothing = [torch.tensor([], dtype=torch.int64)]
    with pytest.raises(ValueError, match="not dense in memory"):
        module.average_precision_loss([torch.randn(4, 6)[:, ::2]], nothing, nothing)


def test_the_last_end_of_all_ramps_is_not_behind_the_table():
    """In float32 a score there may round up, where it did not in float64."""
    for _ in range(200):
        positives, negatives = torch.randn(3) * 5, torch.full((4,), 100.0)
        loss, _, _ = loss_and_gradients(positives, negatives, dtype=torch.float32)
        assert 0 < loss < 1
