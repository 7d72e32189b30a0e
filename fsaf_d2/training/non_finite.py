"""Losses and gradients that are infinite or NaN: never into the weights, always on record."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from ..detectors.contract import contract_of
from .checkpoints import random_state, write_atomically

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
        torch._foreach_copy_(self._copies, self._buffers)
        try:
            step()
        except FloatingPointError as error:
            torch._foreach_copy_(self._buffers, self._copies)
            cause, box = self._record(batch(), number, error)
            self._optimizer.zero_grad()
            self.times += 1
            message = (
                f"Step {number + 1} is not finite: {cause} The weights are as before it. Replay it "
                f"with: python tools/replay_step.py {box}"
            )
            if self._action == "stop" or self.times > self._max_times:
                raise NonFinite(message) from error
            _logger.warning(f"{message} ({self._action}, {self.times} of {self._max_times} times)")
            if self._action == "rollback":
                raise RollBack from error
            return False
        return True

    def _record(self, batch: list[dict], step: int, error: Exception) -> tuple[str, Path]:
        """Write the black box; say the likely cause and where the box is."""
        rates = sorted({group["lr"] for group in self._optimizer.param_groups})
        record = {
            "step": step,
            "error": str(error),
            "config": self._config,
            "learning_rates": rates,
            "model": {name: x.cpu() for name, x in self._model.state_dict().items()},
            "batch": [_plain(sample) for sample in batch],
            "random_state": random_state(),
        }
        diagnosis = diagnose(self._model, batch)
        torch._foreach_copy_(self._buffers, self._copies)
        cause = diagnosis["cause"].format(rate=max(rates))
        file = self._folder / f"non_finite_{step:07d}.pth"
        if comm.is_main_process():
            write_atomically(file, {**record, **diagnosis, "cause": cause})
        return cause, file


def diagnose(model: nn.Module, batch: list[dict]) -> dict:
    """Run a training step's forward and backward pass, and find where it stops being finite.

    Args:
        model: in training mode; its gradients are overwritten, its buffers may change.
        batch: with ``image`` and ``instances``.

    Returns:
        ``cause``, a sentence; ``losses`` by name; ``outputs``, for every output of the modules that
        the detector has observed, and every tensor of it, such as a level's, its least and greatest
        value and how many are not finite; ``gradient_norms`` by parameter. Where one was not
        reached, it is empty. Whatever goes wrong in here is in the cause; it is never raised.
    """
    found = {"losses": {}, "outputs": {}, "gradient_norms": {}}
    try:
        cause = _diagnose(model, batch, found)
    except Exception as error:
        cause = f"the diagnosis failed ({type(error).__name__}: {error})."
    return {"cause": cause, **found}


def _diagnose(model: nn.Module, batch: list[dict], found: dict) -> str:
    """Fill ``found`` as far as it goes; the cause."""
    first: list[str] = []
    contract = contract_of(model)
    handles = [
        module.register_forward_hook(_note_first(name, first))
        for name, module in model.named_modules()
        if name and not list(module.children())
    ]
    handles += [
        module.register_forward_hook(_note_outputs(name, found["outputs"]))
        for name, module in (contract.observed() if contract else {}).items()
    ]
    failure = ""
    weights = [name for name, p in model.named_parameters() if not _finite(p)]
    try:
        model.zero_grad()
        if comm.get_world_size() > 1:
            # The others may not be here, and the losses are computed together.
            raise RuntimeError("one of several processes cannot: replay it")
        with _event_storage():
            losses = model(batch)
        found["losses"].update((name, loss.item()) for name, loss in losses.items())
        sum(losses.values()).backward()
        found["gradient_norms"].update(
            (name, p.grad.norm().item())
            for name, p in model.named_parameters()
            if p.grad is not None
        )
    except Exception as error:
        failure = str(error) or type(error).__name__
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad()
    return _cause(batch, weights, first, failure, found["losses"], found["gradient_norms"])


def _event_storage() -> contextlib.AbstractContextManager:
    """The storage at hand, which detectron2's models log to, or a throw-away one."""
    try:
        return contextlib.nullcontext(get_event_storage())
    except AssertionError:
        return EventStorage()


def _cause(
    batch: list[dict],
    weights: list[str],
    first: list[str],
    failure: str,
    losses: dict[str, float],
    gradient_norms: dict[str, float],
) -> str:
    for sample in batch:
        name = sample.get("file_name", "of the batch")
        if not _finite(sample["image"].float()):
            return f"the picture '{name}' has pixels that are not finite."
        if not _finite(sample["instances"].gt_boxes.tensor):
            return f"the picture '{name}' has a box that is not finite."
    if weights:
        return f"the weights '{weights[0]}' were not finite before the step."
    high = "the learning rate {rate:g} is likely too high, or the range of half precision too small"
    if first:
        return f"'{first[0]}' is the first to overflow; {high}."
    if failure:
        return f"the step could not be repeated ({failure})."
    wrong = [name for name, value in losses.items() if not _finite(torch.tensor(value))]
    if wrong:
        return f"{wrong[0]} overflows; {high}."
    wrong = [name for name, value in gradient_norms.items() if not _finite(torch.tensor(value))]
    if wrong:
        return f"the gradient of '{wrong[-1]}' overflows; {high}."
    return "it is finite when repeated: half precision, or a step that does not repeat exactly."


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _note_first(name: str, first: list[str]):
    def hook(_module: nn.Module, _inputs: object, output: object) -> None:
        if not first and isinstance(output, Tensor) and not _finite(output):
            first.append(name)

    return hook


def _note_outputs(module_name: str, outputs: dict[str, list[list[float]]]):
    def hook(_module: nn.Module, _inputs: object, output: object) -> None:
        for name, tensors in _named_tensors(module_name, output):
            outputs[name] = [
                [x.min().item(), x.max().item(), (~torch.isfinite(x)).sum().item()]
                for x in tensors
                if x.numel()
            ]

    return hook


def _named_tensors(name: str, output: object) -> Iterator[tuple[str, list[Tensor]]]:
    """The floating tensors of whatever a module gives, lists of them together."""
    if isinstance(output, Tensor):
        output = [output]
    if hasattr(output, "_asdict"):
        # A branch's own names tell enough.
        output, name = output._asdict(), ""
    if isinstance(output, Mapping):
        for key, value in output.items():
            yield from _named_tensors(f"{name}.{key}".lstrip("."), value)
    elif isinstance(output, (list, tuple)):
        tensors = [x for x in output if isinstance(x, Tensor) and x.is_floating_point()]
        if tensors:
            yield name, tensors
        for index, value in enumerate(output):
            if not isinstance(value, Tensor):
                yield from _named_tensors(f"{name}.{index}".lstrip("."), value)


def _plain(sample: dict) -> dict:
    """A sample of tensors and plain values."""
    instances = sample["instances"]
    return {
        "file_name": str(sample.get("file_name", "")),
        "image": sample["image"],
        "size": list(instances.image_size),
        "boxes": instances.gt_boxes.tensor,
        "classes": instances.gt_classes,
    }


def restore_batch(batch: list[dict]) -> list[dict]:
    """Turn the batch of a black box into a model's input."""
    samples = []
    for sample in batch:
        instances = Instances(tuple(sample["size"]))
        instances.gt_boxes = Boxes(sample["boxes"])
        instances.gt_classes = sample["classes"]
        file_name, image = sample["file_name"], sample["image"]
        samples.append({"file_name": file_name, "image": image, "instances": instances})
    return samples
