"""Batches that others prepare, for which nobody has to wait in vain."""

from __future__ import annotations

from collections.abc import Iterable
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from threading import Timer

# Seconds that workers have to end what they are at; torch gives each of them five.
GRACE = 1.0


class WaitBrokenOff(BaseException):
    """No batch has come yet, and none is waited for any more.

    No Exception, which detectron2 would log as a failure.
    """


class BatchStream:
    """The batches of a DataLoader, or of what iterates over one, in their order."""

    def __init__(self, source: Iterable[list]) -> None:
        self._source = source
        self._batches = None
        self._workers = []
        self._is_waiting = self._is_broken_off = False

    def __next__(self) -> list:
        """The next batch.

        Raises:
            WaitBrokenOff: :meth:`break_off` was called, meanwhile or before.
        """
        others = active_children() if self._batches is None else None
        self._is_waiting = True
        try:
            # Not before: a signal in between would be waited through.
            if self._is_broken_off:
                raise WaitBrokenOff
            if self._batches is None:
                self._batches = iter(self._source)
            return next(self._batches)
        except WaitBrokenOff:
            # With its traceback goes what iterates, which ends the workers.
            self._note_workers(others)
            ends_workers = self._end_workers_soon()
        finally:
            self._is_waiting = False
            self._note_workers(others)
        self._batches = None
        ends_workers.cancel()
        raise WaitBrokenOff

    def break_off(self) -> None:
        """Let nobody wait for a batch any more: for the handler of a signal."""
        self._is_broken_off = True
        if self._is_waiting:
            raise WaitBrokenOff

    def close(self) -> None:
        """End the workers, those that hang too."""
        ends_workers = self._end_workers_soon()
        self._source = self._batches = None
        ends_workers.cancel()

    def _note_workers(self, others: list[BaseProcess] | None) -> None:
        if others is not None:
            self._workers = [x for x in active_children() if x not in others]

    def _end_workers_soon(self) -> Timer:
        """End those by force that do not end by themselves; torch waits for them meanwhile."""
        timer = Timer(GRACE, lambda: [worker.terminate() for worker in self._workers])
        timer.start()
        return timer
