#!/usr/bin/env python
"""Train or evaluate a detector.

python train_net.py --config-file configs/fsaf_R_50_FPN_1x.yaml --num-gpus 8
torchrun --standalone --nproc-per-node 2 train_net.py --config-file CONFIG
python train_net.py --config-file CONFIG --resume    (behind the last whole checkpoint)
python train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS WEIGHTS
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator

# First, as it says how to get detectron2 where that is missing.
from fsaf_d2 import load_config

# isort: split
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup

from fsaf_d2.training import (
    SafeCheckpointer,
    Trainer,
    first_to_fail,
    launch,
    load_weights,
    prepare,
)


@contextlib.contextmanager
def one_sentence(
    errors: tuple[type[Exception], ...] = (ValueError, OSError),
) -> Iterator[None]:
    """Turn errors, of config, weights, data or folders for example, into one sentence on exit.

    Of several processes under torchrun the first one says it.
    """
    try:
        yield
    except errors as error:
        sys.exit(f"{os.path.basename(sys.argv[0])}: error: {error}" if first_to_fail() else 1)


def read_config(args: argparse.Namespace) -> CfgNode:
    """Read the config, and check that what it needs is there."""
    if not args.config_file:
        raise ValueError("--config-file is missing, for example configs/fsaf_R_50_FPN_1x.yaml.")
    cfg = load_config(args.config_file, args.opts)
    prepare(
        cfg,
        eval_only=args.eval_only,
        num_gpus=args.num_gpus,
        num_machines=args.num_machines,
        resume=args.resume,
    )
    cfg.freeze()
    return cfg


def main(cfg: CfgNode, args: argparse.Namespace) -> dict | None:
    """Run one process: train, or evaluate if ``--eval-only``."""
    with one_sentence():
        default_setup(cfg, args)
        if args.eval_only:
            model = Trainer.build_model(cfg)
            checkpointer = SafeCheckpointer(model, cfg.OUTPUT_DIR, trust=args.trust_weights)
            load_weights(checkpointer, cfg.MODEL.WEIGHTS, resume=args.resume)
        else:
            trainer = Trainer(cfg)
            trainer.checkpointer.trust = args.trust_weights
            trainer.resume_or_load(resume=args.resume)
    if args.eval_only:
        return Trainer.test(cfg, model)
    # What else may go wrong is a fault of the program, and shows where.
    with one_sentence((OSError, FloatingPointError)):
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
    return parser


if __name__ == "__main__":
    arguments = argument_parser().parse_args()
    with one_sentence():
        config = read_config(arguments)
    launch(
        main,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        device=config.MODEL.DEVICE,
        args=(config, arguments),
    )
