"""FSAF stated loop by loop from the paper (arXiv 1903.00621), as a slow reference for the tests.

Plain Python numbers only. A level is given by its stride and size; a prediction is looked up as
``logits[image][level][y][x][k]`` and ``distances[image][level][y][x]`` = (left, top, right, bottom)
in units of S strides.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Level(NamedTuple):
    stride: int
    height: int
    width: int


class Object(NamedTuple):
    image: int
    box: tuple[float, float, float, float]
    label: int

    @property
    def area(self) -> float:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


ALPHA, GAMMA = 0.25, 2.0
EFFECTIVE, IGNORE = 0.2, 0.5
S = 4.0


def focal_loss(logit: float, label: int) -> float:
    """FL = -alpha_t (1 - p_t)^gamma ln p_t (arXiv 1708.02002, Eq. 5)."""
    p = 1 / (1 + math.exp(-logit))
    p_t = p if label == 1 else 1 - p
    alpha_t = ALPHA if label == 1 else 1 - ALPHA
    return -alpha_t * (1 - p_t) ** GAMMA * math.log(p_t)


def location(level: Level, y: int, x: int) -> tuple[float, float]:
    """The centre of a cell, in image pixels."""
    return (x + 0.5) * level.stride, (y + 0.5) * level.stride


def target_distances(level: Level, y: int, x: int, box) -> tuple[float, ...]:
    """Distances from a location to the sides of a box in units of S strides, none below 0."""
    px, py = location(level, y, x)
    distances = (px - box[0], py - box[1], box[2] - px, box[3] - py)
    return tuple(max(distance, 0) / (S * level.stride) for distance in distances)


def iou_loss(pred, target) -> float:
    """-ln IoU of two boxes about one point, IoU at least 1e-7."""
    left, top, right, bottom = (min(p, t) for p, t in zip(pred, target))
    intersection = (left + right) * (top + bottom)
    areas = [(side[0] + side[2]) * (side[1] + side[3]) for side in (pred, target)]
    union = sum(areas) - intersection
    iou = intersection / union if union > 0 else 0
    return -math.log(max(iou, 1e-7))


def region(box, scale: float, level: Level) -> list[tuple[int, int]]:
    """The cells (y, x) that the box, scaled about its centre, touches on a level; one at least."""
    columns = _touched(box[0], box[2], scale, level.stride, level.width)
    rows = _touched(box[1], box[3], scale, level.stride, level.height)
    return [(y, x) for y in rows for x in columns]


def _touched(start: float, end: float, scale: float, stride: int, count: int) -> range:
    center, half = (start + end) / 2, (end - start) * scale / 2
    first = math.floor((center - half) / stride)
    last = math.ceil((center + half) / stride)
    first = min(max(first, 0), count - 1)
    last = max(min(max(last, 1), count), first + 1)
    return range(first, last)


def level_cost(obj: Object, index: int, levels, logits, distances) -> float:
    """Mean focal plus mean IoU loss of an object over its effective region of a level (Eq. 1)."""
    level = levels[index]
    cells = region(obj.box, EFFECTIVE, level)
    focal = iou = 0.0
    for y, x in cells:
        for k, logit in enumerate(logits[obj.image][index][y][x]):
            focal += focal_loss(logit, int(k == obj.label))
        iou += iou_loss(distances[obj.image][index][y][x], target_distances(level, y, x, obj.box))
    return focal / len(cells) + iou / len(cells)


def select_level(obj: Object, levels, logits, distances) -> int:
    """The level of least cost, the finer of equals (Eq. 2)."""
    costs = [level_cost(obj, i, levels, logits, distances) for i in range(len(levels))]
    return costs.index(min(costs))


def heuristic_level(box, levels) -> int:
    """floor(5 + log2(sqrt(w h) / 224)), clamped to the levels there are (Eq. 3)."""
    size = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    finest, coarsest = math.log2(levels[0].stride), math.log2(levels[-1].stride)
    level = -math.inf if size == 0 else math.floor(5 + math.log2(size / 224))
    return int(min(max(level, finest), coarsest) - finest)


def assign(objects: list[Object], selected: list[int], levels):
    """Positive locations and ignored channels.

    Returns:
        dict (image, level, y, x) -> Object, and set of (image, level, y, x, k).
    """
    positive, ignored = {}, set()
    for obj, chosen in zip(objects, selected):
        for index in (chosen - 1, chosen, chosen + 1):
            if 0 <= index < len(levels):
                for y, x in region(obj.box, IGNORE, levels[index]):
                    ignored.add((obj.image, index, y, x, obj.label))
    # The smallest is written last and stays; of equal ones the lower class.
    order = sorted(zip(objects, selected), key=lambda pair: (-pair[0].area, -pair[0].label))
    for obj, chosen in order:
        for y, x in region(obj.box, EFFECTIVE, levels[chosen]):
            positive[obj.image, chosen, y, x] = obj
    for cell, obj in positive.items():
        ignored.discard((*cell, obj.label))
    return positive, ignored


def losses(objects: list[Object], selected: list[int], levels, logits, distances):
    """The two anchor-free losses before the weight lambda: (classification, box)."""
    positive, ignored = assign(objects, selected, levels)
    focal = iou = 0.0
    for image in range(len(logits)):
        for index, level in enumerate(levels):
            for y in range(level.height):
                for x in range(level.width):
                    obj = positive.get((image, index, y, x))
                    for k, logit in enumerate(logits[image][index][y][x]):
                        if (image, index, y, x, k) not in ignored:
                            focal += focal_loss(logit, int(obj is not None and obj.label == k))
                    if obj is not None:
                        target = target_distances(level, y, x, obj.box)
                        iou += iou_loss(distances[image][index][y][x], target)
    count = max(len(positive), 1)
    return focal / count, iou / count
