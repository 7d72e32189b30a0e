import json
import logging
import math
import shutil

import pytest
import torch
from detectron2.engine.hooks import PeriodicWriter
from runs import run_cfg, run_trainer, same, weights_of

from fsaf_d2.detectors.contract import traits_of
from fsaf_d2.training import Trainer
from fsaf_d2.training.metrics import lower_is_better, metric_names

QUIET = {"TEST__LOSS": False, "TEST__EVAL_PERIOD": 2}


def trainer_with(folder, values, *, resume=False, key="AP", **options):
    """A run of which each evaluation gives the next value."""
    options = {"SOLVER__MAX_ITER": 2 * len(values), **QUIET, **options}
    trainer = run_trainer(run_cfg(folder, **options), resume=resume)
    results = iter(values)
    trainer.test = lambda *_: {"bbox": {key: next(results)}}
    trainer.left = results
    return trainer


def saved(folder, name="model_final") -> dict:
    return torch.load(folder / f"{name}.pth", weights_only=True)


def state_of(folder) -> dict:
    return saved(folder)["trainer"]["hooks"]["Evaluation"]


def test_the_best_by_ap_stays(digits, tmp_path):
    options = {"SOLVER__CHECKPOINTS_TO_KEEP": 1}
    trainer_with(tmp_path, [0.3, 0.7, 0.5], **options).train()
    assert saved(tmp_path, "model_best")["iteration"] == 3
    assert sorted(x.name for x in tmp_path.glob("*.pth")) == [
        "model_0000003.pth",
        "model_best.pth",
        "model_final.pth",
    ]


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("bbox/AP50", [0.3, 0.7, 0.5], 4),
        ("bbox/AP-3", [0.3, 0.2, 0.5], 6),
        ("bbox/AP", [math.nan, 0.0, 0.0], 4),
        ("validation/total_loss", [0.3, 0.2, 0.5], 4),
        ("validation/loss_cls", [math.nan, 2.0, math.nan], 4),
    ],
)
def test_the_best_is_by_the_metric_of_choice(digits, tmp_path, metric, values, best):
    trainer = trainer_with(tmp_path, values, TEST__BEST_METRIC=metric, TEST__LOSS=True)
    group, _, key = metric.partition("/")
    results = iter(values)
    trainer.test = lambda *_: {}
    trainer._examine = lambda _, found, step: found.update({group: {key: next(results)}})
    trainer.train()
    assert saved(tmp_path, "model_best")["iteration"] == best - 1


def test_only_losses_are_better_if_lower():
    assert [lower_is_better(x) for x in ("validation/loss_cls", "bbox/AP", "lossy/AP50")] == [
        *(True, False, False),
    ]


def test_an_unknown_metric_is_named_before_training_with_all_there_are(digits, tmp_path):
    with pytest.raises(
        ValueError, match=r"'bbox/AP-12' is unknown.*Did you mean bbox/AP-[12]\?"
    ) as e:
        run_trainer(run_cfg(tmp_path, TEST__BEST_METRIC="bbox/AP-12"))
    for name in ("bbox/APs", "bbox/AP-9", "point_branch/AP", "validation/total_loss"):
        assert name in str(e.value)


def test_a_loss_that_is_not_computed_is_unknown(digits, tmp_path):
    with pytest.raises(ValueError, match="'validation/total_loss' is unknown"):
        run_trainer(run_cfg(tmp_path, **{**QUIET, "TEST__BEST_METRIC": "validation/total_loss"}))


def test_known_metrics_are_those_of_the_branches_that_are_on(tmp_path):
    cfg = run_cfg(tmp_path, MODEL__FSAF__ANCHOR_BRANCH=False)
    names = metric_names(traits_of(cfg), ["one"])
    assert "validation/loss_point_cls" in names and "validation/loss_cls" not in names
    assert not any(name.startswith(("anchor", "bbox/AP-")) for name in names)


