"""What goes wrong with data is one sentence on the terminal; where it did is in the log file."""

import io
import logging
import sys

import pytest
from runs import run_cfg, run_trainer


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
