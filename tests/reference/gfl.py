"""Generalized Focal Loss stated loop by loop (arXiv 2006.04388), as a slow reference for the tests.

A prediction is looked up as ``logits[image][level][y][x][k]`` and
``bins[image][level][y][x][side][n]``, the logits of the distances n = 0..16 in strides to the left,
top, right and bottom side. Both are float64 tensors, computed with scalar by scalar, so that
autograd gives the gradients. A loss is a pair (total, count), its value total / count.

What the paper leaves open:

- Who answers: ATSS, see ``reference.atss``. Locations lie at (x + offset) strides.
- Distances of the target are clamped to [0, 16 - 0.1] strides for DFL alone; IoU and GIoU see the
  box of the object itself. Of a whole distance t the two bins are t and t + 1.
- The quality y = IoU(decoded box, object) and the weight of a positive = its highest sigmoid score
  of all classes are constants: no gradient flows through them. Widths are x1 - x0, without + 1.
- QFL is summed over all locations and classes and divided by the number of positives, 1 at least.
  2 * GIoU loss and 0.25 * DFL (the mean of four sides), each times the weight, are divided by the
  sum of the weights. That sum is held above 0 only, not at 1: without positives both totals are
  exactly 0 and only QFL has gradients.
- The score of a detection is the sigmoid of the logit; there is no other factor.
"""

from __future__ import annotations

import math

import torch
from reference.atss import assign, iou, point
from reference.fcos import giou_loss
from torch import Tensor
from torch.nn.functional import logsigmoid

BETA = 2
LAST = 16
BOX_WEIGHT, BIN_WEIGHT = 2.0, 0.25


def quality_focal_loss(logit: Tensor, quality: float) -> Tensor:
    """-|y - s|^2 ((1 - y) ln(1 - s) + y ln s)."""
    entropy = (1 - quality) * logsigmoid(-logit) + quality * logsigmoid(logit)
    return -((quality - torch.sigmoid(logit)).abs() ** BETA) * entropy


def distribution_focal_loss(bins: Tensor, distance: float) -> Tensor:
    """-((n + 1 - t) ln S_n + (t - n) ln S_n+1) of one side, n the floor of t."""
    low = math.floor(distance)
    total = sum(torch.exp(x) for x in bins).log()
    share = distance - low
    return (1 - share) * (total - bins[low]) + share * (total - bins[low + 1])


def expected_distance(bins: Tensor) -> Tensor:
    """sum_n n S_n of one side, in strides."""
    total = sum(torch.exp(x) for x in bins)
    return sum(n * torch.exp(x) / total for n, x in enumerate(bins))


def score(logit: float) -> float:
    """The score of a detection."""
    return 1 / (1 + math.exp(-logit))


def decode(bins: Tensor, level, y: int, x: int, offset: float = 0.5) -> tuple[float, ...]:
    """The box (x0, y0, x1, y1) of a location in pixels."""
    px, py = point(level, y, x, offset)
    left, top, right, bottom = (float(expected_distance(side)) * level.stride for side in bins)
    return px - left, py - top, px + right, py + bottom


def target_distances(obj, level, y: int, x: int, offset: float = 0.5) -> tuple[float, ...]:
    """Distances in strides from a location to the sides of an object, not clamped."""
    px, py = point(level, y, x, offset)
    sides = px - obj.box[0], py - obj.box[1], obj.box[2] - px, obj.box[3] - py
    return tuple(side / level.stride for side in sides)


def losses(objects, levels, logits, bins, offset: float = 0.5, top: int = 9):
    """Three pairs (total, count): QFL, 2 * GIoU loss, 0.25 * DFL."""
    positive = assign(objects, levels, offset, top)
    classes = boxes = sides = torch.zeros((), dtype=torch.float64)
    weights = 0.0
    for image in range(len(logits)):
        for index, level in enumerate(levels):
            for y in range(level.height):
                for x in range(level.width):
                    obj = positive.get((image, index, y, x))
                    here, its_bins = logits[image][index][y][x], bins[image][index][y][x]
                    quality = 0.0
                    if obj is not None:
                        quality = iou(decode(its_bins.detach(), level, y, x, offset), obj.box)
                    for k, logit in enumerate(here):
                        y_k = quality if obj is not None and obj.label == k else 0.0
                        classes = classes + quality_focal_loss(logit, y_k)
                    if obj is None:
                        continue
                    weight = max(score(logit.item()) for logit in here)
                    weights += weight
                    target = target_distances(obj, level, y, x, offset)
                    distances = [expected_distance(side) for side in its_bins]
                    boxes = boxes + BOX_WEIGHT * weight * giou_loss(distances, target)
                    for side, t in zip(its_bins, target):
                        t = min(max(t, 0.0), LAST - 0.1)
                        dfl = distribution_focal_loss(side, t)
                        sides = sides + BIN_WEIGHT * weight * dfl / 4
    return (classes, len(positive)), (boxes, weights), (sides, weights)
