"""What an evaluation during training looks at beside the evaluator's metrics."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MetadataCatalog, get_detection_dataset_dicts
from PIL import Image
from torch import nn

from ..data.mapper import build_mapper, read_image
from ..detectors.contract import contract_of
from ..visualization.comparison import comparison_grid, draw_beside
from .validation import labelled_loader, undisturbed, validation_losses

_logger = logging.getLogger("detectron2.fsaf_d2.training")


def report_file(cfg: CfgNode, dataset_name: str) -> Path:
    """Where the evaluation of a data set is written."""
    return Path(cfg.OUTPUT_DIR) / "inference" / dataset_name / "evaluation.json"


class Examination:
    """Losses, best thresholds and pictures of the data sets in ``DATASETS.TEST``."""

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        """
        Args:
            model: a detector, not wrapped for several processes.
        """
        self._cfg = cfg
        self._model = model
        self._datasets: dict[str, DatasetFromList] = {}
        self._reports = {name: self._stamp(name) for name in cfg.DATASETS.TEST}

    def losses(self) -> dict[str, dict[str, float]]:
        """The losses on each data set, see :func:`validation_losses`, in all processes."""
        return {
            name: validation_losses(self._model, labelled_loader(self._cfg, self._records(name)))
            for name in self._cfg.DATASETS.TEST
        }

    def thresholds(self) -> dict[str, float]:
        """The score from which on each class has the best F1, by the last evaluation's report.

        Of several data sets that of the first counts. Classes without objects are left out; a
        report that has been there before is none.
        """
        if not self._cfg.DATASETS.TEST:
            return {}
        name = self._cfg.DATASETS.TEST[0]
        stamp = self._stamp(name)
        if stamp is None or stamp == self._reports[name]:
            return {}
        self._reports[name] = stamp
        report = json.loads(report_file(self._cfg, name).read_text(encoding="utf-8"))
        return {
            x["name"]: float(x["best_f1"]["threshold"]) for x in report["per_class"] if x["best_f1"]
        }

    def _stamp(self, name: str) -> tuple[int, int] | None:
        try:
            status = report_file(self._cfg, name).stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_ino

    def draw(self, step: int, thresholds: dict[str, float]) -> np.ndarray | None:
        """Draw some pictures, always the same, to ``OUTPUT_DIR/samples``; the main process does.

        Args:
            step: so many steps are done.
            thresholds: by class; detections below are not drawn.

        Returns:
            what was drawn, (H, W, 3) uint8 RGB; None if there is nothing to draw.
        """
        count = self._cfg.TEST.SAMPLES
        if not self._cfg.DATASETS.TEST or count < 1:
            return None
        name = self._cfg.DATASETS.TEST[0]
        dataset = self._records(name)
        places = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
        class_names = MetadataCatalog.get(name).thing_classes
        traits = contract_of(self._model).traits
        names = {"level_names": traits.level_names, "branch_names": traits.branch_names}
        mapper = build_mapper(self._cfg, is_train=False)
        pairs = []
        with undisturbed(self._model):
            for record in (dataset[place] for place in places.tolist()):
                found = self._model([mapper(record)])[0]["instances"].to("cpu")
                image = read_image(record["file_name"], "RGB", self._cfg.INPUT.MAX_PIXELS)
                pair = draw_beside(
                    image,
                    record,
                    found,
                    class_names=class_names,
                    **names,
                    thresholds=thresholds,
                )
                pairs.append(pair)
        title = f"{name} after step {step:,}: annotated on the left, found on the right"
        grid = comparison_grid(pairs, title, **names)
        folder = Path(self._cfg.OUTPUT_DIR) / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(grid).save(folder / f"step_{step:07d}.jpg", quality=88)
        return grid

    def _records(self, name: str) -> DatasetFromList:
        if name not in self._datasets:
            records = get_detection_dataset_dicts([name], filter_empty=False)
            self._datasets[name] = DatasetFromList(records, copy=False)
        return self._datasets[name]


def for_tensorboard(picture: np.ndarray) -> torch.Tensor:
    """A picture (H, W, 3) at half its size, as (3, h, w): TensorBoard keeps them without loss."""
    half = Image.fromarray(picture).reduce(2)
    return torch.from_numpy(np.asarray(half).copy()).permute(2, 0, 1)
