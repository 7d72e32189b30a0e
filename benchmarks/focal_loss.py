#!/usr/bin/env python
"""Compare ways to sum the focal loss of dense logits with few labels, forward and backward.

    python benchmarks/focal_loss.py

Ours, the same formula left to torch.compile (with labels of every logit that are made beforehand),
to torch as it is, and detectron2's way (fvcore's loss on labels one for every logit). In turn, on
the logits of RetinaNet's finest level at 512 x 640 pixels.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from fvcore.nn import sigmoid_focal_loss_jit
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

from fsaf_d2.losses import sparse_focal_loss_sum

ALPHA, GAMMA = 0.25, 2.0
REPEATS = 15


def dense_focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Labels of every logit: 1 object, 0 background, -1 ignored."""
    is_object = labels == 1
    turned = torch.where(is_object, -logits, logits)
    weight = torch.where(is_object, ALPHA, 1 - ALPHA)
    loss = F.softplus(turned) * torch.sigmoid(turned) ** GAMMA * weight
    return torch.where(labels < 0, 0, loss).sum()


def main() -> None:
    """Measure and print a table."""
    torch.manual_seed(0)
    logits = torch.randn(1, 720, 64, 80) - 3
    places = torch.randperm(logits.numel())
    positives, ignored = places[:60], places[60:4060]
    labels = torch.zeros(logits.numel(), dtype=torch.int8)
    labels[positives], labels[ignored] = 1, -1
    labels = labels.view_as(logits)
    compiled = torch.compile(dense_focal_loss)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "ours": lambda x: sparse_focal_loss_sum(x, positives, ignored, alpha=ALPHA, gamma=GAMMA),
        "compiled": lambda x: compiled(x, labels),
        "eager": lambda x: dense_focal_loss(x, labels),
        "fvcore": lambda x: sigmoid_focal_loss_jit(
            x[labels >= 0], (labels[labels >= 0] == 1).float(), ALPHA, GAMMA, "sum"
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 3):
        for name, way in ways.items():
            leaf = logits.clone().requires_grad_()
            start = time.perf_counter()
            way(leaf).backward()
            if repeat >= 3:  # warm, and compiled
                seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, times in seconds.items():
        ratio = statistics.median(t / base for t, base in zip(times, seconds["ours"]))
        rows.append([name, f"{statistics.median(times) * 1e3:.1f}", f"{ratio:.2f}"])
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {logits.numel()} logits\n"
    )
    print(tabulate(rows, headers=["focal loss, forward and backward", "ms", "ratio"]))


if __name__ == "__main__":
    main()
