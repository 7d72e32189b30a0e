"""AP loss: one minus the average precision of a ranking of scores (arXiv 1904.06373).

Of scores s, those of positives i and of negatives j are compared by H(x) = clip(x / 2d + 1/2, 0, 1)
(Sec. 3.4). The terms L_ij say how far j outranks i, and are what the scores are pushed by in place
of a derivative: the error-driven update (Sec. 3.2).

The paper compares all pairs. Here, H being made of straight lines, the sum over all j is one of few
lines for every i, and the sum over all i one of few lines for every j. With z = s - min s_i + d,
the ramp of positive i rises from z = y_i to y_i + 2d, where y_i = s_i - min s_i. The 2P ends of the
ramps part the scores into 2P bins, in each of which no ramp begins or ends: how many negatives are
in a bin, and the sum of their z, is all that the positives need of them.

Letters: T scores; P positives; I ignored ones; Q any scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .logits_memory import in_memory_order, on_cpu, require_dense

# Scores computed at a time: on a CPU so that the steps in between stay in its cache, on a GPU so
# that they do not take much more memory than the scores themselves.
CPU_CHUNK, GPU_CHUNK = 1 << 16, 1 << 22
# Cells of the table that bins are looked up in, for each bin, and at the most.
CELLS_PER_BIN, MAX_CELLS = 64, 1 << 19


def average_precision_loss(
    logits: Sequence[Tensor],
    positives: Sequence[Tensor],
    ignored: Sequence[Tensor],
    *,
    delta: float = 1.0,
) -> Tensor:
    """1 - mean interpolated precision at the positives, with the error-driven update as gradient.

    The scores of all levels are one ranking. Every score that is not listed is a negative. The
    gradients of a step sum to 0. Nothing waits for a GPU; it takes O(T + P) memory and
    O((T + P) log P) time, less on a CPU.

    Args:
        logits: of each level, of any shape and dense in memory, see :func:`dense`: T in all.
        positives: (P,) of each level, places in its memory, see :func:`memory_index`; each once.
        ignored: (I,) of each level, likewise, of scores that are not ranked; none is positive.
        delta: half of the width, in logits, over which a comparison goes from 0 to 1.

    Returns:
        scalar; 0, with a gradient of 0, where there is no positive.

    Raises:
        ValueError: logits are not dense in memory.
    """
    for level in logits:
        require_dense(level)
    without = [torch.cat(pair) for pair in zip(positives, ignored, strict=True)]
    return _AveragePrecisionLoss.apply(delta, *logits, *positives, *without)


class _AveragePrecisionLoss(torch.autograd.Function):
    """Takes logits, places of positives, and places of all that is no negative, of each level."""

    @staticmethod
    def forward(ctx: FunctionCtx, delta: float, *tensors: Tensor) -> Tensor:
        size = len(tensors) // 3
        levels, positives, listed = (tensors[i * size : (i + 1) * size] for i in range(3))
        counts = [len(places) for places in positives]
        wants_gradient = any(ctx.needs_input_grad)
        if sum(counts) == 0:
            ctx.save_for_backward(*(torch.zeros_like(level) for level in levels))
            return levels[0].new_zeros(())
        # What is no negative is put below all ramps, where nothing counts or has a gradient.
        flat = [in_memory_order(level) for level in levels]
        below = [x.index_fill(0, places, -torch.inf) for x, places in zip(flat, listed)]
        scores = torch.cat([x[places] for x, places in zip(flat, positives)])
        scores, order = scores.double().sort()
        ramps = Ramps.of(scores, delta)
        precision, weights, bins = _rank(ramps, below, wants_gradient)
        if wants_gradient:
            _update(ramps, weights, below, bins)
            at_positives = torch.empty_like(precision)
            at_positives[order] = (precision - 1) / len(precision)
            for x, places, values in zip(below, positives, at_positives.split(counts)):
                x.index_copy_(0, places, values.to(x.dtype))
            pairs = zip(below, levels)
            ctx.save_for_backward(*(x.as_strided(y.shape, y.stride()) for x, y in pairs))
        return (1 - precision.mean()).to(levels[0].dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor):
        gradients = ctx.saved_tensors
        return None, *(grad_output * x for x in gradients), *([None] * (2 * len(gradients)))


class Ramps(NamedTuple):
    """H(s - s_i) of P positives as functions of s, all in float64."""

    lowest: Tensor  # scalar, the lowest s_i
    starts: Tensor  # (P,) the z where a ramp is 0, rising; the first is 0
    width: float  # 2d
    ends: Tensor  # (2P,) the z where ramps begin or end, rising
    first: Tensor  # (P,) the bin where a ramp begins
    last: Tensor  # (P,) the bin from which on it is 1
    cells: Tensor | None  # the bin of scores in a cell, -1 where ends part it; on a CPU alone
    cells_per_unit: Tensor | None  # of z

    @classmethod
    def of(cls, scores: Tensor, delta: float) -> Ramps:
        """Describe the ramps of positives' scores (P,), rising, in float64."""
        starts, width = scores - scores[0], 2 * delta
        stops = starts + width
        ends = torch.cat([starts, stops]).sort().values
        # What is not a number is behind all, and must not be behind the last bin.
        last_bin = len(ends) - 1
        first, last = (torch.searchsorted(ends, x).clamp(max=last_bin) for x in (starts, stops))
        ramps = cls(scores[0] - delta, starts, width, ends, first, last, None, None)
        if not on_cpu(scores):
            return ramps
        num_cells = min(len(ends) * CELLS_PER_BIN, MAX_CELLS)
        ramps = ramps._replace(cells_per_unit=num_cells / ends[-1])
        # One more, as scores of lower precision may be rounded to behind the last end.
        counts = torch.bincount(ramps.cell_of(ends[1:]), minlength=num_cells + 2)
        # An end in an earlier cell is below all scores of a cell, whatever was rounded.
        cells = (counts.cumsum(0) - counts).masked_fill_(counts > 0, -1)
        return ramps._replace(cells=cells.int())

    def cell_of(self, z: Tensor) -> Tensor:
        """The cell of each z (Q,), rising with it, up to that of the last end."""
        return (z * self.cells_per_unit.to(z.dtype)).nan_to_num_(nan=0).int()

    def position(self, scores: Tensor) -> Tensor:
        """The z of scores (Q,), as far as ramps reach, in their type."""
        lowest, end = (x.to(scores.dtype) for x in (self.lowest, self.ends[-1]))
        # Ramps are continuous: rounding moves what a score counts by as little as itself.
        z = (scores - lowest).clamp_(min=0)
        return torch.minimum(z, end, out=z)

    def bin_of(self, z: Tensor) -> Tensor:
        """The bin in 0..2P-1 of each z (Q,), int32."""
        inner = self.ends[1:].to(z.dtype)
        if self.cells is None:
            return torch.bucketize(z, inner, right=True, out_int32=True)
        # Searching takes a CPU ten times as long as looking up.
        bins = self.cells.index_select(0, self.cell_of(z))
        parted = (bins < 0).nonzero().squeeze(1)
        bins[parted] = torch.bucketize(z[parted], inner, right=True, out_int32=True)
        return bins

    def sums(self, counts: Tensor, totals: Tensor) -> Tensor:
        """Sum every ramp over scores of which bins have so many, with such sums of z.

        Args:
            counts, totals: (2P,).

        Returns:
            (P,), at least 0.
        """
        # Summed from the top, as a high positive is compared with few.
        above = _running_sums(torch.stack([counts, totals]).flip(1)).flip(1)
        counts, totals = above[:, self.first] - above[:, self.last]
        rising = (totals - self.starts * counts) / self.width
        return (rising + above[0, self.last]).clamp(min=0)

    def lines(self, weights: Tensor) -> Tensor:
        """Sum all ramps with weights (P,): (2, 2P) value at z = 0 and slope in each bin."""
        slopes = weights / self.width
        rising = torch.stack([-self.starts * slopes, slopes])
        flat = torch.stack([weights, torch.zeros_like(weights)])
        changes = self.ends.new_zeros((2, len(self.ends)))
        changes.index_add_(1, self.first, rising).index_add_(1, self.last, flat - rising)
        return _running_sums(changes)


