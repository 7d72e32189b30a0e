"""The losses of training, on pictures that are not trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..data.mapper import build_labelled_mapper
from ..detectors.fsaf import FSAF
from .checkpoints import random_state, set_random_state

# What the losses of a branch are called in training.
PREFIXES = {"anchor": "loss_", "anchor_free": "loss_anchor_free_"}


def labelled_loader(cfg: CfgNode, records: list[dict] | Dataset) -> DataLoader:
    """Build a loader that gives each process its part of annotated pictures, one at a time.

    Pictures are resized as in evaluation and not augmented; boxes are transformed with them.

    Args:
        cfg: says how pictures are read, and by how many processes.
        records: in detectron2's format of data sets. The parts of all processes, one after the
            other, have their order.
    """
    return build_detection_test_loader(
        records, mapper=build_labelled_mapper(cfg), num_workers=cfg.DATALOADER.NUM_WORKERS
    )


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation in the body; its modes and all random numbers are as before after.

    Gradients are off.
    """
    modes = [(module, module.training) for module in model.modules()]
    state = random_state()
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        set_random_state(state)


def validation_losses(model: FSAF, batches: Iterable[list[dict]]) -> dict[str, float]:
    """Compute the losses that the model is trained with on other pictures, and leave no trace.

    Each loss is the sum over all pictures, of all processes, divided by their number of positives.
    So it is that of training with all of them as one batch, whatever the batch size and the number
    of processes; only that there a running mean of the positives may divide. Layers such as batch
    norm work as in evaluation, and everything is in float32.

    Args:
        model: not wrapped for several processes.
        batches: of this process, such as from :func:`labelled_loader`. Pictures without
            ``instances`` are left out.

    Returns:
        ``loss_cls`` and so on as in training, and their sum ``total_loss``, the same in all
        processes; nothing if no picture has annotations.
    """
    sums: dict[str, float] = {}
    with undisturbed(model):
        for batch in batches:
            batch = [x for x in batch if "instances" in x]
            for branch, losses in (model.inspect(batch) if batch else {}).items():
                found = {
                    f"{branch} positives": float(losses.num_positives),
                    f"{branch} cls": losses.cls.item(),
                    f"{branch} box_reg": losses.box_reg.item(),
                }
                for name, value in found.items():
                    sums[name] = sums.get(name, 0.0) + value
    parts = comm.all_gather(sums)
    totals: dict[str, float] = {}
    for name in sorted({name for part in parts for name in part}):
        totals[name] = sum(part.get(name, 0.0) for part in parts)
    losses = _divide(totals, model.anchor_free_loss_weight)
    return {**losses, "total_loss": sum(losses.values())} if losses else {}


def _divide(totals: dict[str, float], anchor_free_loss_weight: float) -> dict[str, float]:
    weights = {"anchor": 1.0, "anchor_free": anchor_free_loss_weight}
    return {
        f"{prefix}{kind}": weights[branch]
        * totals[f"{branch} {kind}"]
        / max(totals[f"{branch} positives"], 1.0)
        for branch, prefix in PREFIXES.items()
        if f"{branch} positives" in totals
        for kind in ("cls", "box_reg")
    }
