"""What the parts of a Python config mean for a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from detectron2.config import instantiate
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.registry import locate
from omegaconf import DictConfig

from ..data.loading.stream import BatchStream
from ..data.reading.image_headers import MAX_PIXELS
from ..detectors.contract import Traits
from ..evaluation import BoxEvaluator
from .examination import EvaluationSet
from .lazy_config import DEFAULTS, WORDS, ConfigError
from .run_settings import RunSettings


def build_part(part: DictConfig, **given: object) -> Iterable:
    """Build what reads data, of which some arguments may be there already.

    Raises:
        ConfigError: there are no such data.
    """
    try:
        return instantiate({**dict(part.items()), **given} if given else part)
    except FileNotFoundError as error:
        raise ConfigError(
            f"'{error.filename}' does not exist: data sets are looked for in the folder that "
            "DETECTRON2_DATASETS names, ./datasets by default."
        ) from error


class TrainingData:
    """The loader of a Python config, which has no state, with what a run asks of one."""

    def __init__(self, part: DictConfig) -> None:
        self._part = part
        self._records = build_part(part.dataset) if "dataset" in part else None
        self._stream: BatchStream | None = self._begin()
        self.last_batch: list[dict] = []

    def _begin(self) -> BatchStream:
        # Anew each time: detectron2 0.6 gives nothing where its groups are iterated over again.
        given = {} if self._records is None else {"dataset": self._records}
        return BatchStream(build_part(self._part, **given))

    def __iter__(self) -> TrainingData:
        """There is one stream, wherever it is."""
        return self

    def __next__(self) -> list[dict]:
        """The next batch."""
        if self._stream is None:
            self._stream = self._begin()
        self.last_batch = next(self._stream)
        return self.last_batch

    def break_off(self) -> None:
        """As :meth:`.TrainingLoader.break_off`."""
        if self._stream is not None:
            self._stream.break_off()

    def close(self) -> None:
        """As :meth:`.TrainingLoader.close`."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    @property
    def num_images(self) -> int:
        """How many images of all processes together are trained on; 0 if that is not known."""
        return len(self._records) if self._records is not None else 0

    def spread_records(self, count: int) -> list[dict]:
        """``count`` records of the data, or all if there are fewer, evenly spread over it."""
        records = self._records or []
        places = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
        return [records[place] for place in places.tolist()]

    def state_dict(self) -> dict:
        """Nothing: a resumed run begins anew with its data."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing is to be restored."""


def settings_of_lazy(cfg: DictConfig) -> RunSettings:
    """The settings that a Python config asks for."""
    train, data = {**DEFAULTS, **dict(cfg.train.items())}, cfg.dataloader.train
    checkpointer = train.get("checkpointer") or {}
    names = _evaluated(cfg.dataloader)
    folder = cfg.dataloader.evaluator.get("output_dir") if names else None
    report = Path(folder or Path(train["output_dir"]) / "inference", "evaluation.json")
    trained = _names(data.get("dataset"))
    can_label = _has_labels(cfg.dataloader.test)
    return RunSettings(
        output_dir=train["output_dir"],
        max_iter=train["max_iter"],
        batch_size=data.get("total_batch_size", 1),
        weights=train["init_checkpoint"],
        weights_key=WORDS["MODEL.WEIGHTS"],
        checkpoint_period=checkpointer.get("period", RunSettings.checkpoint_period),
        checkpoints_to_keep=checkpointer.get("max_to_keep") or 0,
        log_period=train["log_period"],
        eval_period=train["eval_period"],
        best_metric=train["best_metric"],
        patience=train["patience"],
        train_dataset=trained[0] if trained else "",
        datasets=names,
        reports=(report,) * len(names),
        losses=train["loss"] and can_label,
        samples=train["samples"],
        level_lens=train["level_lens"] if can_label and "dataset" in data else 0,
        non_finite=train["non_finite"]["action"],
        max_non_finite=train["non_finite"]["max_times"],
        ema_decay=train["ema_decay"],
        input_format=data.get("mapper", {}).get("image_format", "BGR"),
        words=WORDS,
    )


def evaluation_sets_of_lazy(cfg: DictConfig, settings: RunSettings) -> dict[str, EvaluationSet]:
    """The data of ``dataloader.test``, if they are read by a mapper of detectron2's kind."""
    test = cfg.dataloader.test
    if not settings.datasets or not {"dataset", "mapper"} <= set(test):
        return {}
    mapper = instantiate(test.mapper)
    of_test = EvaluationSet(
        report=settings.reports[0],
        read_records=lambda: instantiate(test.dataset),
        mapper=mapper,
        labelled_mapper=labelled_mapper_of(test),
        num_workers=test.get("num_workers", 0),
        max_pixels=getattr(mapper, "max_pixels", MAX_PIXELS),
    )
    return {settings.datasets[0]: of_test}


def labelled_mapper_of(test: DictConfig) -> Callable[[dict], dict] | None:
    """The mapper of evaluation, which also gives annotations; None where it cannot."""
    if not _has_labels(test):
        return None
    return instantiate({**dict(test.mapper.items()), "is_train": True})


def build_evaluator(part: object, traits: Traits) -> DatasetEvaluator:
    """Build the evaluator; this project's learns of the detector what the config leaves out."""
    if not is_called(part, BoxEvaluator):
        return instantiate(part)
    known = {
        "level_names": traits.level_names,
        "branch_names": traits.branch_names,
        "score_thresh": traits.score_threshold,
    }
    return instantiate({**known, **dict(part.items())})


def _has_labels(test: DictConfig) -> bool:
    mapper = test.get("mapper")
    return isinstance(mapper, Mapping) and "is_train" in mapper


def _evaluated(dataloader: DictConfig) -> tuple[str, ...]:
    """The name of the data set that is evaluated, if it is known."""
    evaluator = dataloader.evaluator
    if not isinstance(evaluator, Mapping):
        return ()
    name = evaluator.get("dataset_name")
    return (name,) if name else _names(dataloader.test.get("dataset"))[:1]


def _names(node: object) -> tuple[str, ...]:
    """The names of data sets in a call, or in one of its arguments."""
    if not isinstance(node, Mapping):
        return ()
    if "names" in node:
        names = node["names"]
        return (names,) if isinstance(names, str) else tuple(names)
    found = (_names(value) for value in node.values())
    return next((names for names in found if names), ())


def is_called(node: object, what: type) -> bool:
    """Whether a part of a config builds this and nothing else."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    return (locate(target) if isinstance(target, str) else target) is what
