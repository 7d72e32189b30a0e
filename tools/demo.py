#!/usr/bin/env python
"""Train, evaluate and draw on handwritten digits made on the spot: `make demo`.

Further arguments are overrides of the demo's config, such as `SOLVER.MAX_ITER 200`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fsaf_d2 import load_config
from fsaf_d2.demo import run_demo
from fsaf_d2.texts import show_whatever_is_said

CONFIG = Path(__file__).parents[1] / "configs" / "demo" / "digits.yaml"


def main() -> None:
    """Read the command line and run the demo."""
    show_whatever_is_said()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", default=CONFIG, metavar="FILE", help="the demo's config")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs over the config")
    args = parser.parse_args()
    try:
        run_demo(load_config(args.config_file, args.opts))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"demo: error: {error}")


if __name__ == "__main__":
    main()
