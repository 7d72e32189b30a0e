"""Evaluate a detector as ``--eval-only`` does, or a file of predictions."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from . import predictions_command, train_command

PREDICTIONS = "--predictions"


def main(argv: Sequence[str] | None = None, program: str = "fsaf-d2 evaluate") -> int | None:
    """Run the command with these arguments; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    if PREDICTIONS in words:
        words.remove(PREDICTIONS)
        return predictions_command.main(words, f"{program} {PREDICTIONS}")
    return train_command.main(["--eval-only", *words], program)
