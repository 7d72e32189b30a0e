"""Small models and batches for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from fsaf_d2 import load_config
from fsaf_d2.assignment.feature_selection import PointTargets
from fsaf_d2.assignment.grid import Grid
from fsaf_d2.assignment.objects import Objects

ROOT = Path(__file__).parents[1]
NUM_CLASSES = 7

TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.RESNETS.STEM_OUT_CHANNELS", "8"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "32", "MODEL.FPN.OUT_CHANNELS", "32"),
    *("MODEL.RETINANET.NUM_CONVS", "1", "MODEL.RETINANET.NUM_CLASSES", str(NUM_CLASSES)),
    *("MODEL.WEIGHTS", "", "MODEL.PIXEL_STD", "[64.0, 64.0, 64.0]"),
]

JOINT: list[str] = []
ANCHORS_ONLY = ["MODEL.BRANCHES", "['anchor']"]
ANCHOR_FREE_ONLY = ["MODEL.BRANCHES", "['point']"]
RETINANET = ["MODEL.META_ARCHITECTURE", "RetinaNet"]  # detectron2's
HEURISTIC = ["MODEL.FSAF.LEVEL_SELECTION", "heuristic"]


def tiny_cfg(*overrides: str) -> CfgNode:
    """The base config with a network of few channels."""
    return load_config(ROOT / "configs" / "Base-FSAF.yaml", [*TINY, *overrides])


def tiny_model(*overrides: str) -> torch.nn.Module:
    return build_model(tiny_cfg(*overrides))


def instances(boxes, classes, size=(128, 160)) -> Instances:
    """Ground truth of one image."""
    result = Instances(size)
    result.gt_boxes = Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.gt_classes = torch.as_tensor(classes, dtype=torch.int64).reshape(-1)
    return result


def random_instances(count: int, size=(128, 160)) -> Instances:
    """Random boxes of 2 pixels to the whole image."""
    height, width = size
    limits = torch.tensor([width, height])
    centers = torch.rand(count, 2) * limits
    halves = 2 ** (torch.rand(count, 2) * 6)
    boxes = torch.cat([(centers - halves).clamp(min=0), (centers + halves).minimum(limits)], dim=1)
    return instances(boxes, torch.randint(NUM_CLASSES, (count,)), size)


class DenseTargets(NamedTuple):
    """What every location shall answer, in full."""

    labels: torch.Tensor  # (N, R) in 0..K, K means background
    matched_boxes: torch.Tensor  # (N, R, 4), 0 for the background
    ignored: torch.Tensor  # (N, R, K) bool


def dense_targets(targets: PointTargets, objects: Objects, num_classes: int) -> DenseTargets:
    """Write out targets; their positive channels must be those of the locations' objects."""
    num_images, num_locations = targets.object_index.shape
    classes = torch.cat([objects.classes, torch.tensor([num_classes])])
    boxes = torch.cat([objects.boxes, torch.zeros(1, 4)])
    planes = torch.zeros(num_images * num_classes, num_locations, dtype=torch.int8)
    planes[targets.planes] = targets.labels
    channels = planes.view(num_images, num_classes, num_locations).transpose(1, 2)
    labels = classes[targets.object_index]
    expected = torch.nn.functional.one_hot(labels, num_classes + 1)[..., :-1]
    assert torch.equal(channels == 1, expected == 1)
    return DenseTargets(labels, boxes[targets.object_index], channels == -1)


# Of the levels of an image of 128 x 160 pixels.
SIZES = [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]
STRIDES = [8, 16, 32, 64, 128]


def grid_of(sizes=SIZES) -> Grid:
    """The levels of sizes (height, width), on the CPU."""
    return Grid.of(STRIDES, sizes, torch.device("cpu"))


def head_parameters(model) -> dict[str, torch.nn.Parameter]:
    """Those of towers and branches."""
    parts = ("towers.", "branches.", "head.")
    return {name: p for name, p in model.named_parameters() if name.startswith(parts)}


def randomise(model) -> None:
    """Make logits and boxes vary as a trained head's do, which the initial ones do not."""
    for branch in model.branches.values():
        for name, layer in branch.named_children():
            if isinstance(layer, torch.nn.Conv2d):
                # Boxes that stray less, so that some of the anchors' stay on the image.
                torch.nn.init.normal_(layer.weight, std=0.02 if "cls_score" in name else 0.004)
                if "cls_score" in name:
                    torch.nn.init.constant_(layer.bias, -2.5)  # score 0.076


def predictions_of(model, inputs) -> tuple[dict, Grid]:
    """What every branch says of a batch, and the levels."""
    return model._predict(model.preprocess_image(inputs).tensor)


def losses_given(model, predictions: dict, grid: Grid, ground_truths) -> dict[str, torch.Tensor]:
    """The losses of a training step with these predictions."""
    inputs = [{"instances": gt} for gt in ground_truths]
    return model._divided(model._terms(predictions, grid, inputs))


def detections_given(model, predictions: dict, grid: Grid, size=(128, 160)) -> Instances:
    """What is found in the one image of these predictions."""
    (found,) = model._detect(predictions, grid, [size], [{}])
    return found["instances"]


def batch(*ground_truths: Instances) -> list[dict]:
    """Random images with the given ground truth."""
    return [
        {"image": torch.randint(0, 256, (3, *gt.image_size)).float(), "instances": gt}
        for gt in ground_truths
    ]
