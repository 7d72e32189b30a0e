"""A run of every detector ends with figures, drawn images and a report."""

import json

import pytest
from every_detector import everybody
from runs import run_cfg, run_trainer

QUICK = {
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.ROI_HEADS.NUM_CLASSES": 10,
    "TEST.SAMPLES": 1,
    "SOLVER.MAX_ITER": 2,
}


@pytest.mark.slow
@everybody
def test_a_run_ends_with_a_report(digits, tmp_path, overrides):
    options = {**dict(zip(overrides[::2], overrides[1::2])), **QUICK}
    trainer = run_trainer(run_cfg(tmp_path, **options))
    trainer.train()
    report = json.loads((tmp_path / "inference/runs_val/evaluation.json").read_text())
    assert report["num_images"] == 2 and "AP" in str(report["overall"])
    assert list((tmp_path / "samples").iterdir())
    assert "runs_val" in (tmp_path / "report.html").read_text()
