"""Write report.html anew from what a training or an evaluation has left in its OUTPUT_DIR.

fsaf-d2 report output/mine
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..evaluation import write_report
from ..texts import show_whatever_is_said


def main(argv: Sequence[str] | None = None, program: str = "report.py") -> None:
    """Run the command with these arguments."""
    show_whatever_is_said()
    parser = argparse.ArgumentParser(prog=program, description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="the OUTPUT_DIR of a run")
    args = parser.parse_args(argv)
    try:
        print(write_report(args.folder))
    except OSError as error:
        sys.exit(f"{program}: error: {error}")
