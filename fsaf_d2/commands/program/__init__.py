"""The program ``fsaf-d2``, and which command is which script of a checkout.

An installation has this file as the package ``fsaf_d2_program``, too: there ``fsaf-d2 --help`` need
not wait for torch, which comes with fsaf_d2. So it imports nothing of this project by itself.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

NAME = "fsaf-d2"


class Command(NamedTuple):
    """What a command runs, and what it is for."""

    module: str  # of fsaf_d2.commands
    script: str  # that does the same in a checkout
    about: str


COMMANDS = {
    "train": Command("train_command", "train_net.py", "train a detector"),
    "train-lazy": Command(
        "lazy_command", "tools/lazyconfig_train_net.py", "train what a Python config describes"
    ),
    "check": Command("check_command", "tools/check_data.py", "check a data set before training"),
    "predict": Command("predict_command", "tools/predict.py", "find objects in images and videos"),
    "evaluate": Command(
        "evaluate_command",
        "train_net.py --eval-only",
        "evaluate a detector, or with --predictions a file of predictions",
    ),
    "export": Command("export_command", "tools/export.py", "write a detector as ONNX, TorchScript"),
    "report": Command("report_command", "tools/report.py", "write the report of a run anew"),
    "replay": Command(
        "replay_command", "tools/replay_step.py", "repeat a step whose loss was not finite"
    ),
}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command that the first word names with the others; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["--version"]:
        print(f"fsaf_d2 {_package().__version__}")
        return 0
    if words and words[0] in COMMANDS:
        name, *rest = words
        _package()
        module = importlib.import_module(f"fsaf_d2.commands.{COMMANDS[name].module}")
        return module.main(rest, f"{NAME} {name}")
    parser = _parser()
    parser.parse_args(words)
    parser.error("name the command before all options.")


def _package() -> object:
    """The package, or a sentence on what it lacks."""
    try:
        return importlib.import_module("fsaf_d2")
    except ImportError as error:
        sys.exit(f"{NAME}: error: {error}")


def _parser() -> argparse.ArgumentParser:
    lines = [f"  {name:11} {command.about}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog=NAME,
        usage=f"{NAME} COMMAND ...",
        description="\n".join(["Dense detectors for Detectron2. Commands:", "", *lines]),
        epilog=f"'{NAME} COMMAND --help' has the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    parser.add_argument("command", metavar="COMMAND", choices=list(COMMANDS), help="one of these")
    return parser
