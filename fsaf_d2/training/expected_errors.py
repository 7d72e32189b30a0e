"""Errors that the programs say in one sentence, of which a terminal shows no more than that."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

# Of data, disk and numbers; any other is a fault of the program, and shows where.
EXPECTED = (OSError, FloatingPointError)


@contextlib.contextmanager
def no_traceback_on_the_terminal() -> Iterator[None]:
    """Keep the traceback that detectron2 logs of such an error to the log file."""
    logger = logging.getLogger("detectron2.engine.train_loop")
    handlers = []
    while logger:
        handlers += [x for x in logger.handlers if _is_terminal(x)]
        logger = logger.parent if logger.propagate else None
    for handler in handlers:
        handler.addFilter(_may_be_shown)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_may_be_shown)


def _is_terminal(handler: logging.Handler) -> bool:
    return getattr(handler, "stream", None) in (sys.stdout, sys.stderr)


def _may_be_shown(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], EXPECTED))
