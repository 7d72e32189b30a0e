"""Samples as a DataLoader's workers make them, whose random numbers are of no process."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from detectron2.data.detection_utils import SizeMismatchError
from torch.utils.data import Dataset


class Unreadable(str):
    """In place of a sample: why it is missing."""


class MappedSamples(Dataset):
    """Maps (place in the run, index) to a sample, with random numbers of the place's own."""

    def __init__(self, dataset: Dataset, mapper: Callable[[dict], dict], seed: int) -> None:
        self._dataset = dataset
        self._mapper = mapper
        self._seed = seed

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, place_and_index: tuple[int, int]) -> dict | Unreadable:
        place, index = place_and_index
        with _random_numbers(self._seed, place):
            try:
                return self._mapper(self._dataset[index])
            except FileNotFoundError as error:
                return Unreadable(f"Image '{error.filename}' is not there.")
            except (OSError, SizeMismatchError) as error:
                return Unreadable(error)


@contextlib.contextmanager
def _random_numbers(seed: int, place: int) -> Iterator[None]:
    """Seed the global generators for the body alone."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    own_seed = int(np.random.SeedSequence([seed, place]).generate_state(1)[0])
    random.seed(own_seed)
    np.random.seed(own_seed)
    torch.default_generator.manual_seed(own_seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
