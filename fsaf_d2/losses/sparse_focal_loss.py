"""Focal loss of dense logits with few labels, summed (RetinaNet, arXiv 1708.02002, Eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from .logits_memory import in_memory_order, on_cpu, require_dense

# Elements computed at a time on a CPU, so that the steps in between stay in its cache.
CHUNK = 1 << 18


def sparse_focal_loss_sum(
    logits: Tensor, positives: Tensor, ignored: Tensor, *, alpha: float, gamma: float
) -> Tensor:
    """Sum the sigmoid focal loss of logits that are background unless they are listed.

    Every logit is read once forward and once backward; nothing of its size is kept in between.
    Computed in float32 whatever the logits' type.

    Args:
        logits: any shape, dense in memory, see :func:`dense`.
        positives: (P,) places of objects' logits in memory, see :func:`memory_index`; each once.
        ignored: (I,) places of logits without loss or gradient; each once, none of them positive.
        alpha: weight of objects, 1 - alpha of background; a negative one means no weights.
        gamma: focusing parameter, 0 or more.

    Returns:
        scalar.

    Raises:
        ValueError: the logits are not dense in memory.
    """
    require_dense(logits)
    labels = torch.cat([torch.ones_like(positives), -torch.ones_like(ignored)])
    return _SparseFocalLossSum.apply(
        logits, torch.cat([positives, ignored]), labels[:, None], None, alpha, gamma
    )


def plane_focal_loss_sum(
    logits: Tensor,
    planes: Tensor,
    labels: Tensor,
    *,
    background_losses: Tensor,
    alpha: float,
    gamma: float,
) -> Tensor:
    """Sum the sigmoid focal loss of logits that are background unless their plane says otherwise.

    Args:
        logits: (N, K, R), contiguous.
        planes: (U,) image * K + class of the planes that hold something else; each once.
        labels: (U, R) integers, 1 object, -1 neither loss nor gradient, 0 background.
        background_losses: :func:`background_loss_sums` of the logits.
        alpha, gamma: see :func:`sparse_focal_loss_sum`.

    Returns:
        scalar.

    Raises:
        ValueError: the logits are not contiguous.
    """
    if not logits.is_contiguous():
        raise ValueError(f"Logits of strides {logits.stride()} are not contiguous.")
    if on_cpu(labels):
        # Few logits are labelled. On a GPU, listing them would mean to wait for their number.
        plane, location = labels.nonzero(as_tuple=True)
        labels = labels[plane, location][:, None]
        planes = planes[plane] * logits.shape[2] + location
    return _SparseFocalLossSum.apply(logits, planes, labels, background_losses, alpha, gamma)


@torch.no_grad()
def background_loss_sums(logits: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Focal loss of locations without an object, summed over classes: (N, K, R) -> (N, R)."""
    total = torch.zeros_like(logits[:, 0], dtype=torch.float32)
    size = max(CHUNK // total.numel(), 1) if on_cpu(logits) else logits.shape[1]
    for part in logits.split(size, dim=1):
        total += background_loss(part.float(), gamma).sum(dim=1)
    return total.mul_(label_weight(alpha, 0))


def focal_loss(logits: Tensor, label: int, *, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss of every logit for one label, 0 or 1, in float32.

    Args:
        logits: any shape.
        alpha, gamma: see :func:`sparse_focal_loss_sum`.

    Returns:
        the shape of the logits.
    """
    # An object's loss is the background's with the sign of the logit turned.
    turned = -logits.float() if label == 1 else logits.float()
    return background_loss(turned, gamma).mul_(label_weight(alpha, label))


class _SparseFocalLossSum(torch.autograd.Function):
    """Takes the logits' memory as a matrix of which ``labels`` (T, width) are those of ``rows``."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        logits: Tensor,
        rows: Tensor,
        labels: Tensor,
        background_losses: Tensor | None,
        alpha: float,
        gamma: float,
    ) -> Tensor:
        ctx.save_for_backward(logits, rows, labels)
        ctx.alpha, ctx.gamma = alpha, gamma
        flat = in_memory_order(logits)
        if background_losses is None:
            total = torch.zeros((), dtype=torch.float64, device=logits.device)
            for chunk in _chunks(flat):
                total += background_loss(chunk.float(), gamma).sum()
            total *= label_weight(alpha, 0)
        else:
            total = background_losses.sum(dtype=torch.float64)
        labelled = flat.view(-1, labels.shape[1])[rows].float()
        no_background = background_loss(labelled, gamma).masked_fill_(labels == 0, 0)
        objects = background_loss(-labelled, gamma).masked_fill_(labels != 1, 0)
        total -= label_weight(alpha, 0) * no_background.sum(dtype=torch.float64)
        total += label_weight(alpha, 1) * objects.sum(dtype=torch.float64)
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor):
        logits, rows, labels = ctx.saved_tensors
        flat = in_memory_order(logits)
        # It keeps the logits' memory order, so that the same places hold.
        gradient = torch.empty_like(logits)
        flat_gradient = in_memory_order(gradient)
        scale = grad_output * label_weight(ctx.alpha, 0)
        for chunk, chunk_gradient in zip(_chunks(flat), _chunks(flat_gradient)):
            torch.mul(background_slope(chunk.float(), ctx.gamma), scale, out=chunk_gradient)

        is_object = labels == 1
        labelled = flat.view(-1, labels.shape[1])[rows].float()
        slope = background_slope(torch.where(is_object, -labelled, labelled), ctx.gamma)
        slope *= torch.where(is_object, -grad_output * label_weight(ctx.alpha, 1), scale)
        slope.masked_fill_(labels < 0, 0)
        rows_gradient = flat_gradient.view(-1, labels.shape[1])
        rows_gradient.index_copy_(0, rows, slope.to(gradient.dtype))
        return gradient, None, None, None, None, None


def _chunks(flat: Tensor) -> tuple[Tensor, ...]:
    return flat.split(CHUNK) if on_cpu(flat) else (flat,)


def label_weight(alpha: float, label: int) -> float:
    if alpha < 0:
        return 1.0
    return alpha if label == 1 else 1 - alpha


def background_loss(x: Tensor, gamma: float) -> Tensor:
    """p^gamma (-ln(1 - p))."""
    return F.softplus(x).mul_(_power(torch.sigmoid(x), gamma))


def background_slope(x: Tensor, gamma: float) -> Tensor:
    """Derivative of :func:`background_loss`: p^gamma (p + gamma (1 - p) (-ln(1 - p)))."""
    p = torch.sigmoid(x)
    inner = torch.addcmul(p, F.softplus(x), 1 - p, value=gamma)
    return inner.mul_(_power(p, gamma))


def _power(p: Tensor, gamma: float) -> Tensor:
    return p.square_() if gamma == 2 else p.pow_(gamma)
