"""Training batches that depend on nothing but the seed and the step.

Which images a batch holds, and how each is augmented, is a function of the run's seed and the
image's place in the run. So a run can go on at any step, with any number of workers, with the
same batches that it would have had.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Sampler

from ...texts import SHOWN
from ..reading.annotation_files import let_go
from .lost_workers import naming_lost_workers
from .mapped_samples import MappedSamples, Unreadable
from .mapper import build_mapper
from .stream import BatchStream, WaitBrokenOff

_logger = logging.getLogger("detectron2.fsaf_d2.data")


class UnreadableData(OSError):
    """More training images than allowed could not be read."""


class TrainingLoader:
    """An endless stream of training batches of one process; what it is at can be stored.

    Its state is the seed and the number of batches that were given out, not those that workers
    have prepared.
    """

    def __init__(
        self,
        dataset_dicts: list[dict],
        build_sampler: Callable[[int], Sampler],
        mapper: Callable[[dict], dict],
        *,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        aspect_ratio_grouping: bool = True,
        max_unreadable: int = 0,
    ) -> None:
        """
        Args:
            dataset_dicts: in detectron2's format.
            build_sampler: makes, for a seed, the endless stream of indices of this process.
            mapper: reads and augments an image, by the global random numbers of Python and NumPy.
            batch_size: images of this process.
            seed: of order and augmentation, the same in all processes.
            num_workers: processes that prepare batches ahead; 0 prepares them when they are asked
                for.
            aspect_ratio_grouping: whether a batch holds only wide or only tall images.
            max_unreadable: so many images, of this process, may be unreadable and are left out.
        """
        self._sizes = [(x.get("width", 1), x.get("height", 1)) for x in dataset_dicts]
        self._dataset = DatasetFromList(dataset_dicts, copy=False)
        self._build_sampler = build_sampler
        self._mapper = mapper
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._grouping = aspect_ratio_grouping
        self._max_unreadable = max_unreadable
        self._state = {"seed": seed, "batches": 0, "unreadable": 0}
        self._stream: BatchStream | None = None
        self._is_broken_off = False
        self.last_batch: list[dict] = []

    def __iter__(self) -> TrainingLoader:
        """There is one stream, wherever it is."""
        return self

    def __next__(self) -> list[dict]:
        """The next batch.

        Raises:
            UnreadableData: more images than allowed cannot be read.
            OSError: a worker has died.
            WaitBrokenOff: :meth:`break_off` was called, meanwhile or before.
        """
        while True:
            if self._stream is None:
                self._stream = self._begin()
            if self._is_broken_off:
                raise WaitBrokenOff
            with naming_lost_workers():
                batch = next(self._stream)
            self._state["batches"] += 1
            self.last_batch = [sample for sample in batch if not isinstance(sample, Unreadable)]
            self._count([x for x in batch if isinstance(x, Unreadable)])
            if self.last_batch:
                return self.last_batch

    def _begin(self) -> BatchStream:
        batches = _Batches(
            self._build_sampler(self._state["seed"]),
            self._sizes if self._grouping else None,
            self._batch_size,
            first=self._state["batches"],
        )
        loader = DataLoader(
            MappedSamples(self._dataset, self._mapper, self._state["seed"]),
            batch_sampler=batches,
            num_workers=self._num_workers,
            collate_fn=list,
            # Its own, so that to begin anew takes no number from the global one.
            generator=torch.Generator(),
        )
        return BatchStream(loader)

    def break_off(self) -> None:
        """Have whoever waits for a batch wait no more: for the handler of a signal."""
        self._is_broken_off = True
        if self._stream is not None:
            self._stream.break_off()

    def close(self) -> None:
        """End the workers; the next batch has them start anew."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._is_broken_off = None, False

    def _count(self, unreadable: list[Unreadable]) -> None:
        for sample in unreadable:
            self._state["unreadable"] += 1
            count, limit = self._state["unreadable"], self._max_unreadable
            if count > limit:
                raise UnreadableData(
                    f"{sample} Mend it, or leave it out by raising DATALOADER.MAX_UNREADABLE "
                    f"({limit} may be, {count - 1} are), and go on with --resume."
                )
            _logger.warning(f"{sample} Left out: {count} of {limit} allowed.")

    @property
    def num_images(self) -> int:
        """How many images of all processes together are trained on."""
        return len(self._dataset)

    def spread_records(self, count: int) -> list[dict]:
        """``count`` records of the data, or all if there are fewer, evenly spread over it."""
        last = len(self._dataset) - 1
        places = np.linspace(0, last, min(count, last + 1)).round().astype(int)
        return [self._dataset[place] for place in places.tolist()]

    def state_dict(self) -> dict[str, int]:
        """What :meth:`load_state_dict` needs to go on behind the last batch."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where another loader of the same data was."""
        self._state = {name: int(state[name]) for name in self._state}
        self.close()


