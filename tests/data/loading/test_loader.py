import gc
import os
import random
import signal
from multiprocessing import active_children

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from fsaf_d2 import load_config
from fsaf_d2.data.loading.loader import TrainingLoader, UnreadableData, choose_records
from fsaf_d2.data.loading.stream import WaitBrokenOff

LOADERS: list[TrainingLoader] = []


class InOrder(torch.utils.data.Sampler):
    """All indices in a random order, again and again."""

    def __init__(self, count, seed):
        self.count, self.seed = count, seed

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield from torch.randperm(self.count, generator=generator).tolist()


def mapper(sample: dict) -> dict:
    """The sample with random numbers of all three generators."""
    if sample["id"] in sample.get("broken", ()):
        raise OSError(f"Image '{sample['id']}.jpg' cannot be read.")
    if sample.get("kills") == sample["id"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return {**sample, "drawn": (random.random(), np.random.rand(), torch.rand(1).item())}


@pytest.fixture(autouse=True)
def ended():
    """Workers end with the test, not when garbage is collected, which then waits for them."""
    yield
    while LOADERS:
        LOADERS.pop().close()


def loader(*, count=7, batch_size=2, seed=3, extra=None, **kwargs) -> TrainingLoader:
    dicts = [
        {"id": i, "width": 20 if i % 3 else 10, "height": 15, **(extra or {})} for i in range(count)
    ]
    one = TrainingLoader(
        dicts,
        lambda seed: InOrder(count, seed),
        mapper,
        batch_size=batch_size,
        seed=seed,
        **kwargs,
    )
    LOADERS.append(one)
    return one


def take(batches: TrainingLoader, count: int) -> list:
    return [[(x["id"], x["drawn"]) for x in next(batches)] for _ in range(count)]


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_workers(workers, grouping):
    expected = take(loader(aspect_ratio_grouping=grouping), 9)
    assert take(loader(aspect_ratio_grouping=grouping, num_workers=workers), 9) == expected


@pytest.mark.parametrize("done", [0, 1, 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_goes_on_where_another_was(done, workers):
    expected = take(loader(), 12)
    one = loader(num_workers=workers)
    take(one, done)
    other = loader(seed=99)
    other.load_state_dict(one.state_dict())
    assert take(other, 12 - done) == expected[done:]


def test_goes_back_in_the_midst():
    one = loader()
    take(one, 2)
    state = one.state_dict()
    expected = take(one, 3)
    one.load_state_dict(state)
    assert take(one, 3) == expected


def test_the_seed_decides():
    assert take(loader(seed=1), 5) == take(loader(seed=1), 5) != take(loader(seed=2), 5)


def test_an_image_is_augmented_anew_each_time():
    drawn = [x for batch in take(loader(count=3), 6) for x in batch]
    assert len({numbers for _, numbers in drawn}) == len(drawn)


def test_every_image_comes_equally_often():
    ids = [i for batch in take(loader(aspect_ratio_grouping=False), 21) for i, _ in batch]
    assert sorted(ids) == sorted(6 * list(range(7)))


def test_groups_hold_one_aspect():
    for batch in take(loader(), 20):
        assert len({i % 3 == 0 for i, _ in batch}) == 1


def test_the_global_random_numbers_stay_as_they_are():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    take(loader(), 3)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_stops_by_default(workers):
    with pytest.raises(OSError, match=r"Image '4\.jpg' cannot be read"):
        take(loader(extra={"broken": [4]}, num_workers=workers), 20)


@pytest.mark.parametrize("workers", [0, 1])
def test_so_many_unreadable_ones_are_left_out(workers, caplog):
    batches = loader(
        extra={"broken": [4]},
        num_workers=workers,
        max_unreadable=2,
        aspect_ratio_grouping=False,
    )
    seen = take(batches, 7)
    assert 4 not in {i for batch in seen for i, _ in batch}
    assert batches.state_dict()["unreadable"] == 2
    assert "Image '4.jpg' cannot be read. Left out: 2 of 2 allowed." in caplog.text
    with pytest.raises(
        UnreadableData, match=r"4\.jpg.*DATALOADER\.MAX_UNREADABLE \(2 may be, 2 are\)"
    ):
        take(batches, 7)


def test_unreadable_images_are_counted_across_a_resume():
    options = {"extra": {"broken": [4]}, "max_unreadable": 2, "aspect_ratio_grouping": False}
    one = loader(**options)
    take(one, 5)
    assert one.state_dict()["unreadable"] == 1
    other = loader(**options)
    other.load_state_dict(one.state_dict())
    # All seven images come twice in seven batches.
    with pytest.raises(UnreadableData, match=r"\(2 may be, 2 are\)"):
        take(other, 7)


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_augment_with_random_numbers_of_their_own(monkeypatch, workers):
    drawn = []
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        # All have the same images here, so that random numbers alone can differ.
        drawn += [numbers for batch in take(loader(num_workers=workers), 6) for _, numbers in batch]
    for numbers in zip(*drawn, strict=True):
        assert len(set(numbers)) == len(drawn) == 36


def test_a_batch_of_nothing_is_passed_over():
    batches = loader(extra={"broken": range(6)}, batch_size=1, max_unreadable=99)
    assert [i for batch in take(batches, 3) for i, _ in batch] == [6, 6, 6]


def test_workers_end_with_the_loader_or_when_they_are_told():
    gc.disable()
    try:
        one, other = loader(num_workers=2), loader(num_workers=2)
        expected = take(loader(), 5)
        assert take(one, 3) == take(other, 3) == expected[:3]
        assert len(active_children()) == 4
        one.close()
        assert len(active_children()) == 2
        # It goes on where it was.
        assert take(one, 2) == expected[3:]
        LOADERS.clear()
        del one, other
        assert not active_children()
    finally:
        gc.enable()


def test_a_loader_that_was_told_not_to_wait_gives_nothing_till_it_is_closed():
    for one in (loader(), loader()):
        expected = take(loader(), 3)
        started = one is not LOADERS[0]
        if started:
            take(one, 1)
        one.break_off()
        with pytest.raises(WaitBrokenOff):
            next(one)
        assert one.state_dict()["batches"] == started
        one.close()
        assert take(one, 2) == expected[started : 2 + started]


def test_a_worker_that_dies_is_told():
    with pytest.raises(OSError, match=r"has ended, .*NUM_WORKERS"):
        take(loader(extra={"kills": 4}, num_workers=1), 20)


def record(name: str, *crowds: int) -> dict:
    return {"file_name": name, "annotations": [{"iscrowd": crowd} for crowd in crowds]}


RECORDS = [
    *(record("objects", 0, 0), record("nothing"), record("crowd", 1, 1), record("both", 1, 0)),
    *({"file_name": "not annotated"}, {"file_name": "old", "annotations": [{}]}),
]


@pytest.mark.parametrize("filter_empty", [False, True])
def test_negatives_are_kept_by_default_and_crowds_are_never_background(filter_empty, caplog):
    with caplog.at_level("INFO", "detectron2.fsaf_d2.data"):
        kept = [x["file_name"] for x in choose_records(RECORDS, filter_empty=filter_empty)]
    expected = ["objects", "nothing", "both", "not annotated", "old"]
    assert kept == [name for name in expected if name != "nothing" or not filter_empty]
    fate = "left out" if filter_empty else "kept as background"
    assert f"1 training images without objects are {fate}" in caplog.text
    assert "1 training images whose only annotations are crowds" in caplog.text


def test_negatives_are_kept_by_the_default_of_the_key():
    assert not load_config("").DATALOADER.FILTER_EMPTY_ANNOTATIONS


def test_no_image_is_left():
    with pytest.raises(
        ValueError, match=r"None of the 2 .* 1 have no objects .* 1 show crowds only"
    ):
        choose_records([record("a"), record("b", 1)], filter_empty=True)
