"""FCOS stated loop by loop (arXiv 1904.01355, 2006.09214), as a slow reference for the tests.

Plain Python numbers only. A prediction is looked up as ``logits[image][level][y][x][k]``,
``distances[image][level][y][x]`` = (left, top, right, bottom) in strides, and
``centers[image][level][y][x]``, a logit.
"""

from __future__ import annotations

import math

from reference.fsaf import Level, Object, focal_loss

LIMITS = (64, 128, 256, 512)
RADIUS = 1.5


def assign(objects: list[Object], levels: list[Level]) -> dict:
    """(image, level, y, x) -> (object, distances in pixels) of every positive location."""
    bounds = [0, *LIMITS, math.inf]
    found = {}
    for obj in objects:
        center = (obj.box[0] + obj.box[2]) / 2, (obj.box[1] + obj.box[3]) / 2
        for index, level in enumerate(levels):
            for y in range(level.height):
                for x in range(level.width):
                    px, py = (x + 0.5) * level.stride, (y + 0.5) * level.stride
                    sides = (px - obj.box[0], py - obj.box[1], obj.box[2] - px, obj.box[3] - py)
                    near = max(abs(px - center[0]), abs(py - center[1])) < RADIUS * level.stride
                    fits = bounds[index] <= max(sides) <= bounds[index + 1]
                    if min(sides) <= 0 or not near or not fits:
                        continue
                    place = (obj.image, index, y, x)
                    if place not in found or obj.area < found[place][0].area:
                        found[place] = obj, sides
    return found


def centerness(sides) -> float:
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) (Eq. 3)."""
    left, top, right, bottom = sides
    horizontal = min(left, right) / max(left, right)
    return math.sqrt(horizontal * min(top, bottom) / max(top, bottom))


def giou_loss(pred, target) -> float:
    """1 - IoU + the share of the hull that neither box covers (arXiv 1902.09630)."""

    def area(sides) -> float:
        return (sides[0] + sides[2]) * (sides[1] + sides[3])

    intersection = area([min(p, t) for p, t in zip(pred, target)])
    hull = area([max(p, t) for p, t in zip(pred, target)])
    union = area(pred) + area(target) - intersection
    return 1 - intersection / union + (hull - union) / hull


def losses(objects: list[Object], levels, logits, distances, centers) -> tuple[float, ...]:
    """Focal loss, GIoU loss weighted by centerness, cross entropy of centerness."""
    positive = assign(objects, levels)
    focal = giou = entropy = weights = 0.0
    for image in range(len(logits)):
        for index, level in enumerate(levels):
            for y in range(level.height):
                for x in range(level.width):
                    obj, sides = positive.get((image, index, y, x), (None, None))
                    for k, logit in enumerate(logits[image][index][y][x]):
                        focal += focal_loss(logit, int(obj is not None and obj.label == k))
                    if obj is None:
                        continue
                    target = [side / level.stride for side in sides]
                    weight = centerness(target)
                    weights += weight
                    giou += weight * giou_loss(distances[image][index][y][x], target)
                    p = 1 / (1 + math.exp(-centers[image][index][y][x]))
                    entropy -= weight * math.log(p) + (1 - weight) * math.log(1 - p)
    count = max(len(positive), 1)
    return focal / count, giou / max(weights, 1e-6), entropy / count
