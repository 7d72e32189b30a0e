import itertools
import json
import logging
import time
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.engine.hooks import CallbackHook, IterationTimer, PeriodicWriter
from detectron2.utils.events import EventStorage, JSONWriter

from fsaf_d2.training.hooks import DataShare, ProgressLine, data_share


def storage_with(times: dict[int, float], waits: dict[int, float]) -> EventStorage:
    """The times of each step, in seconds."""
    storage = EventStorage()
    for name, values in (("time", times), ("data_time", waits)):
        for step, seconds in values.items():
            storage.iter = step
            storage.put_scalar(name, seconds)
    return storage


def test_share_is_that_of_the_sums():
    assert data_share(storage_with({0: 1.0, 1: 3.0}, {0: 1.0, 1: 0.0})) == pytest.approx(0.25)


def test_only_steps_with_both_times_count():
    # The start of the workers has no step time; some steps may not be recorded.
    storage = storage_with({2: 1.0, 3: 1.0, 4: 2.0}, {0: 60.0, 2: 0.5, 4: 1.0})
    assert data_share(storage) == pytest.approx(0.5)


def test_only_the_last_steps_count():
    storage = storage_with(dict.fromkeys(range(9), 1.0), {i: float(i < 7) for i in range(9)})
    assert data_share(storage, window=4) == pytest.approx(0.5)


def test_no_share_without_times():
    storage = EventStorage()
    assert data_share(storage) is None
    # Neither was recorded by asking.
    assert not storage.histories()
    assert data_share(storage_with({3: 1.0}, {1: 1.0})) is None


def test_the_share_is_logged_at_the_end_of_a_period_and_of_the_run():
    hook, logged = DataShare(period=4), []
    storage = storage_with({3: 1.0}, {3: 0.5})
    storage.put_scalar = lambda name, *_, **__: logged.append((step, name))
    for step in range(1, 7):
        hook.trainer = SimpleNamespace(iter=step - 1, max_iter=6, storage=storage)
        hook.after_step()
    assert logged == [(4, "data_share"), (6, "data_share")]


class Sleeper(torch.nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seconds = seconds

    def forward(self, _) -> dict:
        time.sleep(self.seconds)
        return {"loss": self.weight * 1}


def sleeping_loader(seconds: float):
    time.sleep(0.5)
    for step in itertools.count():
        time.sleep(seconds)
        yield step


def train(data_seconds: float, model_seconds: float, *hooks) -> SimpleTrainer:
    """Eight steps that only sleep, and hooks that sleep as well."""
    model = Sleeper(model_seconds)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = SimpleTrainer(model, sleeping_loader(data_seconds), optimizer)
    evaluation = CallbackHook(after_step=lambda _: time.sleep(0.05))
    trainer.register_hooks([IterationTimer(), evaluation, *hooks])
    trainer.train(0, 8)
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("data, model", [(0.03, 0.01), (0.01, 0.03)])
def test_a_slow_loader_is_logged_and_recorded(tmp_path, caplog, data, model):
    writer = PeriodicWriter([JSONWriter(str(tmp_path / "metrics.json"))], period=4)
    with caplog.at_level(logging.INFO):
        train(data, model, DataShare(period=4), writer)
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    shares = {line["iteration"]: line["data_share"] for line in lines if "data_share" in line}
    assert list(shares) == [3, 7]
    for share in shares.values():
        assert share == pytest.approx(data / (data + model), abs=0.15)
    messages = [record.message for record in caplog.records if record.message.startswith("data: ")]
    assert messages == [f"data: {100 * share:.0f} % of the step" for share in shares.values()]


@pytest.mark.slow
def test_the_progress_line_advises_only_where_much_is_waited_for(capsys):
    train(0.02, 0.02, ProgressLine())
    assert "% of it for data: raise DATALOADER.NUM_WORKERS\n" in capsys.readouterr().out
    train(0.0, 0.02, ProgressLine())
    assert capsys.readouterr().out.endswith("0:00 left\n")
