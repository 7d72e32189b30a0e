#!/usr/bin/env python
"""Find objects in images and videos with a trained detector.

    python tools/predict.py --weights output/mine/model_final.pth --input photos --output found

The config is in the checkpoint. For weights without one, such as those of a model zoo:

    python tools/predict.py --weights W --config-file C --class-names cat dog \\
        --input a.jpg clip.mp4 'photos/*.png' --output found [KEY VALUE ...]

Exit code: 0 if all images and videos are done, 3 if some could not be read, 1 if none is done or
the command is wrong. What is no image or video by its name, in folders and patterns, is named and
left out, and does not count.
"""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from fsaf_d2.prediction.predict_command import run
from fsaf_d2.prediction.run import DEFAULT_OUTPUTS, OUTPUTS


class Parser(argparse.ArgumentParser):
    """Exits with 1, as other errors do."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command."""
        self.print_usage(sys.stderr)
        sys.exit(f"{self.prog}: error: {message}")


def argument_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="a training's checkpoint, or what tools/export.py has written",
    )
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        action="extend",
        metavar="PATH",
        help="images, videos, folders, patterns such as 'photos/*.jpg'; several are allowed",
    )
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
        "--min-score",
        type=float,
        metavar="SCORE",
        help="0 to 1: the least score, for all classes (default: for each class the one in the "
        "checkpoint, at which its F1 was best, or 0.5)",
    )
    parser.add_argument(
        "--show",
        nargs="+",
        choices=["level", "branch"],
        default=[],
        help="tell in drawn images which pyramid level and which branch found each object",
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
    parser.add_argument("--config-file", default="", metavar="FILE", help="for weights without one")
    parser.add_argument("--class-names", nargs="+", metavar="NAME", help="for weights without them")
    parser.add_argument(
        "--trust-weights",
        action="store_true",
        help="read the weights with all that is in the file: any code in it runs with your rights. "
        "Only for files of people whom you trust",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs over the config, at the end"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run(argument_parser().parse_args()))
