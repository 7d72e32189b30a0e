#!/usr/bin/env python
"""Repeat a training step whose loss or gradient was not finite, and say where it goes wrong.

    python tools/replay_step.py output/non_finite_0000123.pth

The file is written by training, see SOLVER.NON_FINITE. Everything in it is data; no code is run.
"""

from __future__ import annotations

import argparse
import sys

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tabulate import tabulate

from fsaf_d2.config import load_stored_config
from fsaf_d2.detectors.contract import traits_of
from fsaf_d2.training.checkpoints import set_random_state
from fsaf_d2.training.non_finite import diagnose, restore_batch
from fsaf_d2.weights.files import load_file


def main() -> None:
    """Read the command line and the file, repeat the step, print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", help="non_finite_*.pth in a run's OUTPUT_DIR")
    parser.add_argument("--device", help="in place of the run's")
    args = parser.parse_args()
    try:
        box = load_file(args.file)
        batch = restore_batch(box["batch"])
        cfg = load_stored_config(box["config"], args.file)
    except Exception as error:
        sys.exit(f"{args.file} is no record of a step ({type(error).__name__}: {error}).")
    cfg.MODEL.DEVICE = args.device or (cfg.MODEL.DEVICE if torch.cuda.is_available() else "cpu")
    model = build_model(cfg).train()
    model.load_state_dict(box["model"])
    set_random_state(box["random_state"])
    with EventStorage(start_iter=box["step"]):
        found = diagnose(model, batch)

    rate = max(box["learning_rates"])
    print(f"Step {box['step'] + 1}, learning rate {rate:g}. Then: {box['cause']}")
    print(f"Now: {found['cause'].format(rate=rate)}\n")
    pictures = [[x["file_name"], len(x["boxes"]), list(x["image"].shape[1:])] for x in box["batch"]]
    print(tabulate(pictures, headers=["picture", "boxes", "height, width"]), "\n")
    print(tabulate(found["losses"].items(), headers=["loss", "value"]), "\n")
    levels = traits_of(cfg).level_names
    rows = [
        [name, levels[i] if len(parts) == len(levels) else i, *values]
        for name, parts in found["outputs"].items()
        for i, values in enumerate(parts)
    ]
    print(tabulate(rows, headers=["output", "level", "least", "greatest", "not finite"]), "\n")
    largest = sorted(found["gradient_norms"].items(), key=lambda x: -abs(x[1]))[:10]
    print(tabulate(largest, headers=["largest gradients", "norm"]))


if __name__ == "__main__":
    main()