def test_a_metric_of_ones_own_evaluator_is_checked_at_the_first_evaluation(digits, tmp_path):
    class Own(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            raise NotImplementedError

        @classmethod
        def test(cls, cfg, model):
            return {"mine": {"score": 0.5}}

    cfg = run_cfg(tmp_path, **QUIET, TEST__BEST_METRIC="mine/score")
    Own(cfg).train()
    assert saved(tmp_path, "model_best")["iteration"] == 1
    with pytest.raises(ValueError, match=r"'bbox/AP' is unknown.*There are: mine/score"):
        Own(run_cfg(tmp_path, **QUIET)).train()


def test_of_several_data_sets_the_first_counts_unless_one_is_named(digits, tmp_path):
    sets = {"DATASETS__TEST": "('runs_val', 'runs_train')"}
    for metric, best in (("bbox/AP", 2), ("runs_train/bbox/AP", 4)):
        trainer = trainer_with(tmp_path, [0, 0], TEST__BEST_METRIC=metric, **sets)
        results = iter([(0.5, 0.1), (0.4, 0.2)])

        def test(*_, results=results):
            names = ("runs_val", "runs_train")
            return {name: {"bbox": {"AP": ap}} for name, ap in zip(names, next(results))}

        trainer.test = test
        trainer.train()
        assert saved(tmp_path, "model_best")["iteration"] == best - 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"TEST__PATIENCE": -1}, r"PATIENCE must be 0 or more"),
        ({"TEST__PATIENCE": 1}, r"set TEST\.EVAL_PERIOD"),
        ({"TEST__PATIENCE": 1, "TEST__EVAL_PERIOD": 2, "DATASETS__TEST": "()"}, r"DATASETS\.TEST"),
    ],
)
def test_patience_needs_evaluations(digits, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        run_trainer(run_cfg(tmp_path, **options))


WORSE = [0.3, 0.7, 0.5, math.nan, 0.6, 0.8, 0.9]


def test_a_run_without_improvement_ends_early_and_says_why(digits, tmp_path, caplog):
    caplog.set_level("INFO")
    trainer = trainer_with(tmp_path, WORSE, TEST__PATIENCE=2)
    assert trainer.train() == {"bbox": {"AP": pytest.approx(math.nan, nan_ok=True)}}
    assert list(trainer.left) == WORSE[4:]
    assert saved(tmp_path)["iteration"] == 7
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert saved(tmp_path, "model_best")["iteration"] == 3
    assert (
        "Stopped early behind step 8: bbox/AP has not improved in 2 evaluations; its best is 0.7, "
        "behind step 4 (model_best.pth)." in caplog.text
    )
    assert "Exception" not in caplog.text
    last = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    assert last["iteration"] == 7 and "total_loss" in last and math.isnan(last["bbox/AP"])


def lines(folder) -> list[str]:
    times = ("time", "data_time", "data_share", "eta_seconds", "rank_data_time")
    text = (folder / "metrics.json").read_text().splitlines()
    return [str({k: v for k, v in json.loads(x).items() if k not in times}) for x in text]


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def stopped_early(digits, tmp_path_factory):
    """The folder of a run that nothing disturbs and that ends itself."""
    folder = tmp_path_factory.mktemp("whole")
    trainer_with(folder, WORSE, TEST__PATIENCE=2).train()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("evaluations_before", [2, 3])
def test_the_count_goes_on_after_a_kill(
    digits, tmp_path, monkeypatch, evaluations_before, stopped_early
):
    """Killed in the evaluation behind step 6, which does not improve, or in that which ends it."""
    cut = trainer_with(tmp_path / "cut", WORSE, TEST__PATIENCE=2)
    values = iter(WORSE[:evaluations_before])

    def test(*_):
        if (value := next(values, None)) is None:
            raise Killed
        return {"bbox": {"AP": value}}

    cut.test = test
    with monkeypatch.context() as patches, pytest.raises(Killed):
        # A kill leaves no time to write.
        patches.setattr(PeriodicWriter, "after_train", lambda _: None)
        cut.train()
    rest = WORSE[evaluations_before:]
    options = {"SOLVER__MAX_ITER": 2 * len(WORSE), "TEST__PATIENCE": 2}
    trainer = trainer_with(tmp_path / "cut", rest, resume=True, **options)
    assert trainer.start_iter == 2 * evaluations_before + 2
    trainer.train()
    assert saved(tmp_path / "cut")["iteration"] == 7
    assert str(state_of(tmp_path / "cut")) == str(state_of(stopped_early))
    assert same(saved(tmp_path / "cut")["model"], saved(stopped_early)["model"])
    assert lines(tmp_path / "cut") == lines(stopped_early)


def test_a_run_that_was_over_ends_at_once_and_goes_on_with_more_patience(tmp_path, stopped_early):
    shutil.copytree(stopped_early, tmp_path, dirs_exist_ok=True)
    before, log = str(state_of(tmp_path)), lines(tmp_path)
    options = {"SOLVER__MAX_ITER": 2 * len(WORSE)}
    again = trainer_with(tmp_path, [], resume=True, TEST__PATIENCE=2, **options)
    weights = weights_of(again)
    again.train()
    assert same(weights, weights_of(again)) and saved(tmp_path)["iteration"] == 7
    assert (before, log) == (str(state_of(tmp_path)), lines(tmp_path))

    trainer_with(tmp_path, WORSE[4:], resume=True, TEST__PATIENCE=4, **options).train()
    assert saved(tmp_path)["iteration"] == 13
    assert state_of(tmp_path)["best"] == 0.9


def test_another_metric_forgets_the_best(digits, tmp_path):
    trainer_with(tmp_path, [0.3, 0.7]).train()
    options = {"SOLVER__MAX_ITER": 8, "TEST__BEST_METRIC": "bbox/AP50"}
    trainer_with(tmp_path, [0.2, 0.1], resume=True, key="AP50", **options).train()
    state = state_of(tmp_path)
    assert (state["metric"], state["best"], state["best_step"]) == ("bbox/AP50", 0.2, 6)


def test_a_complete_run_is_not_evaluated_again(digits, tmp_path, caplog):
    trainer_with(tmp_path, [0.3, 0.7]).train()
    before, log = str(state_of(tmp_path)), lines(tmp_path)
    caplog.set_level("INFO")
    trainer_with(tmp_path, [], resume=True, SOLVER__MAX_ITER=4).train()
    assert "Step 4 was evaluated before the run was resumed" in caplog.text
    assert (before, log) == (str(state_of(tmp_path)), lines(tmp_path))


@pytest.mark.slow
def test_a_run_killed_in_its_last_evaluation_ends_as_if_not(digits, tmp_path):
    trainer_with(tmp_path / "whole", [0.3, 0.7]).train()
    cut = trainer_with(tmp_path / "cut", [0.3], SOLVER__MAX_ITER=4)
    with pytest.raises(StopIteration):
        cut.train()
    assert saved(tmp_path / "cut")["iteration"] == 3
    assert state_of(tmp_path / "cut")["evaluated_steps"] == 2
    trainer_with(tmp_path / "cut", [0.7], resume=True, SOLVER__MAX_ITER=4).train()
    assert str(state_of(tmp_path / "cut")) == str(state_of(tmp_path / "whole"))
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


def test_a_run_that_fails_in_its_last_step_is_not_evaluated(digits, tmp_path):
    trainer = trainer_with(tmp_path, [0.3, 0.7])
    step = trainer.run_step

    def run_step():
        step()
        if trainer.iter == 3:
            raise OSError("no images")

    trainer.run_step = run_step
    with pytest.raises(OSError, match="no images"):
        trainer.train()
    assert list(trainer.left) == [0.7]
    assert not (tmp_path / "model_final.pth").exists()


def write_report(folder, threshold: float) -> None:
    file = folder / "inference" / "runs_val" / "evaluation.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    per_class = [
        {"name": "0", "best_f1": {"threshold": threshold}},
        {"name": "1", "best_f1": None},
    ]
    file.write_text(json.dumps({"per_class": per_class, "max_score": 0.9, "diagnosis": None}))


