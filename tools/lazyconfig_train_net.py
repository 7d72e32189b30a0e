#!/usr/bin/env python
"""Train or evaluate a detector that a Python config describes.

python tools/lazyconfig_train_net.py --config-file configs/lazy/fsaf_R_50_FPN_1x.py --num-gpus 8
python tools/lazyconfig_train_net.py --config-file CONFIG.py --eval-only train.init_checkpoint=W.pth

Overrides are written key=value. A Python config is code and runs with your rights: only run those
of people whom you trust. train_net.py takes YAML, which is data.
"""

from __future__ import annotations

import argparse
import contextlib
import sys

import torch
from detectron2.engine import default_argument_parser

from fsaf_d2.texts import show_whatever_is_said
from fsaf_d2.training import EXPECTED, launch, naming_lost_workers, owned_output
from fsaf_d2.training.lazy import ConfigError, load_lazy_config, run
from fsaf_d2.training.lazy_config import WORDS
from fsaf_d2.training.lazy_ranges import lines_of_lazy_warm_up, require_lazy_ranges
from fsaf_d2.training.run_settings import in_words
from fsaf_d2.training.setup import require_gpus


def main(args: argparse.Namespace) -> dict | None:
    """Run one process."""
    show_whatever_is_said()
    try:
        with naming_lost_workers():
            return run(load_lazy_config(args.config_file, args.opts), args)
    except (*EXPECTED, ConfigError) as error:
        # Files that are not there, wrong arguments, a loss that is not finite; all else shows where
        # it went wrong.
        sys.exit(f"lazyconfig_train_net.py: error: {in_words(str(error), WORDS)}")


if __name__ == "__main__":
    show_whatever_is_said()
    arguments = default_argument_parser(__doc__).parse_args()
    try:
        require_gpus(arguments.num_gpus)
        config = load_lazy_config(arguments.config_file, arguments.opts)
        require_lazy_ranges(config, eval_only=arguments.eval_only)
    except (ValueError, OSError) as error:
        sys.exit(f"lazyconfig_train_net.py: error: {error}")
    if config.train.device == "cpu" and not torch.cuda.is_available():
        print("No GPU found: running on the CPU.")
    for line in [] if arguments.eval_only else lines_of_lazy_warm_up(config):
        print(line)
    with contextlib.ExitStack() as until_end:
        try:
            until_end.enter_context(owned_output(config.train.output_dir, "train.output_dir"))
        except ValueError as error:
            sys.exit(f"lazyconfig_train_net.py: error: {error}")
        launch(
            main,
            arguments.num_gpus,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            device=config.train.device,
            args=(arguments,),
        )
