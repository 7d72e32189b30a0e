"""Focal loss of scores that are products of two probabilities, where nothing is to be found.

Letters: N images; K classes; R locations of one image over all levels; U planes, each of an image
and a class. Of a location's class score sigmoid(a), its objectness sigmoid(b), and the share s of
it that is an object's, the score p = sigmoid(a) sigmoid(b) (1 - s) costs p^gamma (-ln(1 - p)).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .sparse_focal_loss import CHUNK


def product_background_loss_sum(
    logits: Tensor, objectness: Tensor, planes: Tensor, shares: Tensor, *, gamma: float
) -> Tensor:
    """Sum the loss of all scores, each a product (AutoAssign, arXiv 2007.03496, Sec. 3.4).

    Every logit is read once forward and once backward; nothing of their size is kept in between.

    Args:
        logits: (N, K, R), contiguous.
        objectness: (N, R), logits.
        planes: (U,) image * K + class of the planes with shares, rising; on the CPU.
        shares: (U, R), 0 to 1, without gradient; 0 in all other planes.
        gamma: focusing parameter, 0 or more.

    Returns:
        scalar.
    """
    return _ProductLossSum.apply(logits, objectness, shares, planes, gamma)


class _ProductLossSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        logits: Tensor,
        objectness: Tensor,
        shares: Tensor,
        planes: Tensor,
        gamma: float,
    ) -> Tensor:
        ctx.save_for_backward(logits, objectness, shares, planes)
        ctx.gamma = gamma
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for scores in _chunks(logits, objectness, shares, planes):
            power = _power(scores.p, gamma)
            total -= power.mul_(scores.n.log()).sum(dtype=torch.float64)
        return total.to(logits.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor):
        logits, objectness, shares, planes = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        rows = gradient.flatten(0, 1)
        objectness_gradient = torch.zeros_like(objectness)
        for scores in _chunks(logits, objectness, shares, planes):
            # p' = p sigmoid(-a), and so for b.
            slope = (scores.p / scores.n).sub_(scores.n.log(), alpha=ctx.gamma)
            slope.mul_(_power(scores.p, ctx.gamma)).mul_(grad_output)
            rows.index_copy_(0, scores.planes, slope * scores.not_a)
            objectness_gradient.index_add_(0, scores.images, slope.mul_(scores.not_b))
        return gradient, objectness_gradient, None, None, None


class _Scores:
    """Of some planes: p and n = 1 - p, and what their slopes need, all (C, R)."""

    def __init__(
        self, planes: Tensor, images: Tensor, logits: Tensor, b: Tensor, not_b: Tensor
    ) -> None:
        self.planes, self.images = planes, images
        rows = logits.flatten(0, 1).index_select(0, planes)
        self.not_a = (-rows).sigmoid_()
        self.p = rows.sigmoid_()
        self.not_b = not_b.index_select(0, images)
        # 1 - p as a sum of what is not below 0, so that it is exact where p is nearly 1.
        self.n = torch.addcmul(self.not_a, self.p, self.not_b)
        self.p.mul_(b.index_select(0, images))

    def without(self, shares: Tensor) -> _Scores:
        """The same for planes with shares (C, R)."""
        self.n.addcmul_(self.p, shares)
        self.p.mul_(1 - shares)
        return self


def _chunks(
    logits: Tensor, objectness: Tensor, shares: Tensor, planes: Tensor
) -> Iterator[_Scores]:
    num_images, num_classes, num_locations = logits.shape
    is_other = torch.ones(num_images * num_classes, dtype=torch.bool)
    is_other[planes] = False
    others = is_other.nonzero().squeeze(1)
    size = max(CHUNK // max(num_locations, 1), 1) if logits.device.type == "cpu" else len(is_other)
    b, not_b = objectness.sigmoid(), (-objectness).sigmoid()
    tiny = torch.finfo(logits.dtype).tiny
    for kind in (others, planes):
        for start in range(0, len(kind), size):
            part = kind[start : start + size]
            part, image = torch.stack([part, part // num_classes]).to(
                logits.device, non_blocking=True
            )
            scores = _Scores(part, image, logits, b, not_b)
            if kind is planes:
                scores.without(shares[start : start + size])
            scores.n.clamp_(min=tiny)
            yield scores


def _power(p: Tensor, gamma: float) -> Tensor:
    return p.square() if gamma == 2 else p.pow(gamma)
