"""Losses and gradients that are infinite or NaN: never into the weights, always on record."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.utils import comm
from torch import nn

from ..commands.calls import call
from ..detectors.contract import contract_of
from ..weights.atomic_writing import write_atomically
from .black_box import diagnose, plain_batch
from .random_state import random_state, set_random_state

_logger = logging.getLogger("detectron2.fsaf_d2.training")
ACTIONS = ("stop", "skip", "rollback")


class NonFinite(FloatingPointError):
    """A loss or a gradient is not finite; the weights are those before the step."""


class RollBack(BaseException):
    """Training shall go on from the last checkpoint with half the learning rate.

    No Exception, which detectron2 would log as a failure.
    """


class NonFiniteGuard:
    """Keeps what is not finite out of weights, buffers and optimizer."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        action: str,
        max_times: int,
        folder: str,
        config: str,
    ) -> None:
        """
        Args:
            action: "stop"; "skip" the step; "rollback" to the last checkpoint, with half the rate.
            max_times: so often it may skip or roll back, before it stops.
            folder: where black boxes are written.
            config: of the run, as YAML, to replay the step with.

        Raises:
            ValueError: the action is unknown or ``max_times`` is negative.
        """
        if action not in ACTIONS:
            raise ValueError(f"SOLVER.NON_FINITE.ACTION must be one of {ACTIONS}, not {action!r}.")
        if max_times < 0:
            raise ValueError(f"SOLVER.NON_FINITE.MAX_TIMES must be 0 or more, not {max_times}.")
        self._model = model
        self._contract = contract_of(model)
        self._optimizer = optimizer
        self._action = action
        self._max_times = max_times
        self._folder = Path(folder)
        self._config = config
        self.times = 0
        self._buffers = list(model.buffers())
        self._copies = [b.clone() for b in self._buffers]
        optimizer.register_step_pre_hook(self._before_update)

    def _before_update(self, *_: object) -> None:
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(grad).float() for grad in gradients])
        # The norm of finite numbers can overflow.
        if not torch.isfinite(norms).all() and not all(
            torch.isfinite(grad).all() for grad in gradients
        ):
            raise NonFinite("A gradient is infinite or NaN, though the loss is finite.")

    def run(self, step: Callable[[], None], batch: Callable[[], list[dict]], number: int) -> bool:
        """Run a training step; see the class for what happens if it is not finite.

        Args:
            step: forward, backward and update.
            batch: gives the batch that the step has taken from the loader.
            number: of the step, from 0.

        Returns:
            whether the weights were updated.

        Raises:
            NonFinite: the action is to stop, or it has been taken too often.
            RollBack: the action is that.
        """
        before = self._state_before()
        try:
            step()
        except FloatingPointError as error:
            self._restore(before)
            cause, record = self._record(batch, number, error, before)
            self._optimizer.zero_grad()
            self.times += 1
            message = (
                f"Step {number + 1} is not finite: {cause} The weights are as before it. {record}"
            )
            if self._action == "stop" or self.times > self._max_times:
                raise NonFinite(message) from error
            _logger.warning(f"{message} ({self._action}, {self.times} of {self._max_times} times)")
            if self._action == "rollback":
                raise RollBack from error
            return False
        return True

    def _state_before(self) -> dict:
        """What a step changes beside weights and optimizer."""
        torch._foreach_copy_(self._copies, self._buffers)
        extra = self._contract.extra_state() if self._contract else {}
        return {"random_state": random_state(), "extra_state": extra}

    def _restore(self, before: dict) -> None:
        """Undo all but random numbers."""
        torch._foreach_copy_(self._buffers, self._copies)
        if self._contract:
            self._contract.load_extra_state(before["extra_state"])

    def _record(
        self, batch: Callable[[], list[dict]], step: int, error: Exception, before: dict
    ) -> tuple[str, str]:
        """Write the black box; the likely cause, and how to replay the step.

        Whatever goes wrong here is said and not raised: it must not hide what it is about.

        Args:
            batch, step, error: of the step.
            before: what :meth:`_state_before` gave.
        """
        file = self._folder / f"non_finite_{step:07d}.pth"
        rates = sorted({group["lr"] for group in self._optimizer.param_groups})
        cause, after = str(error), random_state()
        try:
            record = {
                "step": step,
                "error": str(error),
                "config": self._config,
                "learning_rates": rates,
                "model": {
                    # Copies on the CPU too, as the diagnosis changes the buffers.
                    name: x.to("cpu", copy=True)
                    for name, x in self._model.state_dict().items()
                },
                **before,
            }
            # What is sampled, such as proposals, is to be the same.
            set_random_state(before["random_state"])
            found = diagnose(self._model, batch(), max(rates))
            self._restore(before)
            cause = found.cause
            record.update(dataclasses.asdict(found), batch=plain_batch(batch()))
            if comm.is_main_process():
                write_atomically(file, record)
        except Exception as problem:
            return cause, f"It is not on record ({type(problem).__name__}: {problem})."
        finally:
            self._restore(before)
            set_random_state(after)
        return cause, f"Replay it with: {call('replay')} {file}"
