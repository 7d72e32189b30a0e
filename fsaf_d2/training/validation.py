"""The losses of training, on images that are not trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from detectron2.data import build_detection_test_loader
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..detectors.contract import LossTerm, contract_of, keep_modes
from .random_state import random_state, set_random_state


def labelled_loader(
    records: list[dict] | Dataset, mapper: Callable[[dict], dict], num_workers: int = 0
) -> DataLoader:
    """Build a loader that gives each process its part of annotated images, one at a time.

    Args:
        records: in detectron2's format of data sets. The parts of all processes, one after the
            other, have their order.
        mapper: gives a model's input with ``instances``, resized as in evaluation and not
            augmented, see :func:`fsaf_d2.data.loading.mapper.build_labelled_mapper`.
        num_workers: processes that read.
    """
    return build_detection_test_loader(records, mapper=mapper, num_workers=num_workers)


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation in the body; its modes and all random numbers are as before after.

    Gradients are off.
    """
    state = random_state()
    try:
        with keep_modes(model), torch.no_grad():
            model.eval()
            yield
    finally:
        set_random_state(state)


def validation_losses(model: nn.Module, batches: Iterable[list[dict]]) -> dict[str, float]:
    """Compute the losses that the model is trained with on other images, and leave no trace.

    Each loss is the sum over all images, of all processes, divided by what is counted in them, such
    as positives. So it is that of training with all of them as one batch, whatever the batch size
    and the number of processes; only that there a running mean of the positives may divide. Layers
    such as batch norm work as in evaluation, and everything is in float32.

    Args:
        model: a detector, not wrapped for several processes.
        batches: of this process, such as from :func:`labelled_loader`. Images without ``instances``
            are left out.

    Returns:
        the losses by the names that they have in training, and their sum ``total_loss``, the same
        in all processes; nothing if no image has annotations.
    """
    contract = contract_of(model)
    sums: dict[str, LossTerm] = {}
    with undisturbed(model):
        for batch in batches:
            batch = [x for x in batch if "instances" in x]
            for name, term in (contract.loss_terms(batch) if batch else {}).items():
                sums[name] = _added(sums.get(name), term)
    parts = comm.all_gather(sums)
    totals: dict[str, LossTerm] = {}
    for part in parts:
        for name, term in part.items():
            totals[name] = _added(totals.get(name), term)
    losses = {name: term.value() for name, term in totals.items()}
    return {**losses, "total_loss": sum(losses.values())} if losses else {}


def _added(one: LossTerm | None, other: LossTerm) -> LossTerm:
    other = other._replace(
        total=other.total.detach().double().cpu(), count=other.count.detach().double().cpu()
    )
    if one is None:
        return other
    return other._replace(total=one.total + other.total, count=one.count + other.count)
