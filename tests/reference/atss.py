"""ATSS stated loop by loop (arXiv 1912.02424, Algorithm 1), as a slow reference for the tests.

Plain Python numbers only. Who answers is said by place, (image, level, y, x): there is one square
anchor, 8 strides wide, about every location, which lies at ((x + offset), (y + offset)) strides.

What the paper leaves open:

- Distances are from the anchor's centre to the box's, in pixels. The 9 nearest of every level are
  candidates, all of a level that has fewer; of equally near ones the first row by row.
- The threshold is mean + standard deviation of the IoUs of the candidates of all levels together.
  The deviation is the unbiased one (n - 1), and 0 of a single candidate. Both are computed exactly
  and rounded once, so that candidates of one IoU all reach the threshold, which is that IoU.
- A candidate is positive with IoU >= threshold and its centre strictly inside of the box (least
  distance to a side > 0). So an object without area has no positives.
- A location that is positive for several objects answers for the one of highest IoU; of equals for
  the smallest; of equal areas for the lowest class, then the lowest y1, x1, y0 and x0.
- Objects see only the locations of their own image. All other locations are background; none is
  ignored. An object may end without a location.
"""

from __future__ import annotations

import statistics

from reference.fsaf import Level, Object

SIDE = 8
TOP = 9


def smallest_first(obj: Object) -> tuple:
    """The key that sorts objects, never by their place in a list."""
    x0, y0, x1, y1 = obj.box
    return obj.area, obj.label, y1, x1, y0, x0


def point(level: Level, y: int, x: int, offset: float) -> tuple[float, float]:
    """A location (px, py) in pixels."""
    return (x + offset) * level.stride, (y + offset) * level.stride


def anchor(level: Level, y: int, x: int, offset: float) -> tuple[float, ...]:
    """The box about a location."""
    px, py = point(level, y, x, offset)
    half = SIDE * level.stride / 2
    return px - half, py - half, px + half, py + half


def iou(a, b) -> float:
    """IoU of two boxes; 0 if they do not overlap, whatever their areas."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return intersection / (areas - intersection)


def is_inside(px: float, py: float, box) -> bool:
    """Whether a point is strictly inside of a box."""
    return min(px - box[0], py - box[1], box[2] - px, box[3] - py) > 0


def candidates(obj: Object, levels, offset: float = 0.5, top: int = TOP) -> list[tuple]:
    """The (level, y, x) of the candidates of an object, level after level, the nearest first."""
    center = (obj.box[0] + obj.box[2]) / 2, (obj.box[1] + obj.box[3]) / 2
    found = []
    for index, level in enumerate(levels):
        ranked = []
        for y in range(level.height):
            for x in range(level.width):
                px, py = point(level, y, x, offset)
                distance = (px - center[0]) ** 2 + (py - center[1]) ** 2
                ranked.append((distance, y, x))
        found += [(index, y, x) for _, y, x in sorted(ranked)[:top]]
    return found


def candidate_ious(obj: Object, levels, offset: float = 0.5, top: int = TOP) -> list[float]:
    """IoU of the object with the anchor of each candidate."""
    places = candidates(obj, levels, offset, top)
    return [iou(anchor(levels[index], y, x, offset), obj.box) for index, y, x in places]


def threshold(obj: Object, levels, offset: float = 0.5, top: int = TOP) -> float:
    """The IoU that an object asks for."""
    ious = candidate_ious(obj, levels, offset, top)
    deviation = statistics.stdev(ious) if len(ious) > 1 else 0.0
    return statistics.mean(ious) + deviation


def assign(objects: list[Object], levels, offset: float = 0.5, top: int = TOP) -> dict:
    """(image, level, y, x) -> Object of every positive location."""
    found = {}
    for obj in sorted(objects, key=smallest_first):
        asked = threshold(obj, levels, offset, top)
        places = candidates(obj, levels, offset, top)
        for (index, y, x), value in zip(places, candidate_ious(obj, levels, offset, top)):
            inside = is_inside(*point(levels[index], y, x, offset), obj.box)
            if value < asked or not inside:
                continue
            place = (obj.image, index, y, x)
            if place not in found or value > found[place][1]:
                found[place] = obj, value
    return {place: obj for place, (obj, _) in found.items()}
