"""Distances as distributions over bins 0, 1, ..., n (GFL, arXiv 2006.04388, Sec. 3)."""

from __future__ import annotations

import torch
from torch import Tensor


def expected_bin(bin_logits: Tensor, bins: Tensor) -> Tensor:
    """The mean of bins under the softmax of their logits: (..., n + 1) -> (...).

    Args:
        bin_logits: (..., n + 1).
        bins: (n + 1,) what each stands for.
    """
    return bin_logits.softmax(dim=-1) @ bins.to(bin_logits.dtype)


def distribution_focal_loss(bin_logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy with the two bins about a target, each by its nearness to it.

    Args:
        bin_logits: (..., n + 1), in float32 or float64.
        targets: (...) at least 0 and less than n.

    Returns:
        (...) the loss of each distribution.
    """
    log_probabilities = bin_logits.log_softmax(dim=-1)
    lower = targets.floor()
    share = targets - lower
    index = lower.long()[..., None]
    left, right = (log_probabilities.gather(-1, index + step).squeeze(-1) for step in (0, 1))
    return -torch.lerp(left, right, share)
