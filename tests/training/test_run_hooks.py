import json
import os
import signal
import subprocess
import time
from multiprocessing import active_children
from threading import Timer
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import HookBase
from runs import run_cfg, run_trainer, same, weights_of

from fsaf_d2.data.loading import stream
from fsaf_d2.data.loading.mapped_samples import MappedSamples
from fsaf_d2.training.ema import MovingAverage
from fsaf_d2.training.hooks.saving import EXIT_RESUMABLE, StopOnSignal


class At(HookBase):
    """Does something behind a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def after_step(self):
        if self.trainer.iter + 1 == self.step:
            self.action()


class Before(HookBase):
    """Does something before each step."""

    def __init__(self, action):
        self.before_step = action


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


@pytest.mark.parametrize(
    ("first", "second"),
    [("SIGTERM", "SIGTERM"), ("SIGTERM", "SIGINT"), ("SIGINT", "SIGTERM")],
)
def test_a_second_signal_does_not_disturb_the_saving(first, second):
    first, second = signal.Signals[first], signal.Signals[second]
    saved = []

    def save():
        os.kill(os.getpid(), second)
        saved.append(stop.trainer.iter)

    stop = StopOnSignal(save, lambda: None)
    stop.trainer = SimpleNamespace(iter=2, max_iter=9)
    stop.before_train()
    try:
        os.kill(os.getpid(), first)
        with pytest.raises(SystemExit) as stopped:
            stop.after_step()
    finally:
        stop.after_train()
    assert saved == [2] and stopped.value.code == EXIT_RESUMABLE


def test_a_second_sigint_ends_it_at_once():
    stop = StopOnSignal(lambda: None, lambda: None)
    stop.before_train()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        stop.after_train()


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, 0), (signal.SIGTERM, 2)])
def test_a_signal_ends_a_wait_for_data(
    digits, tmp_path, monkeypatch, number, workers, weights_of_6_steps
):
    read = MappedSamples.__getitem__

    def hangs(self, place_and_index):
        # From the fourth batch of two images on.
        time.sleep(60 * (place_and_index[0] >= 6))
        return read(self, place_and_index)

    options = {"DATALOADER__NUM_WORKERS": workers, "SOLVER__CHECKPOINT_PERIOD": 100}
    trainer = run_trainer(run_cfg(tmp_path, **options))
    signal_soon = Timer(0.3, os.kill, (os.getpid(), number))
    trainer._hooks.append(hook := At(3, signal_soon.start))
    hook.trainer, others = trainer, active_children()
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(MappedSamples, "__getitem__", hangs)
        patch.setattr(stream, "GRACE", 0.1)
        started = time.monotonic()
        trainer.train()
    assert stopped.value.code == EXIT_RESUMABLE and time.monotonic() - started < 10
    assert active_children() == others
    rest = run_trainer(run_cfg(tmp_path), resume=True)
    assert rest.start_iter == 3
    rest.train()
    assert same(weights_of(rest), weights_of_6_steps)


def test_a_signal_before_the_first_step_leaves_nothing_to_go_on_from(digits, tmp_path, caplog):
    trainer = run_trainer(run_cfg(tmp_path))
    trainer._hooks.append(hook := Before(lambda: os.kill(os.getpid(), signal.SIGTERM)))
    hook.trainer = trainer
    with pytest.raises(SystemExit) as stopped:
        trainer.train()
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "there is nothing to save" in caplog.text and not list(tmp_path.glob("*.pth"))


def test_workers_end_with_the_training(digits, tmp_path):
    others = active_children()
    trainer = run_trainer(run_cfg(tmp_path, DATALOADER__NUM_WORKERS=2, SOLVER__MAX_ITER=2))
    trainer._hooks.append(hook := At(2, lambda: seen.append(len(active_children()))))
    hook.trainer, seen = trainer, []
    trainer.train()
    assert seen == [len(others) + 2] and active_children() == others


def test_a_signal_to_the_workers_too_saves(digits, tmp_path, monkeypatch):
    """As schedulers of clusters send it; the run is within a step when the workers end."""
    chld = signal.getsignal(signal.SIGCHLD)
    trainer = run_trainer(run_cfg(tmp_path, DATALOADER__NUM_WORKERS=2))
    step, others = trainer._trainer.run_step, active_children()

    def run_step():
        step()
        if trainer.iter == 2:
            workers = [x.pid for x in active_children() if x not in others]
            # From another process: that a worker's parent ends it is no surprise to torch.
            subprocess.run(["kill", "-TERM", *map(str, (os.getpid(), *workers))])
            time.sleep(0.2)

    trainer._trainer.run_step = run_step
    with pytest.raises(SystemExit) as stopped:
        trainer.train()
    signal.signal(signal.SIGCHLD, chld)
    assert stopped.value.code == EXIT_RESUMABLE and active_children() == others
    assert torch.load(tmp_path / "model_0000002.pth", weights_only=True)["iteration"] == 2


def test_workers_leave_signals_to_the_run():
    """A terminal sends SIGINT to all of them."""
    stop = StopOnSignal(lambda: None, lambda: None)
    stop.before_train()
    try:
        worker = os.fork()
        if not worker:
            code = 1
            try:
                for _ in range(2):
                    os.kill(os.getpid(), signal.SIGINT)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(worker, 0)[1] == 0
    finally:
        stop.after_train()


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


def test_an_evaluation_that_fails_leaves_the_weights_of_the_training():
    model = torch.nn.Linear(2, 1)
    average = MovingAverage(model, 0.9)
    with torch.no_grad():
        model.weight += 1
    raw = model.weight.clone()
    with pytest.raises(OSError), average.applied():
        assert not torch.equal(model.weight, raw)
        raise OSError
    assert torch.equal(model.weight, raw)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_out_of_range(digits, tmp_path, decay):
    with pytest.raises(ValueError, match="EMA_DECAY"):
        run_trainer(run_cfg(tmp_path, SOLVER__EMA_DECAY=decay))


def test_a_run_that_has_done_more_than_asked_for_is_not_resumed(digits, tmp_path):
    run_trainer(run_cfg(tmp_path, SOLVER__MAX_ITER=4)).train()
    with pytest.raises(ValueError, match=r"model_final\.pth' has done 4 steps, more than .* 3:"):
        run_trainer(run_cfg(tmp_path, SOLVER__MAX_ITER=3), resume=True)
