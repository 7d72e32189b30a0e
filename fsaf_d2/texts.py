"""Text that leaves the program: to terminals, logs, tables and pages, whatever names hold.

Names of files and classes need not be text in the encoding of a terminal, nor text at all.
"""

from __future__ import annotations

import csv
import logging
import os
import re
import reprlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

# Letters that cannot be written become \\xe9 and the like.
ERRORS = "backslashreplace"
# As ``extra`` of what is logged: it is for the terminal of a run that shows few lines, too.
SHOWN = {"for_terminal": True}
# Programs for tables run cells that begin so.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
# Of a class in a file; it ends up in labels, and in names of folders and of records.
MAX_NAME_LENGTH = 200
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", re.ASCII)


def show_whatever_is_said() -> None:
    """Let no letter end the program that a terminal, a redirected output or a log cannot show."""
    for stream in (sys.stdout, sys.stderr, *_log_streams()):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ERRORS)


def _log_streams() -> Iterable[object]:
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            yield getattr(handler, "stream", None)


def as_line(text: str) -> str:
    """A text with ? for what steers terminals, begins lines or is no letter at all."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def is_class_name(value: object) -> bool:
    """Whether it is a text that can name a class: not long, and of letters alone."""
    if type(value) is not str or len(value) > MAX_NAME_LENGTH:
        return False
    # JSON can have halves of letters, which TensorBoard's files cannot.
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def shown(value: object) -> str:
    """What a message says of a value from a file: one short line, whatever it is."""
    return f"{as_line(reprlib.repr(value)):.99}"


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whatever its letters are."""
    Path(path).write_text(text, encoding="utf-8", errors=ERRORS)


def open_table(path: str | os.PathLike[str]) -> TextIO:
    """Open a table to be written by :func:`write_rows`."""
    return open(path, "w", encoding="utf-8", errors=ERRORS, newline="")


def write_rows(stream: TextIO, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV, in which no cell is a formula."""
    csv.writer(stream).writerows([_cell(x) for x in row] for row in rows)


def _cell(value: object) -> object:
    """Texts that would be run get a ' before them, as programs for tables read it."""
    is_formula = isinstance(value, str) and value.startswith(FORMULA_STARTS)
    return f"'{value}" if is_formula and not _NUMBER.fullmatch(value) else value
