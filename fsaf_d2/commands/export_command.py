"""Write a trained detector as a file of ONNX or TorchScript, which runs without this project.

    fsaf-d2 export --weights output/mine/model_final.pth --format onnx --check photos/

The config is in the checkpoint. Beside the file lies a sidecar (model_final.onnx.json) with
classes, thresholds and how images are prepared. --check runs the detector and the file on
images: where they differ, nothing is written and the exit code is 1. docs/export.md says more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..export.comparison import compare
from ..export.writing import ENDINGS, write_program, write_sidecar
from ..prediction.detector import Detector
from ..prediction.exported import load_exported
from ..prediction.inputs import find_inputs
from ..prediction.loading import load_detector
from ..texts import as_line, show_whatever_is_said
from ..weights.atomic_writing import require_another_file
from .calls import called_as
from .weights_options import add_weights_options

# So many images that are skipped, or in which the programs differ, are named.
MAX_NAMED = 5


def argument_parser(program: str = "export") -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=called_as(__doc__, program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    add_weights_options(parser)
    parser.set_defaults(program=program)
    return parser


def main(argv: Sequence[str] | None = None, program: str = "export") -> int:
    """Run the command with these arguments; returns the exit status."""
    return run(argument_parser(program).parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Load, export, check, and say how it went. Returns the exit code."""
    show_whatever_is_said()
    try:
        _run(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"{args.program}: error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(args: argparse.Namespace) -> None:
    output = Path(args.output or Path(args.weights).with_suffix(ENDINGS[args.format]))
    if output.is_dir():
        raise ValueError(f"--output '{output}' is a folder: name a file.")
    require_another_file(output, args.weights, "--output")
    images = _images(args.check) if args.check else []
    if args.check and not images:
        raise ValueError("There is no image in what --check names.")
    detector = load_detector(
        args.weights,
        config_file=args.config_file,
        overrides=[word for word in args.opts if word != "--"],
        class_names=args.class_names,
        device="cpu",
        trust=args.trust_weights,
    )
    for note in detector.notes:
        print(note)
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f".{output.name}.part")
    try:
        write_program(detector, part, args.format, with_nms=args.nms)
        if images:
            _check(detector, part, args.format, images)
        sidecar = write_sidecar(detector, output, with_nms=args.nms)
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
    size = output.stat().st_size / 2**20
    print(f"{output} ({size:.1f} MiB) with {sidecar.name} beside it.")


def _images(paths: list[str]) -> list[str]:
    """The images of ``--check``; what is none is named."""
    inputs = find_inputs(paths)
    _name("Skipped", [f"{path}: {reason}" for path, reason in inputs.skipped])
    return [file.path for file in inputs.images]


def _name(what: str, sentences: Sequence[str]) -> None:
    for sentence in sentences[:MAX_NAMED]:
        print(as_line(f"{what}: {sentence}"))
    if len(sentences) > MAX_NAMED:
        print(f"{what}: {len(sentences) - MAX_NAMED} more")


def _check(detector: Detector, file: Path, kind: str, images: list[str]) -> None:
    """Make sure that the file finds what the detector does.

    Raises:
        ValueError: it does not, or there is nothing to be found.
    """
    max_pixels = detector.max_pixels
    exported = load_exported(file, kind, batch_size=1, max_pixels=max_pixels, trust=True)
    result = compare(detector, exported, images)
    _name("Skipped", result.unreadable)
    _name("Differs", result.failures)
    if not result.num_images:
        raise ValueError(
            f"none of the {len(images)} images of --check can be read: name others. No file was "
            "written."
        )
    if result.failures:
        raise ValueError(
            f"the exported program differs in {len(result.failures)} of {result.num_images} "
            "images; no file was written."
        )
    if not result.num_detections:
        raise ValueError(
            f"nothing is found in the {result.num_images} images of --check, so that they "
            "prove nothing: name others. No file was written."
        )
    print(
        f"The same {result.num_detections} detections in {result.num_images} images: boxes "
        f"differ by {result.box_difference:.1e} px at the most, scores by "
        f"{result.score_difference:.1e}."
    )