def test_checkpoints_have_the_thresholds_of_their_evaluation(digits, tmp_path):
    """Model_best those of its own; those behind it and model_final of the one before them."""
    values = [0.3, 0.7, 0.5]

    def with_reports(folder, left, **options):
        trainer = trainer_with(folder, left, SOLVER__MAX_ITER=6, **options)
        evaluate = trainer.test

        def test(*args):
            results = evaluate(*args)
            write_report(folder, results["bbox"]["AP"] / 2)
            return results

        trainer.test = test
        return trainer

    write_report(tmp_path / "whole", 0.01)  # of a former run
    trainer = with_reports(tmp_path / "whole", values)
    assert trainer.description()["thresholds"] == {}
    trainer.train()
    thresholds = {
        name: saved(tmp_path / "whole", name)["thresholds"]
        for name in ("model_0000001", "model_0000003", "model_best", "model_final")
    }
    assert thresholds == {
        "model_0000001": {},
        "model_0000003": {"0": 0.15},
        "model_best": {"0": 0.35},
        "model_final": {"0": 0.25},
    }
    # A run resumed behind step 4, before its evaluation, has those of the one behind step 2.
    (tmp_path / "whole" / "last_checkpoint").write_text("model_0000003.pth")
    rest = with_reports(tmp_path / "whole", values[1:], resume=True)
    assert rest.description()["thresholds"] == {"0": 0.15}
    rest.train()
    assert saved(tmp_path / "whole")["thresholds"] == {"0": 0.25}


