"""The evaluator that a trainer runs: what was found in each image, and then all figures of it."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..data.reading.builtin import PUBLISHED
from ..detectors.contract import ALL_BRANCHES, BRANCH_ENDING
from .figure_tables import evaluation_text
from .ground_truth import Detections, GroundTruth, read_ground_truth
from .prediction_files import write_evaluation, write_predictions
from .summary import metrics_of, summarize

_logger = logging.getLogger("detectron2.fsaf_d2.evaluation")
# The name under which the detections of all branches together are evaluated; those of a branch
# alone keep the name that the detector gives them.
JOINT = "joint"


class Found(NamedTuple):
    """Detections in an image."""

    boxes: np.ndarray  # (D, 4) float32, (x, y, width, height)
    scores: np.ndarray  # (D,)
    classes: np.ndarray  # (D,)
    levels: np.ndarray | None  # (D,)
    branches: np.ndarray | None  # (D,)


class ImageDetections(NamedTuple):
    """What a detector was given and gave."""

    image_id: int
    input_size: tuple[int, int]  # width and height
    found: dict[str, Found]  # by JOINT and the names of branches


class BoxEvaluator(DatasetEvaluator):
    """Evaluates boxes by COCO's rules, and tells more of them than COCOEvaluator does.

    ``evaluate`` gives under "bbox" what detectron2's COCOEvaluator gives and, for a detector that
    tells what each of its branches finds alone (:func:`fsaf_d2.detectors.each_branch`), the same
    figures under "anchor_branch" and so on. All that is said in docs/evaluation.md goes to the log
    and to the output folder: ``evaluation.json``, tables as .csv,
    ``pr_curves.png``, ``confusion.png`` and ``predictions.json``.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | os.PathLike[str] | None = None,
        *,
        max_detections: int = 100,
        level_names: Sequence[str] = (),
        branch_names: Sequence[str] = (),
        class_keys: Sequence[str] = ("MODEL.RETINANET.NUM_CLASSES",),
        score_thresh: float | None = None,
        distributed: bool = True,
    ) -> None:
        """
        Args:
            dataset_name: a registered data set; one without a COCO file is converted.
            output_dir: where files are written; None for none.
            max_detections: how many of a class in an image count.
            level_names: of the pyramid's levels, finest first; empty if detections name none.
            branch_names: of the detector's branches; empty if detections name none.
            class_keys: the config keys that hold the number of classes, for messages.
            score_thresh: below which the detector gives nothing.
            distributed: collect what all processes have found.

        Raises:
            OSError: the annotation file cannot be read.
            ValueError: it does not fit the data set's registered classes, or the data set is in
                another format and there is no folder to convert it into.
        """
        self._name = dataset_name
        self._folder = None if output_dir is None else Path(output_dir)
        self._max_detections = max_detections
        self._level_names, self._branch_names = list(level_names), list(branch_names)
        self._class_keys = list(class_keys)
        self._score_thresh = score_thresh
        self._distributed = distributed
        self._images: list[ImageDetections] = []
        # One process reads the annotations, and it learns here if that cannot be done.
        speaks = not distributed or comm.is_main_process()
        self._truth = _truth_of(dataset_name, self._folder) if speaks else None

    def reset(self) -> None:
        """Forget what was found."""
        self._images = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take note of a batch.

        Args:
            inputs: of the detector, a dict per image with ``image_id`` and ``image``.
            outputs: of the detector, a dict per image with ``instances``, and perhaps with what
                each branch finds alone.
        """
        for given, output in zip(inputs, outputs):
            height, width = given["image"].shape[-2:] if "image" in given else (np.nan, np.nan)
            found = {
                JOINT if name == ALL_BRANCHES else name: _on_cpu(detections)
                for name, detections in output.items()
                if name == ALL_BRANCHES or name.endswith(BRANCH_ENDING)
            }
            self._images.append(ImageDetections(given["image_id"], (width, height), found))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Compute, print and save all figures, in the main process.

        Returns:
            metrics by name and branch, in percent, NaN where there are no objects; nothing in other
            processes, without images, or without annotations.

        Raises:
            ValueError: an image is not one of the data set's, or a class number is too high.
        """
        images = self._images
        if self._distributed:
            comm.synchronize()
            images = list(itertools.chain(*comm.gather(images, dst=0)))
            if not comm.is_main_process():
                return {}
        if not images:
            _logger.warning(f"There are no images of '{self._name}' to evaluate.")
            return {}
        truth = self._truth
        found = {name: self._gathered(images, name) for name in images[0].found}
        if self._folder:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_predictions(
                self._folder / "predictions.json",
                truth,
                found[JOINT],
                self._level_names,
                self._branch_names,
            )
        if not truth.labelled:
            _logger.info(f"'{self._name}' has no annotations: nothing is compared.")
            return {}
        self._warn_of_limit()
        evaluation = summarize(
            self._name,
            truth,
            found,
            max_detections=self._max_detections,
            level_names=self._level_names,
            branch_names=self._branch_names,
            score_thresh=self._score_thresh,
            input_sizes=self._input_sizes(images),
        )
        # File names are relative to it.
        evaluation["image_root"] = MetadataCatalog.get(self._name).get("image_root")
        _logger.info(evaluation_text(evaluation))
        if self._folder:
            write_evaluation(evaluation, self._folder)
            _logger.info(f"All figures, tables and images: '{self._folder}'.")
        return metrics_of(evaluation, found)

    def _warn_of_limit(self) -> None:
        most = np.bincount(self._truth.image_index[~self._truth.crowd], minlength=1).max()
        if most > self._max_detections:
            _logger.warning(
                f"'{self._name}' has an image with {most} objects, but {self._max_detections} "
                "detections are made at the most (TEST.DETECTIONS_PER_IMAGE): the others cannot be "
                "found."
            )

    def _gathered(self, images: list[ImageDetections], name: str) -> Detections:
        """What all images have under a name, with the data set's category ids."""
        truth = self._truth
        places = {image_id: i for i, image_id in enumerate(truth.image_ids)}
        for image in images:
            if image.image_id not in places:
                raise ValueError(
                    f"Image {image.image_id} was evaluated, but the annotation file of "
                    f"'{self._name}' has none of that id."
                )
        found = [image.found[name] for image in images]
        counts = [len(x.scores) for x in found]
        classes = np.concatenate([x.classes for x in found])
        if classes.max(initial=0) >= len(truth.category_ids):
            raise ValueError(
                f"The detector gives class {classes.max()}, but '{self._name}' has "
                f"{len(truth.category_ids)} classes: set {' and '.join(self._class_keys)} to it."
            )
        index = [places[image.image_id] for image in images]
        levels, branches = (
            None if any(x is None for x in fields) else np.concatenate(fields)
            for fields in ([x.levels for x in found], [x.branches for x in found])
        )
        return Detections(
            image_index=np.repeat(np.array(index, dtype=np.int64), counts),
            category_ids=np.array(truth.category_ids, dtype=np.int64)[classes],
            boxes=np.concatenate([x.boxes for x in found]).astype(float),
            scores=np.concatenate([x.scores for x in found]).astype(float),
            levels=levels,
            branches=branches,
        )

    def _input_sizes(self, images: list[ImageDetections]) -> np.ndarray:
        sizes = {image.image_id: image.input_size for image in images}
        unknown = (np.nan, np.nan)
        return np.array([sizes.get(i, unknown) for i in self._truth.image_ids], dtype=float)


def _on_cpu(instances: Instances) -> Found:
    instances = instances.to("cpu")
    boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    levels, branches = (
        instances.get(name).numpy() if instances.has(name) else None
        for name in ("pred_levels", "pred_branches")
    )
    return Found(
        boxes.numpy(),
        instances.scores.numpy(),
        instances.pred_classes.numpy(),
        levels,
        branches,
    )


def _truth_of(dataset_name: str, folder: Path | None) -> GroundTruth:
    metadata = MetadataCatalog.get(dataset_name)
    path = metadata.get("json_file")
    if path is None:
        if folder is None:
            raise ValueError(
                f"Data set '{dataset_name}' is not in COCO format: an output folder is needed, "
                "where it is converted."
            )
        folder.mkdir(parents=True, exist_ok=True)
        path = str(folder / f"{dataset_name}_coco_format.json")
        convert_to_coco_json(dataset_name, path, allow_cached=False)
    classes = metadata.get("thing_dataset_id_to_contiguous_id")
    # Of those that were published the figures that others give have them.
    with_empty = dataset_name.startswith(PUBLISHED)
    return read_ground_truth(PathManager.get_local_path(path), classes, with_empty=with_empty)
