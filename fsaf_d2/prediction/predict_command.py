"""What tools/predict.py does with its arguments."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch

from ..texts import as_line, show_whatever_is_said
from .detector import Detector
from .inputs import Inputs, find_inputs
from .loading import load_detector
from .run import predict, require_safe_folder
from .shots import Summary

# So many skipped files are named.
MAX_NAMED = 20


def run(args: argparse.Namespace) -> int:
    """Load, predict, and say in a few lines how it went. Returns the exit code."""
    show_whatever_is_said()
    try:
        return _run(args)
    except (ValueError, OSError, ImportError, torch.OutOfMemoryError) as error:
        remedy = " Lower --batch-size." if isinstance(error, torch.OutOfMemoryError) else ""
        print(f"predict: error: {error}{remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\npredict: stopped; what was written is complete up to here.", file=sys.stderr)
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
