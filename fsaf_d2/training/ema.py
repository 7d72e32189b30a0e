"""A moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class MovingAverage:
    """The exponential moving average of a model's parameters, with its latest buffers."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Args:
            decay: share of the average that stays in a step, 0 to 1.

        Raises:
            ValueError: the decay is out of its range.
        """
        if not 0 < decay < 1:
            raise ValueError(f"SOLVER.EMA_DECAY must be at least 0 and below 1, not {decay}.")
        self._model = model
        self._decay = decay
        self.load_state_dict(model.state_dict())

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present weights."""
        weights = [p.detach() for p in self._model.parameters()]
        torch._foreach_lerp_(self._average, weights, 1 - self._decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights in the body."""
        weights = [p.detach() for p in self._model.parameters()]
        copies = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, self._average)
        try:
            yield
        finally:
            torch._foreach_copy_(weights, copies)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights under the model's names, with the model's buffers."""
        names = [name for name, _ in self._model.named_parameters()]
        return {**self._model.state_dict(), **dict(zip(names, self._average, strict=True))}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Begin with weights that :meth:`state_dict` or the model's own gave."""
        self._average = [
            state_dict[name].detach().to(p.device, copy=True)
            for name, p in self._model.named_parameters()
        ]
