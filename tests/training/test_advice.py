import json

import pytest
from runs import run_cfg, run_trainer

from fsaf_d2.training.advice import Facts, advise, read_facts

FLAT = [1.0] * 20
FALLING = [10 / step for step in range(1, 21)]
GOOD = {"max_score": 0.95, "ap": 45.0, "losses": FALLING}


def test_good_scores_need_no_advice():
    assert advise(Facts(5000, 100, **GOOD)) is None


def test_few_steps_are_too_few():
    advice = advise(Facts(300, 4100, max_score=0.04, ap=0.0, losses=FLAT))
    assert advice == (
        "Highest score 0.04 after 300 steps: under-trained; one epoch is 4,100 steps. "
        "Train longer: SOLVER.MAX_ITER 50000."
    )


def test_a_loss_that_falls_means_too_few_also_after_many_epochs():
    """1/13 + ... + 1/16 is 0.2775, 1/17 + ... + 1/20 is 0.2170: 22 % less."""
    advice = advise(Facts(2000, 12.5, max_score=0.2, ap=3.0, losses=FALLING))
    assert "under-trained, and the loss still falls (22 % lately)" in advice
    assert "one epoch is 12 steps" in advice and "SOLVER.MAX_ITER 4000" in advice


def test_a_low_ap_with_sure_scores_is_low():
    advice = advise(Facts(100, 100, max_score=0.9, ap=2.0))
    assert advice.startswith("AP 2.0 after 100 steps: under-trained; one epoch")


def test_a_loss_that_no_longer_falls_needs_something_else():
    advice = advise(Facts(5000, 100, max_score=0.1, ap=1.0, losses=FLAT))
    assert "5,000 steps (50 epochs), and the loss no longer falls" in advice
    assert "tools/check_data.py" in advice


def test_a_rising_validation_loss_is_over_fitting():
    points = [(1000, 1.0), (2000, 0.8), (3000, 0.9), (4000, 1.2)]
    advice = advise(Facts(4000, 100, **GOOD, validation_losses=points))
    assert advice.startswith("The validation loss has risen by 50 % since step 2,000 of 4,000")


@pytest.mark.parametrize(
    "losses", [[1.0, 2.0], [3.0, 2.0, 1.0], [1.0, 0.8, 2.0], [1.0, 0.8, 0.81, 0.85], [float("nan")]]
)
def test_a_loss_that_has_not_clearly_risen_is_none(losses):
    points = [(step, loss) for step, loss in enumerate(losses)]
    assert advise(Facts(4000, 100, **GOOD, validation_losses=points)) is None


MISTAKE = "AP is 0.1; with category ids shifted by one it would be 80.0."
UNSURE = "AP is 0.1: the detector is sure of nothing."


@pytest.mark.parametrize(("steps", "text"), [(1, MISTAKE), (5000, MISTAKE), (5000, UNSURE)])
def test_a_diagnosis_of_the_evaluation_comes_first(steps, text):
    facts = Facts(steps, 100, max_score=0.9, ap=0.1, losses=FLAT, diagnosis=text)
    assert advise(facts) == text


@pytest.mark.parametrize("score", [0.1, 0.9])
def test_too_few_steps_explain_a_low_ap_before_what_is_not_known(score):
    facts = Facts(10, 100, max_score=score, ap=0.1, diagnosis=UNSURE)
    assert "under-trained; one epoch is 100 steps" in advise(facts)


def test_nothing_known_is_no_advice():
    assert advise(Facts(10, 100)) is None


def test_it_is_logged_last_and_written(digits, tmp_path, caplog):
    caplog.set_level("INFO")
    cfg = run_cfg(tmp_path)
    trainer = run_trainer(cfg)
    trainer.test = lambda *_: {"bbox": {"AP": 0.3}}
    trainer.train()
    text = (tmp_path / "advice.txt").read_text().strip()
    # Ten images, two a step.
    assert text.startswith("AP 0.3 after 6 steps: under-trained; one epoch is 5.0 steps.")
    assert caplog.messages[-1] == text

    report = {"max_score": 0.04, "diagnosis": None}
    file = tmp_path / "inference" / "runs_val" / "evaluation.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(report))
    facts = read_facts(trainer.settings, steps=6, num_images=10)
    assert (facts.max_score, facts.ap, facts.steps_per_epoch) == (0.04, 0.3, 5.0)
    assert [step for step, _ in facts.validation_losses] == [6]


def test_advice_of_a_former_run_goes(digits, tmp_path):
    (tmp_path / "advice.txt").write_text("Old.")
    trainer = run_trainer(run_cfg(tmp_path, TEST__LOSS=False))
    trainer.test = lambda *_: {"bbox": {"AP": 60.0}}
    trainer.train()
    assert not (tmp_path / "advice.txt").exists()


def test_of_a_few_losses_nobody_can_say_that_they_no_longer_fall():
    advice = advise(Facts(36, 6, max_score=0.9, ap=7.5, losses=[3.0, 1.9, 1.8, 1.8]))
    assert advice.startswith("AP 7.5 after 36 steps: under-trained; one epoch is 6.0 steps.")
