"""Why AP is close to 0: the usual mistakes are undone in turn, to see which one restores it.

Letters: D detections, I images, K classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from .average_precision import BoxEvaluation, box_ious
from .ground_truth import Detections, GroundTruth

# Percent. Below the first AP is always explained; below the second only by a mistake that is found:
# boxes in a wrong format still fit some objects.
ALWAYS_EXPLAINED = 1.0
SUSPICIOUS = 20.0
# An explanation must give this many times the AP, and this much more.
FACTOR, GAIN = 2.0, 10.0
# Mistakes are looked for in so many images.
NUM_IMAGES = 200
# Below it the detector is sure of nothing.
LOW_SCORE = 0.3
# detectron2's usual size of the network's input: short side and the limit of the long one.
INPUT_SIZE = (800, 1333)


class Remedy(NamedTuple):
    """A change to the detections that may restore AP."""

    change: str  # as in "with <change> it would be 100.0"
    reason: str  # what is wrong then; empty for no change
    apply: Callable[[Detections], Detections]


NO_CHANGE = Remedy("", "", lambda detections: detections)


def diagnose(
    truth: GroundTruth,
    detections: Detections,
    ap: float | None,
    *,
    max_detections: int,
    score_thresh: float | None = None,
    input_sizes: np.ndarray | None = None,
) -> str | None:
    """Explain an AP close to 0 in a sentence.

    Args:
        truth: the objects.
        detections: what was found.
        ap: percent.
        max_detections: how many of a class in an image count.
        score_thresh: below which the detector gives no detections, if that is known.
        input_sizes: (I, 2) width and height at which the detector saw each image, NaN where not
            known.

    Returns:
        None where there is nothing to explain.
    """
    if not truth.count():
        return "AP is not defined: the annotations have no objects."
    if ap is None or ap >= SUSPICIOUS:
        return None
    if len(detections) == 0:
        if score_thresh is None:
            return "AP is 0.0: there are no detections."
        return (
            f"AP is 0.0: no detection has a score above the threshold of {score_thresh:g}, so the "
            "detector is untrained or under-trained."
        )
    remedy = find_remedy(truth, detections, input_sizes)
    if remedy.reason:
        evaluation = BoxEvaluation(
            truth, remedy.apply(detections), max_detections=max_detections, sizes=("all",)
        )
        restored = evaluation.metrics()["AP"]
        if restored is not None and _is_better(restored, ap):
            return (
                f"AP is {ap:.1f}; with {remedy.change} it would be {restored:.1f}: {remedy.reason}."
            )
    return _plain_reason(detections, ap) if ap < ALWAYS_EXPLAINED else None


def _is_better(figure: float, other: float) -> bool:
    return figure >= max(FACTOR * other, other + GAIN)


def _plain_reason(detections: Detections, ap: float) -> str:
    highest = detections.scores.max()
    if highest < LOW_SCORE:
        return (
            f"AP is {ap:.1f}: the highest score is {highest:.2f}, so the detector is sure of "
            "nothing yet and is under-trained."
        )
    return (
        f"AP is {ap:.1f} though scores reach {highest:.2f}: neither other category ids nor another "
        "form, order or scale of the boxes would restore it. Look at the images, and at whether "
        "the detector was trained on this kind of data."
    )


def find_remedy(
    truth: GroundTruth, detections: Detections, input_sizes: np.ndarray | None = None
) -> Remedy:
    """Find the change of boxes, then of category ids, that lets most objects be found.

    Returns:
        the remedy, or NO_CHANGE where none is clearly better.
    """
    rows = np.flatnonzero(np.bincount(truth.image_index, minlength=len(truth.image_ids)))
    chosen = np.zeros(len(truth.image_ids), dtype=bool)
    chosen[rows[np.linspace(0, len(rows) - 1, min(NUM_IMAGES, len(rows))).astype(int)]] = True
    sample, found = truth.of_images(chosen), detections[chosen[detections.image_index]]
    if not len(found):
        return NO_CHANGE
    boxes = _best(
        _box_remedies(sample, found, input_sizes), lambda d: _ap50_of_boxes(sample, d), found
    )
    found = boxes.apply(found)
    ids = _best(_category_remedies(sample, found), lambda d: _ap50(sample, d), found)
    reasons = [remedy for remedy in (boxes, ids) if remedy.reason]
    return Remedy(
        " and ".join(remedy.change for remedy in reasons),
        ", and ".join(remedy.reason for remedy in reasons),
        lambda detections: ids.apply(boxes.apply(detections)),
    )


def _best(
    remedies: Iterator[Remedy], figure: Callable[[Detections], float], found: Detections
) -> Remedy:
    best, highest = NO_CHANGE, figure(found)
    if FACTOR * highest > 100:
        return NO_CHANGE
    for remedy in remedies:
        value = figure(remedy.apply(found))
        # The simplest come first: a later one must beat them by more than chance.
        if _is_better(value, highest) or (best is not NO_CHANGE and value > highest + 1):
            best, highest = remedy, value
    return best


def _ap50(truth: GroundTruth, detections: Detections) -> float:
    evaluation = BoxEvaluation(
        truth, detections, max_detections=10_000, iou_thresholds=[0.5], sizes=("all",)
    )
    return evaluation.metrics()["AP50"] or 0.0


def _ap50_of_boxes(truth: GroundTruth, detections: Detections) -> float:
    """AP50 of one class that has all objects and detections."""
    truth = truth.with_classes(np.zeros_like(truth.class_index), ["object"])
    return _ap50(
        truth, dataclasses.replace(detections, category_ids=np.zeros(len(detections), int))
    )


# Each makes (x, y, width, height) of what four numbers may be instead.
FORMS: tuple[tuple[str, str, Callable], ...] = (
    (
        "boxes read as (x0, y0, x1, y1)",
        "the predictions give corners, where COCO's form is (x, y, width, height)",
        lambda a, b, c, d: (a, b, c - a, d - b),
    ),
    (
        "boxes read as (x, y, width, height) once more",
        "boxes of that form were taken for corners, (x0, y0, x1, y1), and converted",
        lambda a, b, c, d: (a, b, c + a, d + b),
    ),
    (
        "boxes read as (centre x, centre y, width, height)",
        "the predictions give centres, where COCO's form begins with the upper left corner",
        lambda a, b, c, d: (a - c / 2, b - d / 2, c, d),
    ),
    (
        "x and y swapped in the boxes",
        "the predictions are (y, x, height, width)",
        lambda a, b, c, d: (b, a, d, c),
    ),
    (
        "boxes read as (y0, x0, y1, x1)",
        "the predictions give corners, y first, where COCO's form is (x, y, width, height)",
        lambda a, b, c, d: (b, a, d - b, c - a),
    ),
)


def _box_remedies(
    truth: GroundTruth, detections: Detections, input_sizes: np.ndarray | None
) -> Iterator[Remedy]:
    """Other forms of the boxes, other scales, and both at once."""
    scales = list(_scales(truth, detections, input_sizes))
    for change, reason, form in FORMS:
        yield Remedy(change, reason, lambda d, form=form: _reshaped(d, form))
    for scale_change, scale_reason, factors in scales:
        yield Remedy(scale_change, scale_reason, lambda d, f=factors: _scaled(d, f))
    for change, reason, form in FORMS:
        for scale_change, scale_reason, factors in scales:
            yield Remedy(
                f"{change} and {scale_change}",
                f"{reason}, and {scale_reason}",
                lambda d, form=form, f=factors: _scaled(_reshaped(d, form), f),
            )


def _scales(
    truth: GroundTruth, detections: Detections, input_sizes: np.ndarray | None
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Factors (I, 2) for x and y, with what they undo."""
    sizes = truth.image_sizes
    yield (
        "boxes multiplied by the image's width and height",
        "the predictions are normalised to 0..1",
        sizes,
    )
    resized = "the predictions are in pixels of the resized images"
    if input_sizes is not None and np.isfinite(input_sizes).any():
        yield "boxes scaled to the images' own size", resized, sizes / input_sizes
        return
    short, long = sizes.min(axis=1), sizes.max(axis=1)
    scale = np.minimum(INPUT_SIZE[0] / short, INPUT_SIZE[1] / long)
    change = f"boxes scaled back from a short side of {INPUT_SIZE[0]} pixels"
    yield change, resized, np.stack([1 / scale, 1 / scale], axis=1)
    factor = _common_factor(truth, detections)
    if not 0.95 < factor < 1.05:
        yield f"boxes multiplied by {factor:.3g}", resized, np.full(sizes.shape, factor)


