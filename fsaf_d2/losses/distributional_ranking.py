"""DR loss: the worst of the background ranks below the worst of the objects (arXiv 1907.10156).

In place of single scores two expectations are ranked: that of negatives' scores, under the
distribution that is worst for the ranking but not far from uniform, and likewise that of positives'
(Eq. 8). Both distributions are softmaxes of the scores.

Letters: P positives of a level; I ignored ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from .logits_memory import in_memory_order, on_cpu, require_dense, wide

# Scores computed at a time: on a CPU so that the steps in between stay in its cache, on a GPU so
# that they take little memory beside the scores themselves.
CPU_CHUNK, GPU_CHUNK = 1 << 18, 1 << 23


class RankingSettings(NamedTuple):
    """The parameters of the loss; the defaults are those of the paper (Sec. 4)."""

    lambda_positive: float = 1.0  # the more, the more even is the distribution of positives
    lambda_negative: float = 0.1 / math.log(3.5)  # likewise of negatives
    tau: float = 4.0  # weight of the loss
    smoothness: float = 6.0  # L: the more, the more like a hinge is the loss
    margin: float = 0.5  # by which positives are to rank above negatives


DEFAULT_RANKING = RankingSettings()


def distributional_ranking_loss(
    logits: Sequence[Tensor],
    positives: Sequence[Tensor],
    ignored: Sequence[Tensor],
    settings: RankingSettings = DEFAULT_RANKING,
) -> Tensor:
    """tau / L ln(1 + exp(L (n - p + margin))), n and p being the expectations of scores.

    n = sum_j softmax_j(n_j / lambda_negative) n_j, p = sum_i softmax_i(-p_i / lambda_positive) p_i,
    over the sigmoids n_j, p_i of all negatives and all positives; gradients go through the
    softmaxes as well. Without positives p is 1; without negatives n is 0. The loss is divided by
    nothing. Every logit is read once forward and once backward; nothing of their size is kept in
    between, and nothing waits for a GPU.

    Args:
        logits: of each level, of any shape and dense in memory, see :func:`dense`. What is in
            neither of the lists is a negative.
        positives: (P,) of each level, places in its memory, see :func:`memory_index`; each once.
        ignored: (I,) of each level, likewise; none of them is positive.

    Returns:
        scalar.

    Raises:
        ValueError: logits are not dense in memory.
    """
    for level in logits:
        require_dense(level)
    num_levels = len(logits)
    return _Ranking.apply(settings, num_levels, *logits, *positives, *ignored)


class _Ranking(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, settings: RankingSettings, num_levels: int, *tensors) -> Tensor:
        levels, positives, ignored = _thirds(tensors, num_levels)
        highest, total, n = _negatives(levels, positives, ignored, settings.lambda_negative)
        scores = [in_memory_order(x)[index] for x, index in zip(levels, positives)]
        scores = torch.cat(scores).double().sigmoid()
        share = torch.softmax(-scores / settings.lambda_positive, dim=0)
        p = (share * scores).sum() if len(scores) else n.new_ones(())
        z = settings.smoothness * (n - p + settings.margin)
        # Derivatives by the logits: of p at its positives, and of the loss by n.
        of_p = share * (1 - (scores - p) / settings.lambda_positive) * scores * (1 - scores)
        of_n = settings.tau * torch.sigmoid(z)
        ctx.save_for_backward(*tensors, highest, total, n, of_p, of_n)
        ctx.settings, ctx.num_levels = settings, num_levels
        return (settings.tau / settings.smoothness * F.softplus(z)).to(wide(levels[0]))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor):
        *tensors, highest, total, n, of_p, of_n = ctx.saved_tensors
        levels, positives, ignored = _thirds(tensors, ctx.num_levels)
        scale = of_n * grad_output
        of_positives = (-scale * of_p).split([len(index) for index in positives])
        gradients = []
        for level, index, without, of_level in zip(levels, positives, ignored, of_positives):
            # It keeps the logits' memory order, so that the same places hold.
            gradient = torch.empty_like(level)
            flat = in_memory_order(gradient)
            for x, slope in zip(_chunks(in_memory_order(level)), _chunks(flat)):
                score = x.to(wide(x)).sigmoid()
                away = (score - highest).div_(ctx.settings.lambda_negative)
                factor = 1 + (highest - n) / ctx.settings.lambda_negative + away
                factor *= away.exp_() * score * (1 - score)
                slope.copy_(factor * (scale / total))
            flat.index_copy_(0, index, of_level.to(flat.dtype))
            flat.index_fill_(0, without, 0)
            gradients.append(gradient)
        return None, None, *gradients, *([None] * (2 * ctx.num_levels))


def _negatives(
    levels: Sequence[Tensor],
    positives: Sequence[Tensor],
    ignored: Sequence[Tensor],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The highest score m of negatives, the sum of exp((score - m) / scale), and the expectation.

    All are scalars in float64.
    """
    parts = []
    for level, *lists in zip(levels, positives, ignored):
        listed, start = torch.cat(lists), 0
        for chunk in _chunks(in_memory_order(level)):
            size = len(chunk)
            here = (listed >= start) & (listed < start + size)
            if on_cpu(here):
                index = listed[here] - start
                score = chunk.to(wide(chunk)).sigmoid()
            else:
                # One place more, for what is listed elsewhere: finding out would mean to wait.
                index = torch.where(here, listed - start, size)
                score = F.pad(chunk.to(wide(chunk)).sigmoid(), (0, 1))
            highest = score.index_fill_(0, index, 0).amax()
            weight = score.sub(highest).div_(scale).exp_().index_fill_(0, index, 0)
            weight[size:] = 0
            total = weight.sum(dtype=torch.float64)
            mean = weight.mul_(score).sum(dtype=torch.float64)
            parts.append(torch.stack([highest.double(), total, mean]))
            start += size
    highests, totals, means = torch.stack(parts, dim=1)
    highest = highests.amax()
    shares = ((highests - highest) / scale).exp()
    total = (totals * shares).sum()
    counts = [sum(x.numel() for x in xs) for xs in (levels, positives, ignored)]
    if counts[0] == counts[1] + counts[2]:
        return highest, torch.ones_like(total), torch.zeros_like(total)
    return highest, total, (means * shares).sum() / total


def _chunks(flat: Tensor) -> tuple[Tensor, ...]:
    return flat.split(CPU_CHUNK if on_cpu(flat) else GPU_CHUNK)


def _thirds(tensors: Sequence[Tensor], size: int) -> list[Sequence[Tensor]]:
    return [tensors[i * size : (i + 1) * size] for i in range(3)]
