"""detectron2's own detectors pass through a run as this project's do."""

import json
import math

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from runs import FASTER_RCNN, RETINANET, run_cfg, run_trainer, same, weights_of

from fsaf_d2.detectors.contract import contract_of
from fsaf_d2.training.black_box import diagnose, gradients_of_outputs
from fsaf_d2.training.non_finite import NonFinite
from fsaf_d2.training.validation import labelled_loader, validation_losses

THEIRS = pytest.mark.parametrize("overrides", [RETINANET, FASTER_RCNN], ids=["retinanet", "rcnn"])
LOSSES = {
    "RetinaNet": {"loss_cls", "loss_box_reg"},
    "GeneralizedRCNN": {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"},
}
# So that something is found.
EASY = {
    "MODEL__RETINANET__SCORE_THRESH_TEST": 0.0,
    "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.0,
    "TEST__SAMPLES": 1,
    "TEST__BEST_METRIC": "validation/total_loss",
    "TEST__EVAL_PERIOD": 2,
    "SOLVER__EMA_DECAY": 0.5,
}


def saved(folder, name="model_final") -> dict:
    return torch.load(folder / f"{name}.pth", weights_only=True)


@THEIRS
def test_a_run_has_losses_thresholds_samples_report_and_a_best_model(digits, tmp_path, overrides):
    trainer = run_trainer(run_cfg(tmp_path, SOLVER__MAX_ITER=4, **EASY, **overrides))
    trainer.train()
    lines = [json.loads(x) for x in (tmp_path / "metrics.json").read_text().splitlines()]
    logged = {x.partition("/")[2] for x in lines[-1] if x.startswith("validation/")}
    assert logged == {*LOSSES[overrides["MODEL__META_ARCHITECTURE"]], "total_loss"}
    report = json.loads((tmp_path / "inference" / "runs_val" / "evaluation.json").read_text())
    expected = {x["name"]: x["best_f1"]["threshold"] for x in report["per_class"] if x["best_f1"]}
    assert saved(tmp_path)["thresholds"] == expected != {}
    assert (tmp_path / "report.html").is_file()
    assert len(list((tmp_path / "samples").iterdir())) == 2
    totals = [x["validation/total_loss"] for x in lines if "validation/total_loss" in x]
    best = min(range(len(totals)), key=totals.__getitem__)
    assert saved(tmp_path, "model_best")["iteration"] == (1, 3)[best]


@pytest.mark.slow
@THEIRS
def test_a_run_that_was_broken_off_ends_bit_for_bit_as_one_that_was_not(
    digits, tmp_path, overrides
):
    options = {"SOLVER__EMA_DECAY": 0.5, "DETERMINISTIC": True, **overrides}
    whole = run_trainer(run_cfg(tmp_path / "whole", **options))
    whole.test = lambda *_: {}
    whole.train()

    class Killed(BaseException):
        pass

    class Kill(HookBase):
        def after_step(self):
            if self.trainer.iter == 3:
                raise Killed

    cut = run_trainer(run_cfg(tmp_path / "cut", **options))
    cut.register_hooks([Kill()])
    with pytest.raises(Killed):
        cut.train()
    rest = run_trainer(run_cfg(tmp_path / "cut", **options), resume=True)
    assert rest.start_iter == 4
    rest.test = lambda *_: {}
    rest.train()
    assert same(weights_of(rest), weights_of(whole))


@THEIRS
def test_how_validation_images_are_batched_does_not_matter(digits, tmp_path, overrides):
    trainer = run_trainer(run_cfg(tmp_path, **overrides))
    (of_set,) = trainer.evaluation_sets().values()
    inputs = [x for (x,) in labelled_loader(list(of_set.read_records()), of_set.labelled_mapper)]
    model = trainer.model
    one = validation_losses(model, [[x] for x in inputs])
    if overrides is RETINANET:
        together = validation_losses(model, [inputs])
        assert one == pytest.approx(together, rel=1e-4)
    assert one == validation_losses(model, [[x] for x in inputs])


def poisoned(trainer, batch_of_step: int):
    """A box of a later batch becomes NaN."""
    load = type(trainer.data_loader).__next__

    class Loader(type(trainer.data_loader)):
        def __next__(self):
            batch = load(self)
            if self._state["batches"] == batch_of_step + 1:
                batch[0]["instances"].gt_boxes.tensor[0, 0] = math.nan
            return batch

    trainer.data_loader.__class__ = Loader


@pytest.mark.parametrize("overrides", [RETINANET, FASTER_RCNN, {}], ids=["retinanet", "rcnn", ""])
def test_a_nan_is_on_record(digits, tmp_path, overrides):
    trainer = run_trainer(run_cfg(tmp_path, MODEL__FSAF__HEURISTIC_STEPS=0, **overrides))
    poisoned(trainer, 1)
    with pytest.raises(NonFinite, match=r"Step 2 is not finite: .* has a box that is not finite"):
        trainer.train()
    box = saved(tmp_path, "non_finite_0000001")
    assert box["outputs"] and "has a box that is not finite" in box["cause"]
    assert "diagnosis failed" not in box["cause"]


@THEIRS
def test_what_is_observed_is_named_and_has_gradients_by_loss(digits, tmp_path, overrides):
    trainer = run_trainer(run_cfg(tmp_path, **overrides))
    batch = next(trainer.data_loader)
    with EventStorage():
        found = diagnose(trainer.model, batch, 0.1)
        norms = gradients_of_outputs(trainer.model, batch)
    assert found.cause.startswith("it is finite when repeated")
    levels = {name: len(parts) for name, parts in found.outputs.items()}
    name = "head.0" if overrides is RETINANET else "rpn_head.0"
    assert levels[name] == 5
    assert norms.keys() == found.losses.keys()
    loss = "loss_cls" if overrides is RETINANET else "loss_rpn_cls"
    assert any(norm > 0 for norm in norms[loss][name])


@pytest.mark.parametrize("fault", ["observed", "outputs", "batch", "disk", "name"])
def test_a_fault_of_the_diagnosis_does_not_hide_the_nan(digits, tmp_path, monkeypatch, fault):
    trainer = run_trainer(run_cfg(tmp_path))
    model = trainer.model
    with torch.no_grad():
        model.backbone.fpn_lateral3.weight.fill_(3e38)
    if fault == "observed":
        monkeypatch.setattr(type(model), "observed", lambda _: 1 / 0)
    elif fault == "outputs":

        def numel(_):
            raise RuntimeError("no numbers")

        monkeypatch.setattr("fsaf_d2.training.black_box._range", numel)
    elif fault == "batch":
        monkeypatch.setattr("fsaf_d2.training.non_finite.plain_batch", lambda batch: batch["no"])
    elif fault == "disk":

        def full(*_):
            raise OSError("disk full")

        monkeypatch.setattr("fsaf_d2.training.non_finite.write_atomically", full)
    else:
        trainer.data_loader._mapper = named(trainer.data_loader._mapper)
    with pytest.raises(NonFinite, match=r"Step 1 is not finite: ") as error:
        trainer.train()
    message = str(error.value)
    assert "is the first to overflow" in message
    told = {
        "observed": "diagnosis failed: ZeroDivisionError",
        "outputs": "diagnosis failed: RuntimeError: no numbers",
        "batch": "It is not on record (TypeError",
        "disk": "It is not on record (OSError: disk full)",
        "name": "tools/replay_step.py",
    }
    assert told[fault] in message


def named(mapper):
    """Files whose names look like fields of a format."""
    return lambda record: {**mapper(record), "file_name": "{0}{rate}.jpg"}


def test_a_stranger_is_behind_no_contract_but_is_guarded(digits, tmp_path):
    class Stranger(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def forward(self, batch):
            return {"loss": self.layer(torch.full((1, 1), math.nan)).sum()}

    model = Stranger()
    assert contract_of(model) is None
    found = diagnose(model, [], 0.1)
    assert found.cause.startswith("'layer' is the first to overflow")


def test_a_metric_of_a_branch_that_is_not_there_is_refused_before_training(digits, tmp_path):
    with pytest.raises(ValueError, match=r"'point_branch/AP' is unknown.*validation/loss_box_reg"):
        run_trainer(run_cfg(tmp_path, TEST__BEST_METRIC="point_branch/AP", **RETINANET))
    with pytest.raises(ValueError, match=r"'validation/loss_point_cls' is unknown"):
        run_trainer(run_cfg(tmp_path, TEST__BEST_METRIC="validation/loss_point_cls", **RETINANET))


def test_a_loss_that_a_stranger_does_not_have_is_refused_at_the_first_evaluation(digits, tmp_path):
    options = {"TEST__EVAL_PERIOD": 2, "TEST__BEST_METRIC": "validation/loss_mask", **FASTER_RCNN}
    trainer = run_trainer(run_cfg(tmp_path, **options))
    trainer.test = lambda *_: {}
    with pytest.raises(
        ValueError, match=r"'validation/loss_mask' is unknown.*validation/loss_rpn_cls"
    ):
        trainer.train()
    assert trainer.iter == 1