def _common_factor(truth: GroundTruth, detections: Detections) -> float:
    """By which boxes (x, y, width, height) must be multiplied, if one factor does for all."""
    count = np.bincount(truth.image_index, minlength=len(truth.image_ids))
    order = np.lexsort((-detections.scores, detections.image_index))
    images = detections.image_index[order]
    best = order[np.arange(len(order)) - np.searchsorted(images, images) < count[images]]
    there, found = (
        np.bincount(
            x.image_index,
            weights=x.boxes[:, :2].sum(1) + x.boxes[:, 2:].sum(1) / 2,
            minlength=len(count),
        )
        for x in (truth, detections[best])
    )
    both = (there > 0) & (found > 0)
    if not both.any():
        return 1.0
    factor = float(np.median(there[both] / found[both]))
    for _ in range(3):
        ratios = [
            _ratios(
                truth.boxes[truth.image_index == image],
                factor * detections.boxes[best[detections.image_index[best] == image]],
            )
            for image in np.flatnonzero(both)[:50]
        ]
        ratios = np.concatenate(ratios)
        factor *= float(np.median(ratios)) if len(ratios) else 1.0
    return factor


def _ratios(there: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Of the lower right corners of boxes that overlap."""
    i, j = np.nonzero(box_ious(there, found, np.zeros(len(found), bool)) > 0.3)
    corners = (
        there[i].reshape(-1, 2, 2).sum(axis=(1, 2)),
        found[j].reshape(-1, 2, 2).sum(axis=(1, 2)),
    )
    return corners[0] / corners[1]


def _reshaped(detections: Detections, form: Callable) -> Detections:
    boxes = np.stack(form(*detections.boxes.T), axis=1)
    return dataclasses.replace(detections, boxes=boxes)


def _scaled(detections: Detections, factors: np.ndarray) -> Detections:
    boxes = detections.boxes * np.tile(factors, 2)[detections.image_index]
    return dataclasses.replace(detections, boxes=boxes)


def _category_remedies(truth: GroundTruth, detections: Detections) -> Iterator[Remedy]:
    """Other meanings of the category ids."""
    for step, sign in ((1, "+"), (-1, "-")):
        yield Remedy(
            f"category ids shifted by one (each id {sign} 1)",
            "predictions and annotations begin to count the classes at different numbers",
            lambda d, step=step: dataclasses.replace(d, category_ids=d.category_ids + step),
        )
    ids = np.array(truth.category_ids)
    for first in (0, 1):
        by_place = {first + place: category_id for place, category_id in enumerate(np.sort(ids))}
        yield Remedy(
            f"category ids read as places in the list of categories, from {first} on",
            "the predictions give classes by their place, not by their id",
            lambda d, by_place=by_place: _renamed(d, by_place),
        )
    assignment = _best_assignment(truth, detections)
    pairs = sorted((one, other) for one, other in assignment.items() if one != other)
    names = dict(zip(truth.category_ids, truth.class_names))
    listed = ", ".join(f"{one} is {other} ({names[other]})" for one, other in pairs[:4])
    more = f" and {len(pairs) - 4} more" if len(pairs) > 4 else ""
    yield Remedy(
        f"category ids permuted ({listed}{more})",
        "the predictions order the classes in another way",
        lambda d: _renamed(d, assignment),
    )


def _renamed(detections: Detections, new_ids: dict[int, int]) -> Detections:
    """Give detections the ids of a table; ids that it lacks become unknown to every data set."""
    old, inverse = np.unique(detections.category_ids, return_inverse=True)
    table = np.array([new_ids.get(int(x), np.iinfo(np.int64).min) for x in old], dtype=np.int64)
    return dataclasses.replace(detections, category_ids=table[inverse])


def _best_assignment(truth: GroundTruth, detections: Detections) -> dict[int, int]:
    """Which category each predicted id stands for, by the objects that its boxes lie on.

    Greedy: the pair of most objects first.
    """
    together = truth.with_classes(np.zeros_like(truth.class_index), ["object"])
    as_one = dataclasses.replace(detections, category_ids=np.zeros(len(detections), int))
    evaluation = BoxEvaluation(
        together, as_one, max_detections=10_000, iou_thresholds=[0.5], sizes=("all",)
    )
    found = evaluation.matches[0, 0]
    right = (found >= 0) & ~evaluation.ignored[0, 0]
    predicted, index = np.unique(
        detections.category_ids[evaluation.order[right]], return_inverse=True
    )
    counts = np.zeros((len(predicted), len(truth.category_ids)), dtype=int)
    np.add.at(counts, (index, truth.class_index[found[right]]), 1)
    assignment = {}
    while counts.size and counts.max() > 0:
        row, column = np.unravel_index(counts.argmax(), counts.shape)
        assignment[int(predicted[row])] = truth.category_ids[column]
        counts[row], counts[:, column] = 0, 0
    rest = set(detections.category_ids.tolist()) - set(assignment) - set(assignment.values())
    return assignment | {category_id: category_id for category_id in rest}
