#!/usr/bin/env python
"""Write a trained detector as a file of ONNX or TorchScript, which runs without this project.

    python tools/export.py --weights output/mine/model_final.pth --format onnx --check photos/

The config is in the checkpoint. Beside the file lies a sidecar (model_final.onnx.json) with
classes, thresholds and how images are prepared. --check runs the detector and the file on
images: where they differ, nothing is written and the exit code is 1. docs/export.md says more.
"""

from __future__ import annotations

import argparse
import sys

from fsaf_d2.export.export_command import run
from fsaf_d2.export.writing import ENDINGS


def argument_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="a training's checkpoint")
    parser.add_argument("--format", required=True, choices=list(ENDINGS))
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="what is written (default: beside the weights, with their name and .onnx or "
        ".torchscript)",
    )
    parser.add_argument(
        "--check",
        nargs="+",
        metavar="IMAGES",
        help="images, folders, patterns: on these the file must find what the detector finds",
    )
    parser.add_argument(
        "--no-nms",
        dest="nms",
        action="store_false",
        help="let all candidates out, as they are before suppression",
    )
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
