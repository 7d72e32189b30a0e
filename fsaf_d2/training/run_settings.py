"""What a run does beside its training steps, whatever kind of config says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog, get_detection_dataset_dicts

from ..data.loading.mapper import build_labelled_mapper, build_mapper
from .examination import EvaluationSet
from .hooks.unbroken_log import WRITER_PERIOD


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Of a run. Attributes that have no other unit count training steps.

    Attributes:
        output_dir: where everything is written.
        max_iter: steps of the run.
        batch_size: images of a step, of all processes together.
        weights: the file or address to begin with, "" for none; ``weights_key`` is its name.
        config: the YAML that builds the model again; "" of a Python config.
        checkpoint_period: from one numbered checkpoint to the next.
        checkpoints_to_keep: so many of them stay; 0 keeps all.
        log_period: from one line of the log to the next.
        eval_period: from one evaluation to the next; 0 for one at the end.
        best_metric, patience: see :class:`.hooks.periodic_evaluation.Evaluation`.
        train_dataset: whose classes are learnt.
        datasets, reports: what is evaluated, and where the figures of each are written.
        losses: whether an evaluation computes the losses of training.
        samples, level_lens: how many images of the evaluation are drawn, and of how many of the
            training it is seen which levels objects select.
        non_finite, max_non_finite, ema_decay: see ``SOLVER``.
        input_format: the order of the network's channels.
        words: by a key of ``train_net.py``'s configs, what it is called here, for messages.
    """

    output_dir: str
    max_iter: int
    batch_size: int
    weights: str = ""
    weights_key: str = "MODEL.WEIGHTS"
    config: str = ""
    checkpoint_period: int = 5000
    checkpoints_to_keep: int = 0
    log_period: int = WRITER_PERIOD
    eval_period: int = 0
    best_metric: str = "bbox/AP"
    patience: int = 0
    train_dataset: str = ""
    datasets: tuple[str, ...] = ()
    reports: tuple[Path, ...] = ()
    losses: bool = True
    samples: int = 0
    level_lens: int = 0
    non_finite: str = "stop"
    max_non_finite: int = 5
    ema_decay: float = 0.0
    input_format: str = "BGR"
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def class_names(self) -> list[str]:
        """Of the data that are trained on."""
        return list(self._metadata.get("thing_classes", []))

    @property
    def category_ids(self) -> list[int]:
        """Those of the data set's file, in the order of ``class_names``."""
        ids = self._metadata.get("thing_dataset_id_to_contiguous_id")
        return sorted(ids, key=ids.get) if ids else list(range(len(self.class_names)))

    @property
    def _metadata(self) -> Metadata:
        return MetadataCatalog.get(self.train_dataset) if self.train_dataset else Metadata()

    def in_its_words(self, text: str) -> str:
        """A message with the keys as they are called in the run's own config."""
        return in_words(text, self.words)


def in_words(text: str, words: Mapping[str, str]) -> str:
    """A message with the keys of ``train_net.py``'s configs called otherwise."""
    for key, word in words.items():
        text = text.replace(key, word)
    return text


def settings_of(cfg: CfgNode) -> RunSettings:
    """The settings that a config of ``train_net.py`` asks for."""
    solver, test, names = cfg.SOLVER, cfg.TEST, cfg.DATASETS.TRAIN
    return RunSettings(
        output_dir=cfg.OUTPUT_DIR,
        max_iter=solver.MAX_ITER,
        batch_size=solver.IMS_PER_BATCH,
        weights=cfg.MODEL.WEIGHTS,
        config=cfg.dump(),
        checkpoint_period=solver.CHECKPOINT_PERIOD,
        checkpoints_to_keep=solver.CHECKPOINTS_TO_KEEP,
        eval_period=test.EVAL_PERIOD,
        best_metric=test.BEST_METRIC,
        patience=test.PATIENCE,
        train_dataset=names[0] if names else "",
        datasets=tuple(cfg.DATASETS.TEST),
        reports=tuple(report_file(cfg, name) for name in cfg.DATASETS.TEST),
        losses=test.LOSS,
        samples=test.SAMPLES,
        level_lens=test.LEVEL_LENS,
        non_finite=solver.NON_FINITE.ACTION,
        max_non_finite=solver.NON_FINITE.MAX_TIMES,
        ema_decay=solver.EMA_DECAY,
        input_format=cfg.INPUT.FORMAT,
    )


def evaluation_sets_of(cfg: CfgNode) -> dict[str, EvaluationSet]:
    """The data sets of ``DATASETS.TEST``."""
    if not cfg.DATASETS.TEST:
        return {}
    mapper, labelled_mapper = build_mapper(cfg, is_train=False), build_labelled_mapper(cfg)
    return {
        name: EvaluationSet(
            report=report_file(cfg, name),
            read_records=lambda name=name: get_detection_dataset_dicts([name], filter_empty=False),
            mapper=mapper,
            labelled_mapper=labelled_mapper,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            max_pixels=cfg.INPUT.MAX_PIXELS,
        )
        for name in cfg.DATASETS.TEST
    }


def report_file(cfg: CfgNode, dataset_name: str) -> Path:
    """Where the evaluation of a data set is written."""
    return Path(cfg.OUTPUT_DIR) / "inference" / dataset_name / "evaluation.json"
