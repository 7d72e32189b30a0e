#!/usr/bin/env python
"""Measure what MODEL.FSAF.NMS_PER_LEVEL does to AP and to the time of post-processing.

    python benchmarks/nms_per_level.py --config-file CONFIG MODEL.WEIGHTS WEIGHTS

Every image of DATASETS.TEST passes the network once; its predictions are post-processed with the
key off and on in turn, so both see the same scores on the same machine in the same run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import statistics
import sys
import time

import torch
from detectron2.config import CfgNode
from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from fsaf_d2 import load_config
from fsaf_d2.training import SafeCheckpointer, Trainer, load_weights, prepare

SETTINGS = (False, True)


def timed_detections(model, predictions, grid, sizes, inputs, nms_per_level: bool):
    """Post-process once. Returns the detections and the seconds it took."""
    model.suppression = dataclasses.replace(model.suppression, nms_per_level=nms_per_level)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    results = model._detect(predictions, grid, sizes, inputs)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return results, time.perf_counter() - start


def measure(cfg: CfgNode) -> list[list[str]]:
    """Evaluate both settings. Returns a row (setting, AP, AP50, ms, ratio) for each."""
    model = Trainer.build_model(cfg).eval()
    load_weights(SafeCheckpointer(model), cfg.MODEL.WEIGHTS, resume=False)
    (dataset_name,) = cfg.DATASETS.TEST
    evaluators = {setting: Trainer.build_evaluator(cfg, dataset_name) for setting in SETTINGS}
    for evaluator in evaluators.values():
        evaluator.reset()
    seconds = {setting: [] for setting in SETTINGS}
    for index, inputs in enumerate(Trainer.build_test_loader(cfg, dataset_name)):
        with torch.no_grad():
            images = model.preprocess_image(inputs)
            outputs = (*model._predict(images.tensor), images.image_sizes, inputs)
            for setting in SETTINGS if index % 2 else reversed(SETTINGS):
                results, duration = timed_detections(model, *outputs, setting)
                seconds[setting].append(duration)
                evaluators[setting].process(inputs, results)
    ratios = [on / off for off, on in zip(seconds[False], seconds[True])]
    rows = []
    for setting in SETTINGS:
        with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull):
            metrics = evaluators[setting].evaluate()["bbox"]
        scores = [f"{metrics[name]:.2f}" for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
        ratio = f"{statistics.median(ratios):.2f}" if setting else "1"
        rows.append([setting, *scores, f"{statistics.median(seconds[setting]) * 1e3:.1f}", ratio])
    return rows


def main() -> None:
    """Read the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs over the config")
    args = parser.parse_args()
    setup_logger(name="detectron2", output=None).setLevel("WARNING")
    try:
        cfg = load_config(args.config_file, args.opts)
        prepare(cfg, eval_only=True)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"nms_per_level: error: {error}")
    headers = ["NMS_PER_LEVEL", "AP", "AP50", "AP75", "APs", "APm", "APl", "ms an image", "ratio"]
    print(tabulate(measure(cfg), headers=headers, tablefmt="github"))


if __name__ == "__main__":
    main()
