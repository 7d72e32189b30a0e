"""What is recorded of a training step that is not finite, and where it goes wrong."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from ..detectors.contract import contract_of

# Least and greatest value of a tensor, and how many are not finite.
Range = list[float]


@dataclasses.dataclass
class Diagnosis:
    """What a step has given as far as it came.

    Attributes:
        cause: a sentence.
        losses: by name.
        outputs: of what the detector has observed, the range of each tensor; those of a list, such
            as the levels', are together under one name.
        gradient_norms: by parameter.
    """

    cause: str = ""
    losses: dict[str, float] = dataclasses.field(default_factory=dict)
    outputs: dict[str, list[Range]] = dataclasses.field(default_factory=dict)
    gradient_norms: dict[str, float] = dataclasses.field(default_factory=dict)


def diagnose(model: nn.Module, batch: list[dict], rate: float) -> Diagnosis:
    """Run a training step's forward and backward pass, and find where it stops being finite.

    Args:
        model: in training mode; its gradients are overwritten, its buffers may change.
        batch: with ``image`` and ``instances``.
        rate: the learning rate, for the message.

    Returns:
        what was found. Whatever goes wrong in here is in its cause; nothing is raised.
    """
    found = Diagnosis()
    try:
        found.cause = _diagnose(model, batch, found, rate)
    except Exception as error:
        found.cause = f"diagnosis failed: {_text(error)}."
    return found


def _diagnose(model: nn.Module, batch: list[dict], found: Diagnosis, rate: float) -> str:
    """Fill ``found`` as far as it goes; the cause."""
    first: list[str] = []
    problems: list[str] = []
    weights = [name for name, p in model.named_parameters() if not _finite(p)]
    try:
        model.zero_grad()
        if comm.get_world_size() > 1:
            # The others may not be here, and the losses are computed together.
            raise RuntimeError("one of several processes cannot: replay it")
        with _watched(model, first, found.outputs, problems), _event_storage():
            losses = model(batch)
            found.losses.update((name, loss.item()) for name, loss in losses.items())
            sum(losses.values()).backward()
        found.gradient_norms.update(
            (name, p.grad.norm().item())
            for name, p in model.named_parameters()
            if p.grad is not None
        )
        failure = ""
    except Exception as error:
        failure = str(error) or type(error).__name__
    finally:
        model.zero_grad()
    cause = (
        _cause_in_batch(batch)
        or (f"the weights '{weights[0]}' were not finite before the step." if weights else "")
        or _cause_in_step(first, failure, found, rate)
    )
    # What could not be looked at is told, too.
    return " ".join([cause, *(f"(diagnosis failed: {problem}.)" for problem in problems[:1])])


def _cause_in_batch(batch: list[dict]) -> str:
    for sample in batch:
        name = sample.get("file_name", "of the batch")
        if not _finite(sample["image"].float()):
            return f"the image '{name}' has pixels that are not finite."
        if "instances" in sample and not _finite(sample["instances"].gt_boxes.tensor):
            return f"the image '{name}' has a box that is not finite."
    return ""


def _cause_in_step(first: list[str], failure: str, found: Diagnosis, rate: float) -> str:
    high = (
        f"the learning rate {rate:g} is likely too high, or the range of half precision too small"
    )
    if first:
        return f"'{first[0]}' is the first to overflow; {high}."
    if failure:
        return f"the step could not be repeated ({failure})."
    wrong = [name for name, value in found.losses.items() if not _finite(torch.tensor(value))]
    if wrong:
        return f"{wrong[0]} overflows; {high}."
    norms = found.gradient_norms.items()
    wrong = [name for name, value in norms if not _finite(torch.tensor(value))]
    if wrong:
        return f"the gradient of '{wrong[-1]}' overflows; {high}."
    return "it is finite when repeated: half precision, or a step that does not repeat exactly."


@contextlib.contextmanager
def _watched(
    model: nn.Module, first: list[str], outputs: dict[str, list[Range]], problems: list[str]
) -> Iterator[None]:
    """Note in the body which module is the first to overflow, and what is observed."""

    def note_first(name: str, output: object) -> None:
        if not first and isinstance(output, Tensor) and not _finite(output):
            first.append(name)

    def note_outputs(name: str, output: object) -> None:
        for key, tensors in named_tensors(output, name):
            outputs[key] = [_range(x) for x in tensors]

    leaves = {
        name: module
        for name, module in model.named_modules()
        if name and not list(module.children())
    }
    handles = []
    try:
        for note, modules in ((note_first, leaves), (note_outputs, _observed(model, problems))):
            for name, module in modules.items():
                handles.append(module.register_forward_hook(_hook(note, name, problems)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(note: Callable[[str, object], None], name: str, problems: list[str]) -> Callable:
    def hook(_module: nn.Module, _inputs: object, output: object) -> None:
        try:
            note(name, output)
        except Exception as error:
            problems.append(_text(error))

    return hook


def _observed(model: nn.Module, problems: list[str]) -> dict[str, nn.Module]:
    try:
        contract = contract_of(model)
        return contract.observed() if contract else {}
    except Exception as error:
        problems.append(_text(error))
        return {}


def named_tensors(output: object, name: str) -> Iterator[tuple[str, list[Tensor]]]:
    """The floating tensors of whatever a module gives, those of a list together.

    They are named by the module, and by field, key or place.
    """
    if isinstance(output, Tensor):
        output = [output]
    if hasattr(output, "_asdict"):
        output = output._asdict()
    if isinstance(output, Mapping):
        for key, value in output.items():
            yield from named_tensors(value, f"{name}.{key}")
    elif isinstance(output, (list, tuple)):
        tensors = [x for x in output if isinstance(x, Tensor) and x.is_floating_point()]
        if tensors:
            yield name, tensors
        for index, value in enumerate(output):
            if not isinstance(value, Tensor):
                yield from named_tensors(value, f"{name}.{index}")


def gradients_of_outputs(model: nn.Module, batch: list[dict]) -> dict[str, dict[str, list[float]]]:
    """Tell how much of each loss comes from where: the norms of its gradients.

    Args:
        model: in training mode.
        batch: of the step.

    Returns:
        by loss and by name of :class:`Diagnosis.outputs`, the norm of the loss's gradient with
        respect to each tensor; NaN or infinite where it is, 0 where the loss does not depend on it.
    """
    tensors: dict[str, list[Tensor]] = {}

    def note(name: str, output: object) -> None:
        tensors.update(named_tensors(output, name))

    problems: list[str] = []
    handles = [
        module.register_forward_hook(_hook(note, name, problems))
        for name, module in _observed(model, problems).items()
    ]
    try:
        with _event_storage():
            losses = model(batch)
    finally:
        for handle in handles:
            handle.remove()
    places = [(name, i, x) for name, of_name in tensors.items() for i, x in enumerate(of_name)]
    places = [place for place in places if place[2].requires_grad]
    norms: dict[str, dict[str, list[float]]] = {}
    for loss_name, loss in losses.items():
        norms[loss_name] = {name: [0.0] * len(of_name) for name, of_name in tensors.items()}
        if not (loss.requires_grad and places):
            continue
        gradients = torch.autograd.grad(
            loss, [x for _, _, x in places], retain_graph=True, allow_unused=True
        )
        for (name, i, _), gradient in zip(places, gradients):
            if gradient is not None:
                norms[loss_name][name][i] = gradient.norm().item()
    return norms


def plain_batch(batch: list[dict]) -> list[dict]:
    """The samples of a batch as tensors and plain values."""
    samples = []
    for x in batch:
        sample = {"file_name": str(x.get("file_name", "")), "image": x["image"]}
        if "instances" in x:
            instances = x["instances"]
            sample["size"] = list(instances.image_size)
            sample["boxes"] = instances.gt_boxes.tensor
            sample["classes"] = instances.gt_classes
        samples.append(sample)
    return samples


def restore_batch(batch: list[dict]) -> list[dict]:
    """Turn the batch of a black box into a model's input."""
    samples = []
    for x in batch:
        sample = {"file_name": x["file_name"], "image": x["image"]}
        if "boxes" in x:
            instances = sample["instances"] = Instances(tuple(x["size"]))
            instances.gt_boxes = Boxes(x["boxes"])
            instances.gt_classes = x["classes"]
        samples.append(sample)
    return samples


def _event_storage() -> contextlib.AbstractContextManager:
    """The storage at hand, which detectron2's models log to, or a throw-away one."""
    try:
        return contextlib.nullcontext(get_event_storage())
    except AssertionError:
        return EventStorage()


def _range(tensor: Tensor) -> Range:
    if not tensor.numel():
        return [0.0, 0.0, 0]
    bad = (~torch.isfinite(tensor)).sum().item()
    return [tensor.min().item(), tensor.max().item(), bad]


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
