#!/usr/bin/env python
"""Train or evaluate a detector.

python train_net.py --config-file configs/fsaf_R_50_FPN_1x.yaml --num-gpus 8
torchrun --standalone --nproc-per-node 2 train_net.py --config-file CONFIG
python train_net.py --config-file CONFIG --train-data my/train --val-data my/val
python train_net.py --config-file CONFIG --resume    (behind the last whole checkpoint)
python train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS WEIGHTS
python train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS WEIGHTS TEST.AUG.ENABLED True
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

# First, as it says how to get detectron2 where that is missing.
from fsaf_d2 import load_config

# isort: split
import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from fsaf_d2 import model_zoo
from fsaf_d2.data.reading.own import class_list, register_own_data
from fsaf_d2.data.reading.sources import open_source
from fsaf_d2.evaluation import keep_report
from fsaf_d2.texts import show_whatever_is_said
from fsaf_d2.training import (
    EXPECTED,
    SafeCheckpointer,
    Trainer,
    compare_augmented,
    first_to_fail,
    launch,
    load_weights,
    naming_lost_workers,
    owned_output,
    prepare,
    require_ranges,
    saved_classes,
    set_up,
    use_own_data,
)


@contextlib.contextmanager
def one_sentence(
    errors: tuple[type[Exception], ...] = (ValueError, OSError, ImportError),
) -> Iterator[None]:
    """Turn errors, of config, weights, data or missing packages for example, into one sentence.

    Of several processes under torchrun the first one says it.
    """
    try:
        yield
    except errors as error:
        sys.exit(f"{os.path.basename(sys.argv[0])}: error: {error}" if first_to_fail() else 1)


@contextlib.contextmanager
def stopped_in_a_sentence() -> Iterator[None]:
    """End an evaluation on Ctrl-C with one sentence and the shell's code for it."""
    try:
        yield
    except KeyboardInterrupt:
        if first_to_fail():
            name = os.path.basename(sys.argv[0])
            print(f"\n{name}: stopped; the evaluation is not complete.", file=sys.stderr)
        sys.exit(130)


def read_config(args: argparse.Namespace, until_end: contextlib.ExitStack | None = None) -> CfgNode:
    """Read the config, check that what it needs is there, and take its output folder."""
    if not args.config_file:
        raise ValueError("--config-file is missing, for example configs/fsaf_R_50_FPN_1x.yaml.")
    cfg = load_config(args.config_file, args.opts)
    require_ranges(cfg, eval_only=args.eval_only)
    if until_end:
        until_end.enter_context(owned_output(cfg.OUTPUT_DIR))
    take_own_data(cfg, args)
    prepare(
        cfg,
        eval_only=args.eval_only,
        num_gpus=args.num_gpus,
        num_machines=args.num_machines,
        resume=args.resume,
    )
    cfg.freeze()
    return cfg


def take_own_data(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Set the data that ``--train-data`` and ``--val-data`` name, if any."""
    if not args.eval_only:
        if args.val_data and not args.train_data:
            raise ValueError("--val-data without --train-data is for --eval-only: give both.")
        use_own_data(cfg, args.train_data, args.val_data, resume=args.resume)
        return
    if args.train_data and not args.val_data:
        raise ValueError("--eval-only needs --val-data: --train-data is for training.")
    if args.val_data:
        classes = saved_classes(weights_file(cfg, args), trust=args.trust_weights)
        if classes is None and args.train_data:
            classes = class_list(open_source(args.train_data))
        use_own_data(cfg, val_data=args.val_data, classes=classes)


def weights_file(cfg: CfgNode, args: argparse.Namespace) -> str:
    """The file that is evaluated: with ``--resume`` the run's last checkpoint, if there is one."""
    last = ""
    if args.resume:
        last = SafeCheckpointer(torch.nn.Identity(), cfg.OUTPUT_DIR).get_checkpoint_file()
    return last or cfg.MODEL.WEIGHTS.split("?")[0]


def build_augmented(cfg: CfgNode, model: torch.nn.Module) -> torch.nn.Module:
    """The model with test-time augmentation, which needs OpenCV, unlike all else here."""
    from fsaf_d2.inference.augmented import AugmentedDetector

    return AugmentedDetector(cfg, model)


@contextlib.contextmanager
def config_of_training_kept(cfg: CfgNode, args: argparse.Namespace) -> Iterator[None]:
    """Of an evaluation in the folder of a training, write ``config_eval.yaml`` instead."""
    file = Path(cfg.OUTPUT_DIR, "config.yaml")
    before = file.read_bytes() if args.eval_only and file.is_file() else None
    yield
    if before is not None and comm.is_main_process():
        file.replace(file.with_name("config_eval.yaml"))
        file.write_bytes(before)


def main(cfg: CfgNode, args: argparse.Namespace) -> dict | None:
    """Run one process: train, or evaluate if ``--eval-only``."""
    with one_sentence():
        with config_of_training_kept(cfg, args):
            set_up(cfg, args)
        show_whatever_is_said()
        # A process that was started anew knows of no data set.
        register_own_data(cfg)
        if args.eval_only:
            model = Trainer.build_model(cfg)
            checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, trust=args.trust_weights)
            load_weights(
                checkpointer, cfg.MODEL.WEIGHTS, resume=args.resume, cfg=cfg, complete=True
            )
            augmented = build_augmented(cfg, model) if cfg.TEST.AUG.ENABLED else None
        else:
            trainer = Trainer(cfg)
            trainer.checkpointer.trust = args.trust_weights
            trainer.resume_or_load(resume=args.resume)
    if args.eval_only:
        with one_sentence((OSError,)), naming_lost_workers(), stopped_in_a_sentence():
            if augmented:
                results = compare_augmented(Trainer, cfg, augmented)
            else:
                results = Trainer.test(cfg, model)
        if comm.is_main_process():
            keep_report(cfg.OUTPUT_DIR)
            for line in model_zoo.compare(weights_file(cfg, args), results, cfg.DATASETS.TEST):
                print(line)
        return results
    # What else may go wrong is a fault of the program, and shows where.
    with one_sentence(EXPECTED), naming_lost_workers():
        return trainer.train()


def argument_parser() -> argparse.ArgumentParser:
    """detectron2's options and those of this program."""
    parser = default_argument_parser()
    parser.add_argument(
        "--trust-weights",
        action="store_true",
        help="read MODEL.WEIGHTS, or the checkpoint to resume from, with all that is in the file: "
        "any code in it runs with your rights. Only for files of people whom you trust",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show all that OUTPUT_DIR/log.txt has"
    )
    parser.add_argument(
        "--train-data",
        metavar="PATH",
        help="train on data of your own, in place of DATASETS.TRAIN: a folder in the format of "
        "COCO, Roboflow, Pascal VOC or YOLO, or a COCO file with its images as ann.json:images/",
    )
    parser.add_argument(
        "--val-data",
        metavar="PATH",
        help="evaluate on them, in place of DATASETS.TEST; the same folder, where it has splits",
    )
    return parser


if __name__ == "__main__":
    show_whatever_is_said()
    arguments = argument_parser().parse_args()
    with contextlib.ExitStack() as until_end:
        with one_sentence():
            config = read_config(arguments, until_end)
        launch(
            main,
            arguments.num_gpus,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            device=config.MODEL.DEVICE,
            args=(config, arguments),
        )
