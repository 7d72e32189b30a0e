"""What a run shows on the terminal: few lines. Its log file has everything."""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import sys
import time
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..data.loading.lost_workers import is_of_lost_worker

# Of data, disk and numbers; any other error is a fault of the program, and shows where.
EXPECTED = (OSError, FloatingPointError)
# Seconds from one line of detectron2's on an evaluation to the next.
EVALUATION_PERIOD = 15.0
# Loggers of what an evaluation is run for.
_EVALUATION = (
    *("detectron2.fsaf_d2.evaluation", "detectron2.fsaf_d2.training"),
    "detectron2.evaluation.testing",
)
_COLORS = re.compile(r"\x1b\[[0-9;]*m")


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Set the run up as detectron2's ``default_setup`` does, and keep the terminal quiet.

    The terminal shows warnings, errors and what is logged with :data:`.texts.SHOWN`, and of an
    evaluation alone its figures; with ``args.verbose`` it shows all that ``log.txt`` has. Neither
    has colours within its lines.

    Args:
        cfg: in yacs, or a Python config.
        args: with ``config_file``, ``eval_only`` and, if it is there, ``verbose``.
    """
    output_dir = cfg.OUTPUT_DIR if isinstance(cfg, CfgNode) else cfg.train.output_dir
    # The same calls as in default_setup, which finds these loggers made.
    for name in ({"name": "fvcore"}, {}):
        logger = setup_logger(output_dir, distributed_rank=comm.get_rank(), **name)
        for handler in logger.handlers:
            handler.addFilter(_without_colors)
            if is_terminal(handler) and not getattr(args, "verbose", False):
                handler.addFilter(_Few(_EVALUATION if args.eval_only else ()))
    # It warns of a CUDA that is not there when the environment is looked at.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    default_setup(cfg, args)


def is_terminal(handler: logging.Handler) -> bool:
    """Whether it writes to standard output or standard error."""
    return getattr(handler, "stream", None) in (sys.stdout, sys.stderr)


def is_quiet() -> bool:
    """Whether there is a terminal that :func:`set_up` has kept quiet."""
    handlers = logging.getLogger("detectron2").handlers
    return any(isinstance(x, _Few) for handler in handlers for x in handler.filters)


@contextlib.contextmanager
def no_traceback_on_the_terminal() -> Iterator[None]:
    """Keep the traceback that detectron2 logs of an expected error to the log file."""
    logger = logging.getLogger("detectron2.engine.train_loop")
    handlers = []
    while logger:
        handlers += [x for x in logger.handlers if is_terminal(x)]
        logger = logger.parent if logger.propagate else None
    for handler in handlers:
        handler.addFilter(_may_be_shown)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_may_be_shown)


class _Few(logging.Filter):
    """Lets through what is for the terminal, and now and then how far an evaluation is."""

    def __init__(self, shown: tuple[str, ...]) -> None:
        """
        Args:
            shown: loggers of which all is shown that is not only for finding faults.
        """
        super().__init__()
        self._shown = shown
        self._last = time.monotonic()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown."""
        if record.levelno >= logging.WARNING or getattr(record, "for_terminal", False):
            return True
        if record.name in self._shown and record.levelno >= logging.INFO:
            return True
        now = time.monotonic()
        if str(record.msg).startswith("Inference done") and now - self._last >= EVALUATION_PERIOD:
            self._last = now
            return True
        return False


def _without_colors(record: logging.LogRecord) -> bool:
    if isinstance(record.msg, str) and "\x1b[" in record.msg:
        record.msg = _COLORS.sub("", record.msg)
    return True


def _may_be_shown(record: logging.LogRecord) -> bool:
    error = record.exc_info and record.exc_info[1]
    return not (isinstance(error, EXPECTED) or (error and is_of_lost_worker(error)))
