"""Batches of one shape, and results of threads in the order of their tasks."""

import threading
import time

import pytest

from fsaf_d2.prediction.batches import MAX_WAIT, by_shape, read_ahead


def grouped(text: str, batch_size: int) -> list[str]:
    items = enumerate(text)
    return [
        "".join(letter for _, letter in batch)
        for batch in by_shape(items, lambda item: item[1], batch_size=batch_size)
    ]


@pytest.mark.parametrize(
    ("text", "batches"),
    [
        ("", []),
        ("aaaa", ["aa", "aa"]),
        ("aaa", ["aa", "a"]),
        ("abab", ["aa", "bb"]),
        ("abcab", ["aa", "bb", "c"]),
        # After four batches' worth of others an image waits no longer.
        ("abbbbbbbbcc", ["bb", "bb", "bb", "bb", "a", "cc"]),
    ],
)
def test_batches_have_one_shape(text, batches):
    assert grouped(text, 2) == batches


def test_none_is_lost_and_each_shape_keeps_its_order():
    items = [(index, index * 7919 % 5) for index in range(200)]
    batches = list(by_shape(items, lambda item: item[1], batch_size=4))
    assert sorted(item for batch in batches for item in batch) == items
    for shape in range(5):
        order = [index for batch in batches for index, own in batch if own == shape]
        assert order == sorted(order)
    done = set()
    waits = 0
    for batch in batches:
        done |= {index for index, _ in batch}
        waits = max(waits, max(done) - min(set(range(200)) - done, default=200))
    assert waits <= MAX_WAIT * 4


def test_results_come_in_the_order_of_the_tasks():
    def task(index):
        time.sleep(0.01 * (index % 3 == 0))
        return index

    tasks = [lambda index=index: task(index) for index in range(20)]
    assert list(read_ahead(tasks, workers=4)) == list(range(20))
    assert list(read_ahead([], workers=1)) == []


def test_only_so_many_run_ahead():
    begun = []
    tasks = (lambda index=index: begun.append(index) for index in range(1000))
    results = read_ahead(tasks, workers=3)
    for _ in range(5):
        next(results)
    assert len(begun) <= 5 + 2 * 3
    results.close()
    assert not [x for x in threading.enumerate() if x.name.startswith("read_ahead")]


def test_errors_of_tasks_come_out():
    with pytest.raises(ZeroDivisionError):
        list(read_ahead([lambda: 1 / 0], workers=2))
