"""Train or evaluate a detector.

fsaf-d2 train --config-file configs/fsaf_R_50_FPN_1x.yaml --num-gpus 8
torchrun --standalone --nproc-per-node 2 -m fsaf_d2 train --config-file CONFIG
fsaf-d2 train --config-file CONFIG --train-data my/train --val-data my/val
fsaf-d2 train --config-file CONFIG --resume    (behind the last whole checkpoint)
fsaf-d2 evaluate --config-file CONFIG MODEL.WEIGHTS WEIGHTS
fsaf-d2 evaluate --config-file CONFIG MODEL.WEIGHTS WEIGHTS TEST.AUG.ENABLED True
fsaf-d2 evaluate --predictions ANNOTATIONS.json PREDICTIONS.json

CONFIG is a file, or the name of a config of the package, such as family/gfl_R_50_FPN_1x.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from .. import model_zoo
from ..config import load_config
from ..config_names import find_config
from ..data.reading.own import class_list, register_own_data
from ..data.reading.sources import open_source
from ..evaluation import keep_report
from ..texts import show_whatever_is_said
from ..training import (
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
from .calls import called_as
from .weights_options import add_trust_option

PROGRAM = "train_net.py"


@contextlib.contextmanager
def one_sentence(
    errors: tuple[type[Exception], ...] = (ValueError, OSError, ImportError),
    program: str = PROGRAM,
) -> Iterator[None]:
    """Turn errors, of config, weights, data or missing packages for example, into one sentence.

    Of several processes under torchrun the first one says it.
    """
    try:
        yield
    except errors as error:
        sys.exit(f"{program}: error: {error}" if first_to_fail() else 1)


@contextlib.contextmanager
def stopped_in_a_sentence(program: str) -> Iterator[None]:
    """End an evaluation on Ctrl-C with one sentence and the shell's code for it."""
    try:
        yield
    except KeyboardInterrupt:
        if first_to_fail():
            print(f"\n{program}: stopped; the evaluation is not complete.", file=sys.stderr)
        sys.exit(130)


def read_config(args: argparse.Namespace, until_end: contextlib.ExitStack | None = None) -> CfgNode:
    """Read the config, check that what it needs is there, and take its output folder."""
    if not args.config_file:
        raise ValueError("--config-file is missing, for example configs/fsaf_R_50_FPN_1x.yaml.")
    cfg = load_config(args.config_file, args.opts)
    args.config_file = find_config(args.config_file)
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
    from ..inference.augmented import AugmentedDetector

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


def run(cfg: CfgNode, args: argparse.Namespace) -> dict | None:
    """Run one process: train, or evaluate if ``--eval-only``."""
    with one_sentence(program=args.program):
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
        stopped = stopped_in_a_sentence(args.program)
        with one_sentence((OSError,), args.program), naming_lost_workers(), stopped:
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
    with one_sentence(EXPECTED, args.program), naming_lost_workers():
        return trainer.train()


def argument_parser(program: str = PROGRAM) -> argparse.ArgumentParser:
    """detectron2's options and those of this program."""
    parser = default_argument_parser(called_as(__doc__.partition("\n\n")[2], program))
    parser.prog = program
    parser.set_defaults(program=program)
    add_trust_option(parser, "MODEL.WEIGHTS, or the checkpoint to resume from,")
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


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> None:
    """Run the command with these arguments."""
    show_whatever_is_said()
    args = argument_parser(program).parse_args(argv)
    with contextlib.ExitStack() as until_end:
        with one_sentence(program=program):
            cfg = read_config(args, until_end)
        launch(
            run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            device=cfg.MODEL.DEVICE,
            args=(cfg, args),
        )
