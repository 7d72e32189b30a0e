"""Batches of images of one shape, and reading ahead of the network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# An image waits for others of its shape until so many batches' worth of images have come by.
MAX_WAIT = 4


def by_shape(
    items: Iterable[T], shape_of: Callable[[T], Hashable], *, batch_size: int
) -> Iterator[list[T]]:
    """Group items of one shape, each group in the order in which they came.

    An image that shares a batch with larger ones is padded, which changes what a network sees at
    its border. With others of its own shape it is as alone.

    Args:
        items: any number.
        shape_of: what the items of a batch have in common.
        batch_size: items of a batch at the most.
    """
    waiting: dict[Hashable, list[tuple[int, T]]] = {}
    for place, item in enumerate(items):
        shape = shape_of(item)
        group = waiting.setdefault(shape, [])
        group.append((place, item))
        if len(group) == batch_size:
            yield _taken(waiting, shape)
        oldest = next(iter(waiting), None)
        # The group that was begun first stands first.
        if oldest is not None and place - waiting[oldest][0][0] >= MAX_WAIT * batch_size:
            yield _taken(waiting, oldest)
    while waiting:
        yield _taken(waiting, next(iter(waiting)))


def _taken(waiting: dict[Hashable, list[tuple[int, T]]], shape: Hashable) -> list[T]:
    return [item for _, item in waiting.pop(shape)]


def read_ahead(tasks: Iterable[Callable[[], T]], *, workers: int) -> Iterator[T]:
    """Run tasks in threads while their results are used.

    Args:
        tasks: run in this order, ``workers`` at a time.
        workers: threads, 1 at least. As many results more lie ready at the most.

    Returns:
        the results in the order of the tasks.
    """
    pending: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read_ahead")
    try:
        for task in tasks:
            pending.append(pool.submit(task))
            if len(pending) >= 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
