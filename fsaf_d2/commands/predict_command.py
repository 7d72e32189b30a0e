"""Find objects in images and videos with a trained detector.

    fsaf-d2 predict --weights output/mine/model_final.pth --input photos --output found

The config is in the checkpoint. For weights without one, such as those of a model zoo:

    fsaf-d2 predict --weights W --config-file C --class-names cat dog \\
        --input a.jpg clip.mp4 'photos/*.png' --output found [KEY VALUE ...]

Exit code: 0 if all images and videos are done, 3 if some could not be read, 1 if none is done or
the command is wrong. What is no image or video by its name, in folders and patterns, is named and
left out, and does not count.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from ..prediction.detector import Detector
from ..prediction.inputs import Inputs, find_inputs
from ..prediction.loading import load_detector
from ..prediction.run import DEFAULT_OUTPUTS, OUTPUTS, predict, require_safe_folder
from ..prediction.shots import Summary
from ..texts import as_line, show_whatever_is_said
from .calls import called_as
from .weights_options import add_weights_options

# So many skipped files are named.
MAX_NAMED = 20


class _Parser(argparse.ArgumentParser):
    """Exits with 1, as other errors do."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command."""
        self.print_usage(sys.stderr)
        sys.exit(f"{self.prog}: error: {message}")


def argument_parser(program: str = "predict") -> argparse.ArgumentParser:
    """The options."""
    parser = _Parser(
        prog=program,
        description=called_as(__doc__, program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="a training's checkpoint, or what the export has written",
    )
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        action="extend",
        metavar="PATH",
        help="images, videos, folders, patterns such as 'photos/*.jpg'; several are allowed",
    )
    _add_output_options(parser)
    parser.add_argument(
        "--min-score",
        type=float,
        metavar="SCORE",
        help="0 to 1: the least score, for all classes (default: for each class the one in the "
        "checkpoint, at which its F1 was best, or 0.5)",
    )
    parser.add_argument(
        "--agnostic-nms",
        action="store_true",
        help="of detections that overlap, of any classes, keep the surest alone: for objects that "
        "are of one class each",
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="default: 8 on a GPU, else 2")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that read images")
    parser.add_argument("--device", help="such as cpu or cuda (default: the GPU if there is one)")
    add_weights_options(parser)
    parser.set_defaults(program=program)
    return parser


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="FOLDER", help="it is made")
    parser.add_argument("--recursive", action="store_true", help="look into folders in folders")
    parser.add_argument("--overwrite", action="store_true", help="replace results of same names")
    parser.add_argument(
        "--save",
        nargs="+",
        choices=list(OUTPUTS),
        default=list(DEFAULT_OUTPUTS),
        help="what is written: drawn images, COCO json, csv, YOLO txt (default: the first three)",
    )
    parser.add_argument(
        "--crops",
        nargs="*",
        metavar="CLASS",
        help="also cut out what is found of these classes; of all, if none is named",
    )
    parser.add_argument(
        "--show",
        nargs="+",
        choices=["level", "branch"],
        default=[],
        help="tell in drawn images which pyramid level and which branch found each object",
    )


def main(argv: Sequence[str] | None = None, program: str = "predict") -> int:
    """Run the command with these arguments; returns the exit status."""
    return run(argument_parser(program).parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Load, predict, and say in a few lines how it went. Returns the exit code."""
    show_whatever_is_said()
    try:
        return _run(args)
    except (ValueError, OSError, ImportError, torch.OutOfMemoryError) as error:
        remedy = " Lower --batch-size." if isinstance(error, torch.OutOfMemoryError) else ""
        print(f"{args.program}: error: {error}{remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"\n{args.program}: stopped; what was written is complete up to here.", file=sys.stderr
        )
        return 130


def _run(args: argparse.Namespace) -> int:
    _check(args)
    inputs = find_inputs(args.input, recursive=args.recursive, output=args.output)
    _say_skipped(inputs)
    if not (inputs.images or inputs.videos):
        raise ValueError("There is no image and no video in the input.")
    require_safe_folder(Path(args.output), inputs, args.overwrite)
    detector = load_detector(
        args.weights,
        config_file=args.config_file,
        # "--" may part them from the options.
        overrides=[word for word in args.opts if word != "--"],
        class_names=args.class_names,
        device=args.device,
        batch_size=args.batch_size,
        trust=args.trust_weights,
    )
    detector.agnostic_nms = args.agnostic_nms
    _say_settings(detector, args.min_score)
    summary = predict(
        detector,
        inputs,
        args.output,
        save=args.save,
        crops=args.crops,
        show=args.show,
        min_score=args.min_score,
        workers=args.workers,
        overwrite=args.overwrite,
    )
    _say_summary(summary, args.output)
    return summary.exit_code


def _check(args: argparse.Namespace) -> None:
    if args.min_score is not None and not 0 <= args.min_score <= 1:
        raise ValueError(f"--min-score must be from 0 to 1, not {args.min_score}.")
    for option in ("batch_size", "workers"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')} must be 1 or more, not {value}.")
    keys = [word for word in args.input if re.fullmatch(r"[A-Z]+(\.[A-Z0-9_]+)+", word)]
    if keys:
        raise ValueError(
            f"'{keys[0]}' is taken for an input: put config keys behind '--' at the end."
        )


def _say_skipped(inputs: Inputs) -> None:
    for path, reason in inputs.skipped[:MAX_NAMED]:
        print(as_line(f"Skipped: {path}: {reason}"))
    if len(inputs.skipped) > MAX_NAMED:
        print(f"Skipped: {len(inputs.skipped) - MAX_NAMED} more")


def _say_settings(detector: Detector, min_score: float | None) -> None:
    for note in detector.notes:
        if min_score is None or "score threshold" not in note:
            print(note)
    device = "the GPU" if detector.model.device.type == "cuda" else detector.model.device.type
    least = detector.thresholds if min_score is None else torch.tensor([min_score])
    low, high = (f"{value:.2f}" for value in least.aminmax())
    scores = low if low == high else f"{low} to {high}, by class"
    names = ", ".join(detector.class_names[:10])
    more = f" and {len(detector.class_names) - 10} more" if len(detector.class_names) > 10 else ""
    print(f"Classes: {names}{more}. Least score: {scores}. Running on {device}.", flush=True)


def _say_summary(summary: Summary, output: str) -> None:
    total = summary.num_files + len(summary.failures)
    frames = f" ({summary.num_images} images)" if summary.num_images != summary.num_files else ""
    failed = f" {len(summary.failures)} failed, named above." if summary.failures else ""
    print(
        f"{summary.num_files} of {total} files{frames} done, {summary.num_detections} detections: "
        f"{output}.{failed}"
    )
    if summary.frames:
        print(
            f"Of {len(summary.frames)} files with several frames or pages the first alone was "
            "read: save the others as files of their own."
        )
    if summary.num_images and not summary.num_detections:
        print(
            f"Nothing reached the least score; the highest was {summary.highest_score:.3f}. "
            "--min-score sets a lower one; where it must be very low, train longer."
        )
