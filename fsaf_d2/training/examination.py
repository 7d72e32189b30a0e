"""What an evaluation during training looks at, beside the evaluator's metrics."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetFromList, MetadataCatalog
from PIL import Image
from torch import nn

from ..data.loading.mapper import read_image
from ..data.reading.image_headers import MAX_PIXELS
from ..detectors.contract import contract_of
from ..visualization.beside import comparison_grid, draw_beside
from .validation import labelled_loader, undisturbed, validation_losses


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """A data set that is evaluated: where its figures are, and how its images are read.

    Attributes:
        report: the evaluation's ``evaluation.json``.
        read_records: gives its records in detectron2's format.
        mapper: from a record to a model's input, as in evaluation.
        labelled_mapper: the same with ``instances``; None if there is none.
        num_workers: processes that read.
        max_pixels: files of more pixels are not decoded.
    """

    report: Path
    read_records: Callable[[], Sequence[dict]]
    mapper: Callable[[dict], dict]
    labelled_mapper: Callable[[dict], dict] | None
    num_workers: int = 0
    max_pixels: int = MAX_PIXELS


class Examination:
    """Losses, best thresholds and images of the data sets that are evaluated."""

    def __init__(
        self, model: nn.Module, sets: Mapping[str, EvaluationSet], *, folder: Path, num_samples: int
    ) -> None:
        """
        Args:
            model: not wrapped for several processes.
            sets: by name.
            folder: for images.
            num_samples: so many images are drawn.
        """
        self._model = model
        self._sets = dict(sets)
        self._folder = folder
        self._num_samples = num_samples
        self._records: dict[str, DatasetFromList] = {}
        self._stamps = {name: _stamp(x.report) for name, x in sets.items()}

    def losses(self) -> dict[str, dict[str, float]]:
        """The losses on each data set, see :func:`validation_losses`, in all processes.

        There are none of a model that is behind no contract.
        """
        if contract_of(self._model) is None:
            return {}
        return {
            name: validation_losses(
                self._model,
                labelled_loader(self._records_of(name), x.labelled_mapper, x.num_workers),
            )
            for name, x in self._sets.items()
            if x.labelled_mapper
        }

    def thresholds(self) -> dict[str, float]:
        """The score from which on each class has the best F1, by the last evaluation's report.

        Of several data sets that of the first counts. Classes without objects are left out; a
        report that has been there before is none.
        """
        if not self._sets:
            return {}
        name, first = next(iter(self._sets.items()))
        stamp = _stamp(first.report)
        if stamp is None or stamp == self._stamps[name]:
            return {}
        self._stamps[name] = stamp
        report = json.loads(first.report.read_text(encoding="utf-8"))
        return {
            x["name"]: float(x["best_f1"]["threshold"]) for x in report["per_class"] if x["best_f1"]
        }

    def draw(self, step: int, thresholds: dict[str, float]) -> np.ndarray | None:
        """Draw some images, always the same, to ``OUTPUT_DIR/samples``; the main process does.

        Args:
            step: so many steps are done.
            thresholds: by class; detections below are not drawn.

        Returns:
            what was drawn, (H, W, 3) uint8 RGB; None if there is nothing to draw.
        """
        if not self._sets or self._num_samples < 1:
            return None
        name = next(iter(self._sets))
        with undisturbed(self._model):
            pairs = self._draw_pairs(name, thresholds)
        title = f"{name} after step {step:,}: annotated on the left, found on the right"
        grid = comparison_grid(pairs, title)
        self._folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid).save(self._folder / f"step_{step:07d}.jpg", quality=88)
        return grid

    def _draw_pairs(self, name: str, thresholds: dict[str, float]) -> list:
        of_set, dataset = self._sets[name], self._records_of(name)
        count = min(self._num_samples, len(dataset))
        places = np.linspace(0, len(dataset) - 1, count).round().astype(int)
        pairs = []
        for record in (dataset[place] for place in places.tolist()):
            found = self._model([of_set.mapper(record)])[0]["instances"].to("cpu")
            image = read_image(record["file_name"], "RGB", of_set.max_pixels)
            pair = draw_beside(
                image,
                record,
                found,
                class_names=MetadataCatalog.get(name).thing_classes,
                thresholds=thresholds,
            )
            pairs.append(pair)
        return pairs

    def _records_of(self, name: str) -> DatasetFromList:
        if name not in self._records:
            records = self._sets[name].read_records()
            self._records[name] = DatasetFromList(list(records), copy=False)
        return self._records[name]


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino


def for_tensorboard(image: np.ndarray) -> torch.Tensor:
    """An image (H, W, 3) at half its size, as (3, h, w): TensorBoard keeps them without loss."""
    half = Image.fromarray(image).reduce(2)
    return torch.from_numpy(np.asarray(half).copy()).permute(2, 0, 1)
