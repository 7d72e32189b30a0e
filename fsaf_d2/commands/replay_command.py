"""Repeat a training step whose loss or gradient was not finite, and say where it goes wrong.

    fsaf-d2 replay output/non_finite_0000123.pth
    fsaf-d2 replay output/non_finite_0000123.pth --config-file CONFIG.py

The file is written by training, see SOLVER.NON_FINITE. Everything in it is data; no code is run. A
Python config is code, and is not in it: give it where the run had one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import nn

from ..config import load_stored_config
from ..detectors.building import build_detector
from ..detectors.contract import contract_of
from ..texts import show_whatever_is_said
from ..training.black_box import Diagnosis, diagnose, gradients_of_outputs, restore_batch
from ..training.lazy_config import load_lazy_config
from ..training.random_state import set_random_state
from ..weights.weights_files import load_file


def main(argv: Sequence[str] | None = None, program: str = "replay_step.py") -> None:
    """Read the file, repeat the step, print what was found."""
    show_whatever_is_said()
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    parser.add_argument("file", help="non_finite_*.pth in a run's OUTPUT_DIR")
    parser.add_argument("--device", help="in place of the run's")
    parser.add_argument("--config-file", help="the Python config of the run, which is executed")
    args = parser.parse_args(argv)
    try:
        box = load_file(args.file)
        batch = restore_batch(box["batch"])
        if not (box["config"] or args.config_file):
            sys.exit(f"{args.file} is of a run with a Python config: name it by --config-file.")
        model = _model_of(box["config"], args).train()
    except Exception as error:
        sys.exit(f"{args.file} is no record of a step ({type(error).__name__}: {error}).")
    contract = contract_of(model)
    rate = max(box["learning_rates"])

    def repeat(step: Callable[[], object]) -> object:
        model.load_state_dict(box["model"])
        if contract:
            contract.at_step(box["step"])
            contract.load_extra_state(box["extra_state"])
        set_random_state(box["random_state"])
        with EventStorage(start_iter=box["step"]):
            return step()

    found = repeat(lambda: diagnose(model, batch, rate))
    print(f"Step {box['step'] + 1}, learning rate {rate:g}. Then: {box['cause']}")
    print(f"Now: {found.cause}\n")
    images = [
        [x["file_name"], len(x.get("boxes", [])), list(x["image"].shape[1:])] for x in box["batch"]
    ]
    print(tabulate(images, headers=["image", "boxes", "height, width"]), "\n")
    levels = contract.traits.level_names if contract else ()
    try:
        gradients = repeat(lambda: gradients_of_outputs(model, batch))
    except Exception as error:
        print(f"The gradients of each output are not known ({type(error).__name__}: {error}).\n")
        gradients = {}
    _print_step(found, gradients, levels)


def _model_of(config: str, args: argparse.Namespace) -> nn.Module:
    """The detector that was trained, on the device of choice."""
    if args.config_file:
        cfg = load_lazy_config(args.config_file, [])
        return instantiate(cfg.model).to(args.device or cfg.train.device)
    cfg = load_stored_config(config, args.file)
    cfg.MODEL.DEVICE = args.device or (cfg.MODEL.DEVICE if torch.cuda.is_available() else "cpu")
    return build_detector(cfg)


def _print_step(
    found: Diagnosis, gradients: dict[str, dict[str, list[float]]], levels: tuple[str, ...]
) -> None:
    """Print losses, what was observed, and the largest gradients."""
    print(tabulate(found.losses.items(), headers=["loss", "value"]), "\n")
    rows = [
        [name, level, *values, *(_norm(of_loss, name, i) for of_loss in gradients.values())]
        for name, parts in found.outputs.items()
        for i, level, values in _with_levels(parts, levels)
    ]
    headers = ["output", "level", "least", "greatest", "not finite"]
    print(tabulate(rows, headers=[*headers, *(f"gradient of {x}" for x in gradients)]), "\n")
    largest = sorted(found.gradient_norms.items(), key=lambda x: -abs(x[1]))[:10]
    print(tabulate(largest, headers=["largest gradients", "norm"]))


def _with_levels(parts: list, levels: tuple[str, ...]) -> Iterator[tuple[int, object, list]]:
    for i, values in enumerate(parts):
        yield i, levels[i] if len(parts) == len(levels) else i, values


def _norm(of_loss: dict[str, list[float]], name: str, index: int) -> float | None:
    norms = of_loss.get(name, [])
    return norms[index] if index < len(norms) else None
