"""What a terminal shows of a run, and what its log file alone has."""

import argparse
import io
import logging
import sys

import pytest
from detectron2.utils.logger import setup_logger
from runs import run_cfg, run_trainer

from fsaf_d2.texts import SHOWN
from fsaf_d2.training import set_up
from fsaf_d2.training.terminal import is_quiet


@pytest.mark.parametrize(
    ("error", "is_shown"),
    [(OSError("Image 'a.jpg' cannot be read."), False), (RuntimeError("A fault."), True)],
)
def test_a_traceback_is_for_faults_of_the_program(digits, tmp_path, monkeypatch, error, is_shown):
    trainer = run_trainer(run_cfg(tmp_path))
    step = trainer._trainer.run_step

    def fails():
        if trainer.iter == 2:
            raise error
        step()

    trainer._trainer.run_step = fails
    # As detectron2 sets them up.
    logger, terminal, file = logging.getLogger("detectron2"), io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(x) for x in (terminal, file)])
    with pytest.raises(type(error)):
        trainer.train()
    assert "Starting training" in terminal.getvalue()
    assert ("Traceback" in terminal.getvalue()) == is_shown
    assert "Traceback" in file.getvalue() and str(error) in file.getvalue()
    logger.error("What else is said of such an error", exc_info=error)
    assert "Traceback" in terminal.getvalue()


@pytest.fixture
def set_up_here(tmp_path, monkeypatch):
    """Sets a run up anew, and gives what says the text of terminal and log file."""
    names = ("detectron2", "fvcore")
    before = {x: (logging.getLogger(x).handlers[:], logging.getLogger(x).propagate) for x in names}
    for name in names:
        logging.getLogger(name).handlers = []
    setup_logger.cache_clear()

    def start(**options: bool):
        # Not in the fixture: pytest gives the test another one.
        terminal = io.StringIO()
        monkeypatch.setattr(sys, "stdout", terminal)
        cfg = run_cfg(tmp_path)
        args = argparse.Namespace(config_file="", **{"eval_only": False, **options})
        set_up(cfg, args)
        return lambda: (terminal.getvalue(), (tmp_path / "log.txt").read_text())

    yield start
    setup_logger.cache_clear()
    for name, (handlers, propagate) in before.items():
        logging.getLogger(name).handlers = handlers
        logging.getLogger(name).propagate = propagate


def log_all_kinds():
    logger = logging.getLogger("detectron2.fsaf_d2.training")
    logger.info("for the file")
    logger.info("for both", extra=SHOWN)
    logger.warning("a warning")
    logging.getLogger("detectron2.evaluation.testing").info("copypaste: AP")
    logger.debug("the model")
    logging.getLogger("detectron2.fsaf_d2.training").info("\x1b[38;5;204mred\x1b[39m")


def test_a_terminal_shows_what_is_for_it_and_the_file_has_all(set_up_here):
    texts = set_up_here()
    assert is_quiet()
    log_all_kinds()
    shown, kept = texts()
    assert [line.partition("]: ")[2] for line in shown.splitlines() if "both" in line] == [
        "for both"
    ]
    assert "a warning" in shown and len(shown.splitlines()) == 2
    for text in ("for the file", "for both", "a warning", "copypaste", "the model", "red"):
        assert kept.count(text) == 1, text
    assert "Environment info" in kept and "Running with full config" in kept
    assert "\x1b" not in shown + kept


def test_verbose_shows_all_once_and_without_colors(set_up_here):
    texts = set_up_here(verbose=True)
    assert not is_quiet()
    log_all_kinds()
    shown, _ = texts()
    for text in ("Environment info", "for the file", "for both", "copypaste", "the model", "red"):
        assert shown.count(text) == 1, text
    assert "\x1b[38" not in shown


def test_of_an_evaluation_the_terminal_shows_its_figures(set_up_here):
    texts = set_up_here(eval_only=True)
    log_all_kinds()
    shown, _ = texts()
    assert "copypaste: AP" in shown and "for the file" in shown and "the model" not in shown


def test_how_far_an_evaluation_is_shows_now_and_then(set_up_here, monkeypatch):
    texts, now = set_up_here(), [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for handler in logging.getLogger("detectron2").handlers:
        for one in handler.filters:
            if hasattr(one, "_last"):
                one._last = 100.0
    for second in (5, 14, 16, 20, 31, 40):
        now[0] = 100.0 + second
        logging.getLogger("detectron2.evaluation.evaluator").info(f"Inference done {second}/99")
    assert [x for x in (5, 14, 16, 20, 31, 40) if f"done {x}/99" in texts()[0]] == [16, 31]
