"""Images of what is annotated beside what a detector finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.structures import BoxMode, Instances

from .detections import (
    GAP,
    detection_grid,
    draw_caption,
    draw_detections,
    draw_truth,
)

LONGER_SIDE = 400  # px of one image
MAX_BOXES = 30  # the surest ones; more cannot be told apart
# Of classes for which no threshold is known.
DEFAULT_THRESHOLD = 0.4


def draw_beside(
    image: np.ndarray,
    record: dict,
    found: Instances,
    *,
    class_names: Sequence[str],
    thresholds: Mapping[str, float],
) -> np.ndarray:
    """Draw an image twice: with its annotations on the left, with what was found on the right.

    Args:
        image: (H, W, 3) uint8 RGB.
        record: the image in detectron2's format of data sets.
        found: detections in image pixels, as of a detector.
        class_names: of the K classes.
        thresholds: by class name; detections below are left out.

    Returns:
        (h, w, 3) uint8 RGB, each of the two with a longer side of ``LONGER_SIDE`` pixels.
    """
    scale = LONGER_SIDE / max(image.shape[:2])
    annotations = [x for x in record.get("annotations", ()) if not x.get("iscrowd", 0)]
    boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in annotations]
    classes = [x["category_id"] for x in annotations]
    boxes = np.array(boxes, float).reshape(-1, 4)
    truth = draw_truth(image, boxes, classes, class_names, scale=scale)

    limits = torch.tensor([thresholds.get(name, DEFAULT_THRESHOLD) for name in class_names])
    kept = found[found.scores >= limits[found.pred_classes]]
    kept = kept[kept.scores.argsort(descending=True)[:MAX_BOXES]]
    answer = draw_detections(image, kept, class_names=class_names, scale=scale)
    return np.concatenate([truth, np.full_like(truth[:, : GAP // 2], 255), answer], axis=1)


def comparison_grid(pairs: Sequence[np.ndarray], title: str) -> np.ndarray:
    """Lay images of :func:`draw_beside` out in two columns below a title.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    grid = detection_grid(pairs, columns=2)
    return np.concatenate([draw_caption(title, grid.shape[1]), grid])
