"""The demo: train, evaluate and draw on handwritten digits, in minutes on two CPU cores."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.env import seed_all_rng
from tabulate import tabulate

from .commands.calls import call
from .data.reading.builtin import data_root
from .data.reading.digits import make_digits
from .detectors.contract import BRANCH_ENDING
from .evaluation import overall_table
from .evaluation.run_report import REPORT
from .training import Trainer, prepare
from .training.hooks import ProgressLine
from .visualization.samples import draw_samples

NUM_TRAIN, NUM_VAL = 2500, 300
# Of the boxes that are drawn.
MIN_SCORE = 0.4


def run_demo(cfg: CfgNode) -> dict[str, float]:
    """Make the digits where they are missing, then train on them, evaluate and draw.

    What happens is printed in a few lines; detectron2's own log goes to ``OUTPUT_DIR/log.txt``.

    Args:
        cfg: of the demo, not frozen. Its data sets are ``digits_train`` and ``digits_val``, its
            images square.

    Returns:
        COCO box metrics on the validation images, in percent.
    """
    start = time.monotonic()
    output = Path(cfg.OUTPUT_DIR)
    output.mkdir(parents=True, exist_ok=True)
    root = data_root()
    print(f"1/3 Data: {NUM_TRAIN} training and {NUM_VAL} validation images in {root / 'digits'}")
    make_digits(root, num_train=NUM_TRAIN, num_val=NUM_VAL, image_size=cfg.INPUT.MIN_SIZE_TEST)

    prepare(cfg, eval_only=False)
    (dataset_name,) = cfg.DATASETS.TEST
    steps, period = cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD
    evaluated = f", evaluated every {period}" if period else ""
    with _log_to(output / "log.txt"):
        print(f"2/3 Training: {steps} steps of {cfg.SOLVER.IMS_PER_BATCH} images{evaluated}")
        trainer, results = _train(cfg)
        metrics = results["bbox"]
        print(f"3/3 What it finds in the {NUM_VAL} validation images")
        print(_table(results, MetadataCatalog.get(dataset_name).thing_classes))
        image = output / "detections.png"
        num_drawn = draw_samples(trainer.model, cfg, dataset_name, image, min_score=MIN_SCORE)
    print(f"  {image}   validation images: boxes, scores, the level and branch of each")
    if num_drawn == 0:
        print(f"    No box on them has a score of {MIN_SCORE} or more: train longer.")
    print(f"  {output / REPORT}      curves, tables, worst mistakes: open it in a browser")
    print(f"  {output / 'model_final.pth'}  the detector, for {call('predict')}")
    minutes, seconds = divmod(int(time.monotonic() - start), 60)
    print(f"AP50 {metrics['AP50']:.1f} in {minutes} min {seconds} s.")
    return metrics


def _train(cfg: CfgNode) -> tuple[Trainer, dict[str, dict[str, float]]]:
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED)
    trainer = Trainer(cfg)
    trainer.register_hooks([ProgressLine()])
    trainer.resume_or_load(resume=False)
    return trainer, trainer.train()


def _table(results: dict[str, dict[str, float]], class_names: list[str]) -> str:
    metrics = results["bbox"]
    branches = {name: x for name, x in results.items() if name.endswith(BRANCH_ENDING)}
    table = overall_table({"joint": metrics, **branches})
    per_class = tabulate(
        [[f"{metrics.get(f'AP-{name}', math.nan):.1f}" for name in class_names]],
        headers=[f"AP of {name}" for name in class_names],
        tablefmt="github",
        disable_numparse=True,
    )
    return f"{table}\n\n{per_class}"


@contextlib.contextmanager
def _log_to(file: Path) -> Iterator[None]:
    """Send the libraries' log to a file alone."""
    handler = logging.FileHandler(file, mode="w")
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
