import json
import os
import signal

import pytest
import torch
from detectron2.engine import HookBase
from runs import run_cfg, run_trainer, same, weights_of

from fsaf_d2.training.hooks.saving import EXIT_RESUMABLE


class At(HookBase):
    """Does something behind a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def after_step(self):
        if self.trainer.iter + 1 == self.step:
            self.action()


@pytest.fixture(scope="module")
def weights_of_6_steps(digits, tmp_path_factory):
    """Those of a run that nothing disturbs."""
    trainer = run_trainer(run_cfg(tmp_path_factory.mktemp("whole")))
    trainer.train()
    return weights_of(trainer)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_has_its_own_exit_code(digits, tmp_path, number, weights_of_6_steps):
    trainer = run_trainer(run_cfg(tmp_path / "cut", SOLVER__CHECKPOINT_PERIOD=100))
    trainer._hooks.insert(0, hook := At(3, lambda: os.kill(os.getpid(), number)))
    hook.trainer = trainer
    former = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        trainer.train()
    assert stopped.value.code == EXIT_RESUMABLE == 75
    assert signal.getsignal(number) == former
    rest = run_trainer(run_cfg(tmp_path / "cut"), resume=True)
    assert rest.start_iter == 3
    rest.train()
    assert same(weights_of(rest), weights_of_6_steps)


def lines(folder) -> list[dict]:
    times = ("time", "data_time", "data_share", "eta_seconds", "rank_data_time")
    text = (folder / "metrics.json").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in times} for x in text]


OF_24_STEPS = {"SOLVER__MAX_ITER": 24, "SOLVER__CHECKPOINT_PERIOD": 20, "TEST__EVAL_PERIOD": 20}


@pytest.fixture(scope="module")
def log_of_24_steps(digits, tmp_path_factory):
    """What a run logs that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    run_trainer(run_cfg(folder, **OF_24_STEPS)).train()
    return lines(folder)


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [20, 22])
def test_the_log_of_a_broken_run_has_no_seam(digits, tmp_path, killed_at, log_of_24_steps):
    """Ended behind step 22, the run resumes behind 20: lines are neither lost nor doubled."""

    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    cut = run_trainer(run_cfg(tmp_path / "cut", **OF_24_STEPS))
    hook = At(killed_at, kill)
    hook.trainer = cut
    # Behind the checkpoint, before evaluation and writers.
    place = [type(x).__name__ for x in cut._hooks].index("SaveCheckpoints")
    cut._hooks.insert(place + 1, hook)
    with pytest.raises(Killed):
        cut.train()
    (tmp_path / "cut" / "metrics.json").open("a").write('{"iteration": 21, "total_l')
    run_trainer(run_cfg(tmp_path / "cut", **OF_24_STEPS), resume=True).train()
    whole, mended = log_of_24_steps, lines(tmp_path / "cut")
    assert [line["iteration"] for line in whole] == [19, 23, 24]
    assert str(mended) == str(whole)  # as text, since NaN is not itself


def test_average_is_saved_and_evaluated_as_the_model(digits, tmp_path):
    seen = []
    trainer = run_trainer(run_cfg(tmp_path, SOLVER__EMA_DECAY=0.5, SOLVER__MAX_ITER=3))
    expected = {k: v.clone() for k, v in trainer.model.named_parameters()}
    updates = []
    step = trainer.run_step

    def run_step():
        step()
        for name, p in trainer.model.named_parameters():
            expected[name] = (expected[name] + p.detach()) / 2
        updates.append(1)

    trainer.run_step = run_step
    trainer.test = lambda cfg, model: seen.append(weights_of(trainer)) or {}
    trainer.train()
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    raw = weights_of(trainer)
    assert len(updates) == 3
    for name, value in expected.items():
        torch.testing.assert_close(saved["model"][name], value)
        assert torch.equal(seen[0][name], saved["model"][name])
        assert torch.equal(saved["trainer"]["model"][name], raw[name])
    assert not same(saved["model"], raw)

    resumed = run_trainer(run_cfg(tmp_path, SOLVER__EMA_DECAY=0.5), resume=True)
    assert same(weights_of(resumed), raw)
    assert same(resumed.checkpointer.average.state_dict(), saved["model"])


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_out_of_range(digits, tmp_path, decay):
    with pytest.raises(ValueError, match="EMA_DECAY"):
        run_trainer(run_cfg(tmp_path, SOLVER__EMA_DECAY=decay))


def test_a_run_that_has_done_more_than_asked_for_is_not_resumed(digits, tmp_path):
    run_trainer(run_cfg(tmp_path, SOLVER__MAX_ITER=4)).train()
    with pytest.raises(ValueError, match=r"model_final\.pth' has done 4 steps, more than .* 3:"):
        run_trainer(run_cfg(tmp_path, SOLVER__MAX_ITER=3), resume=True)