def build_training_loader(cfg: CfgNode) -> TrainingLoader:
    """Build the loader of this process for ``DATASETS.TRAIN``.

    Without ``SEED`` the seed is drawn, the same in all processes.

    Raises:
        ValueError: the sampler is unknown, or no image is left to train on.
    """
    dataset_dicts = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    let_go()
    dataset_dicts = choose_records(
        dataset_dicts, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    return TrainingLoader(
        dataset_dicts,
        _sampler_builder(cfg, dataset_dicts),
        build_mapper(cfg, is_train=True),
        batch_size=cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        max_unreadable=cfg.DATALOADER.MAX_UNREADABLE,
    )


def choose_records(dataset_dicts: list[dict], *, filter_empty: bool) -> list[dict]:
    """Choose the images to train on, and log how many others there are.

    Images whose only annotations are crowds are left out: what they show is neither learnt nor
    background.

    Args:
        dataset_dicts: in detectron2's format.
        filter_empty: leave out those without objects too, which else are background to learn from.

    Raises:
        ValueError: none is left.
    """
    kept, num_empty, num_crowds = [], 0, 0
    for record in dataset_dicts:
        annotations = record.get("annotations")
        is_empty = annotations is not None and not annotations
        is_crowd = bool(annotations) and all(x.get("iscrowd", 0) for x in annotations)
        num_empty += is_empty
        num_crowds += is_crowd
        if not (is_crowd or (is_empty and filter_empty)):
            kept.append(record)
    key = f"DATALOADER.FILTER_EMPTY_ANNOTATIONS is {filter_empty}"
    if num_empty:
        fate = "left out" if filter_empty else "kept as background to learn from"
        _logger.info(
            f"{num_empty} training images without objects are {fate} ({key}).", extra=SHOWN
        )
    if num_crowds:
        _logger.warning(
            f"{num_crowds} training images whose only annotations are crowds (iscrowd 1) are "
            "left out, as they are not background."
        )
    if not kept:
        raise ValueError(
            f"None of the {len(dataset_dicts)} training images is left: {num_empty} have no "
            f"objects ({key}), and {num_crowds} show crowds only."
        )
    return kept


def _sampler_builder(cfg: CfgNode, dataset_dicts: list[dict]) -> Callable[[int], Sampler]:
    name, count = cfg.DATALOADER.SAMPLER_TRAIN, len(dataset_dicts)
    if name == "TrainingSampler":
        return lambda seed: TrainingSampler(count, seed=seed)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset_dicts, cfg.DATALOADER.REPEAT_THRESHOLD
        )
        return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)
    if name == "RandomSubsetTrainingSampler":
        ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
        return lambda seed: RandomSubsetTrainingSampler(
            count, ratio, seed_shuffle=seed, seed_subset=seed
        )
    raise ValueError(
        "DATALOADER.SAMPLER_TRAIN must be 'TrainingSampler', 'RepeatFactorTrainingSampler' or "
        f"'RandomSubsetTrainingSampler', not {name!r}."
    )


class _Batches(Sampler):
    """Endless batches of (place in the run, index into the data), of one aspect if grouped."""

    def __init__(
        self,
        indices: Sampler,
        sizes: list[tuple[int, int]] | None,
        batch_size: int,
        *,
        first: int,
    ) -> None:
        self._indices = indices
        self._sizes = sizes
        self._batch_size = batch_size
        self._first = first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return islice(self._all(), self._first, None)

    def _all(self) -> Iterator[list[tuple[int, int]]]:
        groups: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        world_size, rank = comm.get_world_size(), comm.get_rank()
        for count, index in enumerate(self._indices):
            is_wide = self._sizes is not None and self._sizes[index][0] > self._sizes[index][1]
            group = groups[is_wide]
            group.append((count * world_size + rank, index))
            if len(group) == self._batch_size:
                yield list(group)
                group.clear()
