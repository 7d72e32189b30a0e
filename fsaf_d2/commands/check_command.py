"""Check a data set: its annotations, and the header of every image. Nothing is trained.

    fsaf-d2 check annotations.json:images/
    fsaf-d2 check FOLDER --val FOLDER --config-file configs/fsaf_R_50_FPN_1x.yaml
    fsaf-d2 check annotations.json:images/ --fix mended.json

The path is a COCO file with its image folder, or a folder in COCO's, Roboflow's, Pascal VOC's or
YOLO's layout. Exit code 1: there are errors; 2: the path cannot be read.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from ..config import load_config
from ..data.checking.check_coverage import coverage
from ..data.checking.check_source import Check, check_source
from ..data.checking.fix import fix
from ..data.checking.images import image_limits
from ..data.checking.leaks import check_leaks
from ..data.checking.output import (
    as_text,
    coverage_text,
    fixed_text,
    loss_text,
    to_dict,
    to_file,
)
from ..data.reading.canonical import match_categories, write_json
from ..data.reading.sources import Source, open_source
from ..texts import show_whatever_is_said
from ..visualization.data_statistics import plot_statistics
from .calls import called_as


def main(argv: Sequence[str] | None = None, program: str = "check_data") -> int:
    """Run the command with these arguments; returns the exit status."""
    show_whatever_is_said()
    args = _parser(program).parse_args(argv)
    try:
        cfg = load_config(args.config_file) if args.config_file else None
        sources = {"train": open_source(args.path, split=args.split)}
        if args.val:
            sources["val"] = open_source(args.val, split="val")
        if args.fix:
            _require_new(args.fix, sources.values())
        return _run(args, cfg, sources)
    except (ValueError, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2


def _parser(program: str) -> argparse.ArgumentParser:
    lines = called_as(__doc__, program).splitlines()
    parser = argparse.ArgumentParser(
        prog=program,
        description=lines[0],
        epilog="\n".join(lines[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", help="COCO file and image folder (ann.json:images/), or a folder")
    parser.add_argument("--val", metavar="PATH", help="validation data: checked too, and for leaks")
    parser.add_argument(
        "--split",
        default="train",
        choices=("train", "val", "test"),
        help="which part of a folder that holds several (default: train)",
    )
    parser.add_argument(
        "--fix", metavar="OUT", help="write a COCO file with what is certain mended"
    )
    parser.add_argument(
        "--allow-loss",
        action="store_true",
        help="let --fix write a file that lacks more than a tenth of the images or the boxes",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="twenty findings of a kind, and more classes"
    )
    parser.add_argument("--json", metavar="F", help="write all findings and figures to a JSON file")
    parser.add_argument(
        "--plot",
        metavar="PNG",
        help="write histograms of classes and sizes (default: beside --json, as data_NAME.png)",
    )
    parser.add_argument(
        "--config-file",
        metavar="C",
        help="say which objects this config's anchors and locations reach",
    )
    parser.add_argument(
        "--decode", action="store_true", help="decode every image to its end (slow)"
    )
    return parser


def _require_new(path: str, sources: list[Source]) -> None:
    """Make sure that nothing which is read is written over."""
    for source in sources:
        for inside in (source.annotation_file, *source.places.values()):
            own = inside if os.path.exists(inside) else inside.rpartition(":")[0]
            if os.path.exists(path) and os.path.exists(own) and os.path.samefile(path, own):
                raise ValueError(f"--fix {path} would write over the data: give another name.")
    if os.path.isdir(path):
        raise ValueError(f"--fix {path} is a folder: give the name of a file.")


def _run(args: argparse.Namespace, cfg: CfgNode | None, sources: dict[str, Source]) -> int:
    options = {"decode": args.decode, **(image_limits(cfg) if cfg else {})}
    checks = {x: check_source(y, progress=True, **options) for x, y in sources.items()}
    train, val = checks["train"], checks.get("val")
    if val:
        train.leaks = check_leaks(train, val)
    fixed = fix(train, val, **options) if args.fix else None
    if fixed and loss_text(fixed, args.fix, is_allowed=args.allow_loss):
        print(loss_text(fixed, args.fix, is_allowed=args.allow_loss), end="\n\n")
    reports = {name: to_dict(check, limit=None) for name, check in checks.items()}
    for name, check in checks.items():
        print(as_text(reports[name], verbose=args.verbose), end="\n\n")
        if cfg and check.boxes.layout.certain:
            reports[name]["coverage"] = coverage(check, cfg)
            if name == "train" or args.verbose:
                print(coverage_text(reports[name]["coverage"]), end="\n\n")
        path = _plot_path(args, check, name)
        if path:
            plot_statistics(reports[name]["statistics"], path, title=check.source.path)
            print(f"Histograms: {path}\n")
    unmatched = _unmatched(train, val) if val else ""
    if args.json:
        validation = {"validation": reports["val"]} if val else {}
        if unmatched:
            reports["val"]["unmatched_classes"] = unmatched
        write_json(os.path.abspath(args.json), reports["train"] | validation)
    num_errors = sum(check.num_errors for check in checks.values())
    if unmatched:
        print(f"error: {unmatched}\n")
        num_errors += 1
    if fixed:
        is_written = args.allow_loss or not fixed.loses_much
        if is_written:
            write_json(os.path.abspath(args.fix), to_file(fixed))
            num_errors += fixed.check.num_errors - train.num_errors
        print(fixed_text(fixed, args.fix, is_written=is_written))
        num_errors += not is_written
    return int(num_errors > 0)


def _unmatched(train: Check, val: Check) -> str:
    """What keeps the classes of the validation data from being those of the training data."""
    named = [
        [x for x in check.entries.categories if isinstance(x.get("name"), str)]
        for check in (train, val)
    ]
    try:
        match_categories(*named, val.source.path)
    except ValueError as error:
        return str(error)
    return ""


def _plot_path(args: argparse.Namespace, check: Check, name: str) -> Path | None:
    """Where histograms are written; None where nobody has said so."""
    if args.plot:
        path = Path(args.plot)
        ending = "_val" if name == "val" else ""
        return path.with_name(f"{path.stem}{ending}{path.suffix or '.png'}")
    if not args.json:
        return None
    own = Path(os.path.abspath(check.source.annotation_file))
    # Files and folders that formats name are called as what they are in.
    while own.stem.strip("_").split(".")[0].lower() in ("annotations", "labels", "data"):
        own = own.parent
    ending = "" if name == "train" or own.stem == "val" else "_val"
    return Path(args.json).parent / f"data_{own.stem}{ending}.png"
