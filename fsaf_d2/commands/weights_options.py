"""Options of all commands that load a trained detector."""

from __future__ import annotations

import argparse


def add_trust_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--trust-weights``; ``what`` is read then with all that is in the file."""
    parser.add_argument(
        "--trust-weights",
        action="store_true",
        help=f"read {what} with all that is in the file: any code in it runs with your rights. "
        "Only for files of people whom you trust",
    )


def add_weights_options(parser: argparse.ArgumentParser) -> None:
    """Add what weights may need that do not say it themselves, and changes of the config."""
    parser.add_argument("--config-file", default="", metavar="FILE", help="for weights without one")
    parser.add_argument("--class-names", nargs="+", metavar="NAME", help="for weights without them")
    add_trust_option(parser, "the weights")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs over the config, at the end"
    )
