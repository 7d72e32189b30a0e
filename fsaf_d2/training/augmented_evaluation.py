"""Evaluation without and with test-time augmentation, side by side."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from ..texts import SHOWN
from .trainer import Trainer

if TYPE_CHECKING:
    # It needs OpenCV, which training does not.
    from ..inference.augmented import AugmentedDetector

FOLDER = "test_time_augmentation"
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")

_logger = logging.getLogger("detectron2.fsaf_d2.training")


class Stopwatch:
    """Measures how long a model takes for an image."""

    def __init__(self, told: Callable[[float], None] | None = None) -> None:
        """
        Args:
            told: called with the seconds of an image once the first have been seen.
        """
        self._told = told
        self.seconds, self.num_images = 0.0, 0

    @contextlib.contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Measure in the body."""
        started = []

        def start(*_: object) -> None:
            started.append(_now())

        def stop(_: object, arguments: tuple, __: object) -> None:
            self.seconds += _now() - started.pop()
            self.num_images += len(arguments[0])
            if self._told and self.num_images == len(arguments[0]):
                self._told(self.per_image())

        hooks = [model.register_forward_pre_hook(start), model.register_forward_hook(stop)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def per_image(self) -> float:
        """Seconds."""
        return self.seconds / max(self.num_images, 1)


def compare_augmented(trainer: type[Trainer], cfg: CfgNode, model: AugmentedDetector) -> dict:
    """Evaluate on ``DATASETS.TEST`` both ways, and log AP and time of both.

    The files of the evaluation with augmentation go to a folder ``test_time_augmentation`` in
    ``OUTPUT_DIR``.

    Args:
        trainer: whose ``test`` is used.
        cfg: of the model.
        model: whose detector is evaluated, alone and within it.

    Returns:
        what ``test`` gives without augmentation and, in the main process, under names that end in
        ``_TTA`` what it gives with it.
    """
    augmented_cfg = cfg.clone()
    augmented_cfg.defrost()
    augmented_cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, FOLDER)
    views = model.description()
    _logger.info(f"Test-time augmentation, after an evaluation without: {views}.", extra=SHOWN)
    results, watches = [], [Stopwatch(), Stopwatch(lambda seconds: _say_time(seconds, cfg))]
    for watch, its_cfg, its_model in zip(
        watches, (cfg, augmented_cfg), (model.model, model), strict=True
    ):
        with watch.on(its_model):
            results.append(trainer.test(its_cfg, its_model))
    if not comm.is_main_process():
        return results[0]
    names = ("once", f"in {model.num_views} views")
    rows = [
        [dataset, name, *(figures.get(metric, float("nan")) for metric in METRICS), watch]
        for result, name, watch in zip(results, names, [x.per_image() for x in watches])
        for dataset, figures in _boxes(result, cfg.DATASETS.TEST)
    ]
    rows.sort(key=lambda row: cfg.DATASETS.TEST.index(row[0]))
    table = tabulate(
        rows,
        headers=["data set", "seen", *METRICS, "s/image"],
        floatfmt=("", "", *[".2f"] * len(METRICS), ".3f"),
        missingval="nan",
    )
    _logger.info(f"Without and with test-time augmentation:\n{table}")
    return {**results[0], **{f"{name}_TTA": value for name, value in results[1].items()}}


def _say_time(seconds: float, cfg: CfgNode) -> None:
    """Forecast the evaluation with augmentation by its first image."""
    count = sum(len(DatasetCatalog.get(name)) for name in cfg.DATASETS.TEST)
    minutes = seconds * count / comm.get_world_size() / 60
    _logger.info(
        f"With augmentation an image takes {seconds:.2g} s: {count} images about "
        f"{minutes:.1f} minutes.",
        extra=SHOWN,
    )


def _boxes(results: dict, datasets: list[str]) -> list[tuple[str, dict[str, float]]]:
    """Figures of each data set, of both branches together."""
    by_name = {datasets[0]: results} if len(datasets) == 1 else results
    return [(name, result.get("bbox", {})) for name, result in by_name.items()]


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