def _rank(
    ramps: Ramps, below: Sequence[Tensor], keep_bins: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Find the precision at every positive, and what its pairs are weighted with.

    Args:
        below: of each level the negatives' scores, and -inf, in one dimension.

    Returns:
        (P,) the interpolated precisions, (P,) L_ij / H_ij, and the bins of the negatives for
        :func:`_update`.
    """
    kept = []
    counts, totals = ramps.ends.new_zeros((2, len(ramps.ends)))
    for _, z in _pieces(ramps, below):
        bins = ramps.bin_of(z)
        if on_cpu(z):
            counts += torch.bincount(bins, minlength=len(counts))
            totals.index_add_(0, bins, z.double())
        else:
            # Most lie below all ramps and add nothing: not all of them to one place.
            spread = torch.arange(len(z), dtype=bins.dtype, device=z.device) % len(counts)
            slots = torch.where(z == 0, spread, bins)
            counts.index_add_(0, slots, (z != 0).double())
            totals.index_add_(0, slots, z.double())
        if keep_bins:
            kept.append(bins)
    negatives = ramps.sums(counts, totals)

    z = ramps.starts + ramps.width / 2
    bins = ramps.bin_of(z)
    counts = torch.zeros_like(counts).index_add_(0, bins, torch.ones_like(z))
    totals = torch.zeros_like(totals).index_add_(0, bins, z)
    # A positive outranks itself by a half, which H(0) is; its rank counts it in full.
    positives = ramps.sums(counts, totals) + 0.5
    precision = positives / (positives + negatives)
    # Sec. 3.4: no lower than at any positive of lower score.
    precision = precision.cummax(dim=0).values
    # L_ij = H_ij / (positives + negatives) (1 - interpolated) / (1 - precision)
    weights = torch.where(negatives > 0, (1 - precision) / negatives, 0)
    return precision, weights, kept


def _update(ramps: Ramps, weights: Tensor, below: Sequence[Tensor], bins: Sequence[Tensor]) -> None:
    """Write the gradient of the negatives, sum_i L_ij / P, over their scores."""
    base, slope = ramps.lines(weights / len(weights))
    parts = [part for level in below for part in level.split(_chunk(level))]
    for part, (places, z), at in zip(parts, _pieces(ramps, below), bins, strict=True):
        values = slope.index_select(0, at).mul_(z).add_(base.index_select(0, at)).to(part.dtype)
        if places is None:
            part.copy_(values)
        else:
            part.zero_()[places] = values


def _pieces(ramps: Ramps, below: Sequence[Tensor]) -> Iterator[tuple[Tensor | None, Tensor]]:
    """The z of the negatives chunk by chunk, on a CPU of those alone that a ramp reaches.

    Yields:
        where in the chunk they are, None for everywhere, and their z.
    """
    for chunk in (part for level in below for part in level.split(_chunk(level))):
        places = None
        if on_cpu(chunk):
            # Not a number is not below, so that it shows in the loss.
            reached = ~(chunk <= ramps.lowest)
            if 2 * int(reached.count_nonzero()) < len(chunk):
                places = reached.nonzero().squeeze(1)
                chunk = chunk[places]
        yield places, ramps.position(chunk)


def _chunk(scores: Tensor) -> int:
    return CPU_CHUNK if on_cpu(scores) else GPU_CHUNK


def _running_sums(values: Tensor) -> Tensor:
    """Sum along each row up to every place; torch's cumsum on a GPU is not deterministic."""
    step = 1
    while step < values.shape[1]:
        values = torch.cat([values[:, :step], values[:, step:] + values[:, :-step]], dim=1)
        step *= 2
    return values