def test_the_evaluation_itself_gives_thresholds_and_all_metrics_that_may_be_chosen(
    digits, tmp_path
):
    # So that something is found.
    scores = {"MODEL__RETINANET__SCORE_THRESH_TEST": 0.0}
    trainer = run_trainer(run_cfg(tmp_path, SOLVER__MAX_ITER=1, **scores))
    trainer.train()
    report = json.loads((tmp_path / "inference" / "runs_val" / "evaluation.json").read_text())
    expected = {x["name"]: x["best_f1"]["threshold"] for x in report["per_class"] if x["best_f1"]}
    assert saved(tmp_path)["thresholds"] == expected and expected
    last = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    names = metric_names(traits_of(trainer.cfg), report["class_names"])
    assert {name for name in last if "/" in name} == set(names)


def test_patience_begins_when_something_is_found(digits, tmp_path):
    trainer = trainer_with(tmp_path, [math.nan, 0.0, 0.0, 0.2, 0.1, 0.1, 0.9], TEST__PATIENCE=2)
    trainer.train()
    assert list(trainer.left) == [0.9]
    assert saved(tmp_path, "model_best")["iteration"] == 7


def test_an_evaluation_is_a_line_with_the_whole_detector_last(digits, tmp_path, caplog):
    trainer = run_trainer(run_cfg(tmp_path, SOLVER__MAX_ITER=4, **QUIET))
    nan = math.nan
    results = iter(
        [
            {"bbox": {"AP": 20.26, "AP50": 40.0}, "nanny_branch": {"AP": 10.0}},
            {"bbox": {"AP": nan, "AP50": nan}, "nanny_branch": {"AP": nan}},
        ]
    )
    trainer.test = lambda *_: next(results)
    with caplog.at_level("INFO"):
        logging.getLogger("detectron2").addHandler(caplog.handler)
        trainer.train()
    lines = [x.message for x in caplog.records if x.message.startswith("Evaluated")]
    assert lines == [
        "Evaluated behind step 2: AP of nanny alone 10.0, AP 20.3, AP50 40.0; the best so far.",
        "Evaluated behind step 4: AP of nanny alone none, AP none, AP50 none.",
    ]
    said = [x.message for x in caplog.records if getattr(x, "for_terminal", False)]
    best = f"Best bbox/AP 20.26, behind step 2: {tmp_path}/model_best.pth"
    assert best in said and f"Report: {tmp_path}/report.html" in said
    assert any(f"--weights {tmp_path}/model_best.pth" in line for line in said[said.index(best) :])
    assert said[0].startswith("Model: ") and "steps 1 to 4 of" in said[2]
