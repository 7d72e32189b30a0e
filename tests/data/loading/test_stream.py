"""Whoever waits for a batch can be told not to, and no worker stays."""

import gc
import os
import signal
import time
from multiprocessing import active_children
from threading import Timer

import pytest
import torch
from detectron2.data.common import AspectRatioGroupedDataset

from fsaf_d2.data.loading import stream as module
from fsaf_d2.data.loading.stream import BatchStream, WaitBrokenOff


class Hangs(torch.utils.data.Dataset):
    """From the third sample on."""

    def __len__(self):
        return 8

    def __getitem__(self, place):
        if place > 1:
            time.sleep(60)
        return {"width": 2, "height": 1, "place": place}


def loader(workers, **options):
    return torch.utils.data.DataLoader(
        Hangs(), batch_size=None, num_workers=workers, collate_fn=lambda x: x, **options
    )


# As this project and as detectron2 put one around the samples.
SOURCES = {
    "plain": loader,
    "grouped": lambda workers: AspectRatioGroupedDataset(loader(workers), 1),
}


@pytest.fixture
def no_collector(monkeypatch):
    monkeypatch.setattr(module, "GRACE", 0.1)
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_wait_can_be_broken_off_and_the_workers_end(no_collector, source, workers):
    others = active_children()
    stream = BatchStream(SOURCES[source](workers))
    former = signal.signal(signal.SIGUSR1, lambda *_: stream.break_off())
    started = time.monotonic()
    try:
        assert next(stream) and next(stream)
        Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(WaitBrokenOff):
            next(stream)
        stream.close()
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert active_children() == others and time.monotonic() - started < 4


def test_what_was_broken_off_before_is_not_waited_for(no_collector):
    stream = BatchStream(loader(0))
    stream.break_off()
    with pytest.raises(WaitBrokenOff):
        next(stream)


def test_a_stream_that_was_never_asked_can_be_closed():
    BatchStream(loader(2)).close()
    assert not [x for x in active_children() if "DataLoader" in x.name]
