"""Evaluate a file of predictions in COCO's results form against an annotation file.

fsaf-d2 evaluate --predictions ANNOTATIONS.json PREDICTIONS.json --output FOLDER

Prints AP over all, by size and by class, the score threshold of the best F1 of each class, and,
where AP is close to 0, which usual mistake explains it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..evaluation import evaluate_predictions, evaluation_text
from ..texts import show_whatever_is_said


def main(argv: Sequence[str] | None = None, program: str = "evaluate_predictions") -> None:
    """Run the command with these arguments."""
    show_whatever_is_said()
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
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
    args = parser.parse_args(argv)
    try:
        evaluation = evaluate_predictions(
            args.annotations,
            args.predictions,
            output_dir=args.output,
            max_detections=args.max_detections,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"{program}: error: {error}")
    unknown = evaluation["unknown_category_ids"]
    if unknown:
        print(
            f"{sum(unknown.values())} predictions have category ids that the annotations lack, and "
            f"count nowhere: {', '.join(list(unknown)[:10])}."
        )
    print(evaluation_text(evaluation))
