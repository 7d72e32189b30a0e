#!/usr/bin/env python
"""Write report.html anew from what a training or an evaluation has left in its OUTPUT_DIR.

python tools/report.py output/mine
"""

from __future__ import annotations

import argparse
import sys

from fsaf_d2.evaluation import write_report
from fsaf_d2.texts import show_whatever_is_said


def main() -> None:
    """Read the command line and write the report."""
    show_whatever_is_said()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="the OUTPUT_DIR of a run")
    args = parser.parse_args()
    try:
        print(write_report(args.folder))
    except OSError as error:
        sys.exit(f"report.py: error: {error}")


if __name__ == "__main__":
    main()
