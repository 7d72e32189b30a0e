#!/usr/bin/env python
"""Convert weights of another library once, and say what became of every tensor.

python tools/convert_weights.py fsaf_r50_fpn_1x_coco-94ccc51f.pth fsaf_R_50.pth

Known are mmdetection's FSAF and ImageNet ResNets of torchvision and timm. MODEL.WEIGHTS may also
name their files directly.
"""

from __future__ import annotations

import argparse
import sys

from fsaf_d2.texts import show_whatever_is_said
from fsaf_d2.weights.conversion import convert_file


def main() -> None:
    """Run the program."""
    show_whatever_is_said()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="the file as its authors publish it")
    parser.add_argument("target", help="the file to write, in torch's format")
    parser.add_argument(
        "--trust-weights",
        action="store_true",
        help="read the source with all that is in it: any code in it runs with your rights",
    )
    args = parser.parse_args()
    try:
        lines = convert_file(args.source, args.target, trust=args.trust_weights)
    except (ValueError, OSError) as error:
        sys.exit(f"{parser.prog}: error: {error}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
