"""Train or evaluate a detector that a Python config describes.

fsaf-d2 train-lazy --config-file configs/lazy/fsaf_R_50_FPN_1x.py --num-gpus 8
fsaf-d2 train-lazy --config-file CONFIG.py --eval-only train.init_checkpoint=W.pth

Overrides are written key=value. A Python config is code and runs with your rights: only run those
of people whom you trust. fsaf-d2 train takes YAML, which is data.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence

import torch
from detectron2.engine import default_argument_parser

from ..config_names import find_config
from ..texts import show_whatever_is_said
from ..training import EXPECTED, launch, naming_lost_workers, owned_output
from ..training.lazy import ConfigError, load_lazy_config, run
from ..training.lazy_config import WORDS
from ..training.lazy_ranges import lines_of_lazy_warm_up, require_lazy_ranges
from ..training.run_settings import in_words
from ..training.setup import require_gpus
from .calls import called_as

PROGRAM = "lazyconfig_train_net.py"


def run_process(args: argparse.Namespace) -> dict | None:
    """Run one process."""
    show_whatever_is_said()
    try:
        with naming_lost_workers():
            return run(load_lazy_config(args.config_file, args.opts), args)
    except (*EXPECTED, ConfigError) as error:
        # Files that are not there, wrong arguments, a loss that is not finite; all else shows where
        # it went wrong.
        sys.exit(f"{args.program}: error: {in_words(str(error), WORDS)}")


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> None:
    """Run the command with these arguments."""
    show_whatever_is_said()
    parser = default_argument_parser(called_as(__doc__, program))
    parser.prog = program
    parser.set_defaults(program=program)
    args = parser.parse_args(argv)
    try:
        require_gpus(args.num_gpus)
        config = load_lazy_config(args.config_file, args.opts)
        args.config_file = find_config(args.config_file, ".py")
        require_lazy_ranges(config, eval_only=args.eval_only)
    except (ValueError, OSError) as error:
        sys.exit(f"{program}: error: {error}")
    if config.train.device == "cpu" and not torch.cuda.is_available():
        print("No GPU found: running on the CPU.")
    for line in [] if args.eval_only else lines_of_lazy_warm_up(config):
        print(line)
    with contextlib.ExitStack() as until_end:
        try:
            until_end.enter_context(owned_output(config.train.output_dir, "train.output_dir"))
        except ValueError as error:
            sys.exit(f"{program}: error: {error}")
        launch(
            run_process,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            device=config.train.device,
            args=(args,),
        )
