"""How messages and help texts name the commands: as they can be called where they are read."""

from __future__ import annotations

import sys
from pathlib import Path

from .program import COMMANDS, NAME

_SCRIPTS = {name: command.script for name, command in COMMANDS.items()}
_SCRIPTS["evaluate --predictions"] = "tools/evaluate_predictions.py"
_CHECKOUT = Path(__file__).parents[2]


def call(name: str) -> str:
    """What a command is called by: its script in a checkout, unless ``fsaf-d2`` itself is running.

    Args:
        name: of :data:`.program.COMMANDS`, or ``evaluate --predictions``.

    Returns:
        such as ``python tools/predict.py`` or ``fsaf-d2 predict``.
    """
    script = _SCRIPTS[name]
    is_there = (_CHECKOUT / script.split()[0]).is_file()
    return f"python {script}" if is_there and Path(sys.argv[0]).stem != NAME else f"{NAME} {name}"


def called_as(text: str, program: str) -> str:
    """A text that names commands, for the program that was called: with scripts if it is one."""
    if not program.startswith(NAME):
        # Longer names begin with shorter ones.
        for name in sorted(_SCRIPTS, key=len, reverse=True):
            text = text.replace(f"{NAME} {name}", f"python {_SCRIPTS[name]}")
    return text
