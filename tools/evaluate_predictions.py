#!/usr/bin/env python
"""Evaluate a file of predictions in COCO's results form against an annotation file.

python tools/evaluate_predictions.py ANNOTATIONS.json PREDICTIONS.json --output FOLDER

Prints AP over all, by size and by class, the score threshold of the best F1 of each class, and,
where AP is close to 0, which usual mistake explains it.
"""

from __future__ import annotations

import argparse
import sys

from fsaf_d2.evaluation import evaluate_predictions, evaluation_text
from fsaf_d2.texts import show_whatever_is_said


def main() -> None:
    """Read the command line, evaluate, print."""
    show_whatever_is_said()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("annotations", metavar="ANNOTATIONS", help="JSON file in COCO format")
    parser.add_argument("predictions", metavar="PREDICTIONS", help="JSON file of COCO results")
    parser.add_argument(
        "--output", metavar="FOLDER", help="write evaluation.json, tables (.csv) and plots (.png)"
    )
    parser.add_argument(
        "--max-detections",
        type=int,
        metavar="N",
        help="so many of a class in an image count; 100 by default, as in COCO, or the most "
        "objects that a class has in an image",
    )
    args = parser.parse_args()
    try:
        evaluation = evaluate_predictions(
            args.annotations,
            args.predictions,
            output_dir=args.output,
            max_detections=args.max_detections,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate_predictions: error: {error}")
    unknown = evaluation["unknown_category_ids"]
    if unknown:
        print(
            f"{sum(unknown.values())} predictions have category ids that the annotations lack, and "
            f"count nowhere: {', '.join(list(unknown)[:10])}."
        )
    print(evaluation_text(evaluation))


if __name__ == "__main__":
    main()
