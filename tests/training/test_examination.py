import json

import numpy as np
import torch
from PIL import Image
from runs import run_cfg, run_trainer

from fsaf_d2.training.examination import Examination, for_tensorboard
from fsaf_d2.training.run_settings import report_file


def examination(tmp_path, **options) -> Examination:
    return run_trainer(run_cfg(tmp_path, **options))._examination


def test_the_same_images_are_drawn_at_every_evaluation(digits, tmp_path):
    trainer = run_trainer(run_cfg(tmp_path, TEST__SAMPLES=2, TEST__EVAL_PERIOD=3))
    trainer.test = lambda *_: {}
    trainer.train()
    files = sorted((tmp_path / "samples").iterdir())
    assert [x.name for x in files] == ["step_0000003.jpg", "step_0000006.jpg"]
    one, other = (np.asarray(Image.open(file)).astype(int) for file in files)
    assert one.shape == other.shape and one.shape[2] == 3
    # Below title and legend the left half of each pair is the annotated image.
    assert np.abs(one[80:, :400] - other[80:, :400]).max() == 0


def test_the_weights_average_finds_what_is_drawn(digits, tmp_path):
    trainer = run_trainer(run_cfg(tmp_path, TEST__SAMPLES=1, SOLVER__EMA_DECAY=0.5))
    trainer.test = lambda *_: {}
    seen = []
    draw = trainer._examination.draw

    def note(*args):
        seen.append({name: p.clone() for name, p in trainer.model.named_parameters()})
        return draw(*args)

    trainer._examination.draw = note
    trainer.train()
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(p, saved[name]) for name, p in seen[0].items())


def test_nothing_is_drawn_if_nothing_is_asked_for(digits, tmp_path):
    for options in ({"TEST__SAMPLES": 0}, {"TEST__SAMPLES": 2, "DATASETS__TEST": "()"}):
        assert examination(tmp_path, **options).draw(1, {}) is None
    assert not (tmp_path / "samples").exists()


def test_thresholds_are_those_of_a_report_that_is_new(digits, tmp_path):
    cfg = run_cfg(tmp_path)
    file = report_file(cfg, "runs_val")
    assert file == tmp_path / "inference" / "runs_val" / "evaluation.json"
    file.parent.mkdir(parents=True)
    per_class = [{"name": "5", "best_f1": {"threshold": 0.4}}, {"name": "6", "best_f1": None}]
    file.write_text(json.dumps({"per_class": per_class}))
    found = examination(tmp_path)
    assert found.thresholds() == {}
    part = file.with_suffix(".part")
    part.write_text(file.read_text())
    part.replace(file)
    assert found.thresholds() == {"5": 0.4}
    assert found.thresholds() == {}


def test_tensorboard_gets_half_the_size():
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    assert for_tensorboard(image).shape == (3, 2, 3)
