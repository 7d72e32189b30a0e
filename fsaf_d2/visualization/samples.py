"""An image of what a detector finds in a data set."""

from __future__ import annotations

import os

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.structures import Boxes, BoxMode
from torch import nn
from torch.utils.data import Subset

from ..data.loading.mapper import build_mapper, read_image
from ..detectors.contract import traits_of
from .detections import detection_grid, draw_detections


def draw_samples(
    model: nn.Module,
    cfg: CfgNode,
    dataset_name: str,
    output_file: str | os.PathLike,
    *,
    num_images: int = 9,
    min_score: float = 0.4,
) -> int:
    """Draw detections and true boxes on some images of a data set, evenly spread over it.

    Args:
        model: a detector; it is left in the mode that it was in.
        cfg: says how images are read and resized.
        dataset_name: a registered data set with at least one image.
        output_file: a .png or .jpg file.
        num_images: how many images are shown at the most.
        min_score: detections below it are not drawn.

    Returns:
        how many detections were drawn.

    Raises:
        OSError: an image cannot be read or is too large, or the output cannot be written.
    """
    records = get_detection_dataset_dicts([dataset_name], filter_empty=False)
    chosen = np.linspace(0, len(records) - 1, min(num_images, len(records))).round().astype(int)
    class_names = MetadataCatalog.get(dataset_name).thing_classes
    traits = traits_of(cfg)
    names = {"level_names": traits.level_names, "branch_names": traits.branch_names}
    mapper = build_mapper(cfg, is_train=False)
    loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
    inputs = Subset(loader.dataset, chosen.tolist())

    was_training = model.training
    model.eval()
    images, num_drawn = [], 0
    for index, record in enumerate(records[i] for i in chosen):
        with torch.no_grad():
            found = model([inputs[index]])[0]["instances"].to("cpu")
        found = found[found.scores >= min_score]
        num_drawn += len(found)
        images.append(
            draw_detections(
                read_image(record["file_name"], "RGB", cfg.INPUT.MAX_PIXELS),
                found,
                class_names=class_names,
                **names,
                gt_boxes=_true_boxes(record),
            )
        )
    model.train(was_training)
    grid = detection_grid(images, branch_names=traits.branch_names, ground_truth=True)
    if not cv2.imwrite(os.fspath(output_file), cv2.cvtColor(grid, cv2.COLOR_RGB2BGR)):
        raise OSError(f"The image '{output_file}' could not be written.")
    return num_drawn


def _true_boxes(record: dict) -> Boxes:
    boxes = [
        BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        for annotation in record["annotations"]
    ]
    return Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
