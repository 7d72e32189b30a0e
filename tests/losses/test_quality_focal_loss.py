import pytest
import torch
from torch.nn import functional as F

from fsaf_d2.losses import AnchorPlaces, quality_focal_loss, quality_focal_loss_sums

K = 5


# METHODS [D], beta 2.
@pytest.mark.parametrize(
    ("logit", "quality", "expected"),
    [(0.5, 0.7, 0.0037523), (0.0, 0.5, 0.0), (-2.0, 0.0, 0.0018036), (1.0, 0.9, 0.0117950)],
)
def test_vectors(logit, quality, expected):
    loss = quality_focal_loss(torch.tensor(logit), torch.tensor(quality), beta=2.0)
    assert loss.item() == pytest.approx(expected, abs=1e-7)


def case(memory_format=torch.contiguous_format):
    """Two levels of two anchors, places of positives, and the dense targets."""
    logits, targets, places, classes, quality = [], [], [], [], []
    for size in ((5, 7), (3, 4)):
        shape = (2, 2 * K, *size)
        logits.append((torch.randn(shape) * 3).to(memory_format=memory_format).requires_grad_())
        image, anchor, y, x = torch.cartesian_prod(*map(torch.arange, (2, 2, *size))).unbind(1)
        chosen = torch.randperm(len(image))[:9]
        place = AnchorPlaces(*(index[chosen] for index in (image, anchor, y, x)))
        label, target = torch.randint(K, (9,)), torch.rand(9)
        dense = torch.zeros(shape)
        dense[place.image, place.anchor * K + label, place.y, place.x] = target
        targets.append(dense)
        places.append(place)
        classes.append(label)
        quality.append(target)
    return logits, places, torch.cat(classes), torch.cat(quality), targets


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0, 2.5])
def test_value_and_gradient_are_the_dense_ones(memory_format, beta):
    logits, places, classes, quality, targets = case(memory_format)
    found = quality_focal_loss_sums(logits, places, classes, quality, num_classes=K, beta=beta)
    for loss, level, target in zip(found, logits, targets):
        s = level.sigmoid()
        entropy = -(1 - target) * F.logsigmoid(-level) - target * F.logsigmoid(level)
        expected = ((target - s).abs() ** beta * entropy).sum()
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        gradients = [torch.autograd.grad(2 * x, level)[0] for x in (loss, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_without_positives_everything_is_background():
    logits, places, *_ = case()
    none = [AnchorPlaces(*(index[:0] for index in place)) for place in places]
    nothing = torch.zeros(0)
    found = quality_focal_loss_sums(logits, none, nothing.long(), nothing, num_classes=K, beta=2.0)
    expected = [quality_focal_loss(x, torch.zeros_like(x), beta=2.0).sum() for x in logits]
    torch.testing.assert_close(found, expected)


def test_large_logits_have_finite_losses_and_gradients():
    logits = torch.tensor([-1e4, -90.0, 90.0, 1e4], requires_grad=True)
    for quality in (0.0, 0.5, 1.0):
        loss = quality_focal_loss(logits, torch.full((4,), quality), beta=2.0)
        assert torch.isfinite(loss).all()
        assert torch.isfinite(torch.autograd.grad(loss.sum(), logits)[0]).all()
