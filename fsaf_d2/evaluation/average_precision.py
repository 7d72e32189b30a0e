"""Average precision, by pycocotools, from boxes held in arrays.

Letters: D detections of the classes there are, M objects, K classes, T IoU thresholds, S ranges of
object size, R = 101 recalls.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator, Sequence

import numpy as np
from pycocotools import mask
from pycocotools.cocoeval import COCOeval

from ..data.object_sizes import SIZES
from .ground_truth import Detections, GroundTruth

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class BoxEvaluation(COCOeval):
    """COCOeval's figures to the last bit, in a fraction of its time.

    Precision and recall are accumulated by COCOeval itself, from the best ``max_detections`` of
    each class in each image. Only the matching before it is another: it looks at the pairs of
    detection and object that overlap enough, for all thresholds and sizes at once, where COCOeval
    goes through all pairs forty times in Python. An object whose id is 0 can be found here; in
    COCOeval it cannot, as 0 also stands for no match.

    Attributes:
        order: (D',) indices of the detections that count, by class, image and falling score.
        matches: (S, T, D') index of the object that each of them found, -1 for none.
        ignored: (S, T, D') whether it is neither right nor wrong, as it found a crowd or an object
            of another size.
        precision: (T, R, K, S) interpolated, -1 where there are no objects.
    """

    def __init__(
        self,
        truth: GroundTruth,
        detections: Detections,
        *,
        max_detections: int,
        iou_thresholds: Sequence[float] | None = None,
        sizes: Sequence[str] = ("all", *SIZES),
    ) -> None:
        """Evaluate.

        Args:
            truth: the objects.
            detections: of all images; those of unknown categories are left out.
            max_detections: how many of a class in an image count.
            iou_thresholds: from 0 to 1; COCO's 0.5 to 0.95 by default.
            sizes: of the objects to be found; their ranges are COCO's.
        """
        super().__init__(iouType="bbox")
        if iou_thresholds is not None:
            self.params.iouThrs = np.array(iou_thresholds)
        ranges = {"all": (0.0, 1e5**2), **SIZES}
        self.params.areaRng = [list(ranges[size]) for size in sizes]
        self.params.areaRngLbl = list(sizes)
        # What accumulate() sees is a single image with all detections, already cut down.
        self.params.imgIds, self.params.catIds = [0], list(range(len(truth.class_names)))
        self.params.maxDets = [max(len(detections), 1)]
        self._truth = truth
        self._found = detections
        self._classes = truth.classes_of(detections.category_ids)
        self.order = self._cut(max_detections)
        with contextlib.redirect_stdout(io.StringIO()):
            self.evaluate()
            self.accumulate()
        self.precision = self.eval["precision"][..., 0]

    def _cut(self, max_detections: int) -> np.ndarray:
        """Sort the detections, and keep the best of each class and image."""
        known = np.flatnonzero(self._classes >= 0)
        classes, images = self._classes[known], self._found.image_index[known]
        sorting = np.lexsort((-self._found.scores[known], images, classes))
        group = (classes * len(self._truth.image_ids) + images)[sorting]
        rank = np.arange(len(group)) - np.searchsorted(group, group)
        return known[sorting][rank < max_detections]

    def evaluate(self) -> None:
        """Match, and lay the results out for :meth:`accumulate`."""
        truth, order = self._truth, self.order
        limits = np.array(self.params.areaRng)[:, :, None]
        out_of_range = (truth.areas < limits[:, 0]) | (truth.areas > limits[:, 1])
        object_ignored = truth.crowd | out_of_range  # (S, M)
        shape = (len(limits), len(self.params.iouThrs), len(order))
        self.matches = np.full(shape, -1, dtype=np.int32)
        self.ignored = np.zeros(shape, dtype=bool)
        for found, objects in self._pairs():
            boxes = self._found.boxes[order[found]]
            ious = box_ious(boxes, truth.boxes[objects], truth.crowd[objects])
            best, is_ignored = match(
                ious, self.params.iouThrs, object_ignored[:, objects], truth.crowd[objects]
            )
            self.matches[:, :, found] = np.where(best >= 0, objects[best], -1)
            self.ignored[:, :, found] = is_ignored
        areas = self._found.boxes[order, 2] * self._found.boxes[order, 3]
        out_of_range = (areas < limits[:, 0]) | (areas > limits[:, 1])
        self.ignored |= (self.matches < 0) & out_of_range[:, None]
        self.evalImgs = list(self._by_class_and_size(object_ignored))
        self._paramsEval = copy.deepcopy(self.params)

    def _pairs(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Places in ``order`` and the objects, for each class and image that have both."""
        truth, num_images = self._truth, len(self._truth.image_ids)
        found = self._classes[self.order] * num_images + self._found.image_index[self.order]
        keys = truth.class_index * num_images + truth.image_index
        objects = np.argsort(keys, kind="stable")
        groups, starts, counts = np.unique(keys[objects], return_index=True, return_counts=True)
        first, last = (np.searchsorted(found, groups, side=side) for side in ("left", "right"))
        for i in np.flatnonzero(first < last):
            there = objects[starts[i] : starts[i] + counts[i]]
            yield slice(first[i], last[i]), there

    def _by_class_and_size(self, object_ignored: np.ndarray) -> Iterator[dict]:
        classes, scores = self._classes[self.order], self._found.scores[self.order]
        for k in range(len(self._truth.class_names)):
            chosen = slice(*np.searchsorted(classes, [k, k + 1]))
            objects = self._truth.class_index == k
            for size in range(len(self.params.areaRng)):
                yield {
                    "dtScores": scores[chosen],
                    "dtMatches": self.matches[size, :, chosen] + 1,
                    "dtIgnore": self.ignored[size, :, chosen],
                    "gtIgnore": object_ignored[size, objects],
                }

    def metrics(self, class_index: int | None = None) -> dict[str, float | None]:
        """AP, AP50, AP75 and, of the sizes evaluated, APs, APm, APl in percent.

        Args:
            class_index: of one class; all by default.

        Returns:
            the figures, None where there are no objects.
        """
        chosen = slice(None) if class_index is None else slice(class_index, class_index + 1)
        thresholds, sizes = self.params.iouThrs, self.params.areaRngLbl
        parts = {"AP": (slice(None), 0)}
        parts.update(
            (f"AP{round(100 * t)}", (slice(i, i + 1), 0))
            for i, t in enumerate(thresholds)
            if np.isclose(t, 0.5) or np.isclose(t, 0.75)
        )
        parts.update((f"AP{s[0]}", (slice(None), i)) for i, s in enumerate(sizes) if s in SIZES)
        figures = {}
        for name, (t, size) in parts.items():
            values = self.precision[t, :, chosen, size]
            values = values[values > -1]
            figures[name] = float(np.mean(values) * 100) if len(values) else None
        return figures


def box_ious(boxes: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU of boxes (D, 4) and objects (M, 4); of a crowd (M,), the share of the box in it.

    Neither may be empty.
    """
    # pycocotools reads the memory as it lies.
    return mask.iou(np.ascontiguousarray(boxes), np.ascontiguousarray(objects), crowd)


def match(
    ious: np.ndarray, thresholds: np.ndarray, ignored: np.ndarray, crowd: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Let detections, best first, take the object that each overlaps most, by COCOeval's rules.

    An object is taken once, a crowd any number of times; an object to be ignored only where no
    other is left; of equal overlaps the last one counts.

    Args:
        ious: (D, M) of one image, detections by falling score.
        thresholds: (T,) IoU that is needed at the least.
        ignored: (S, M) objects that do not count, for each range of size.
        crowd: (M,) regions of many objects.

    Returns:
        (S, T, D) the object that each detection found, -1 for none, and whether it is one to be
        ignored.
    """
    shape = (len(ignored), len(thresholds))
    matches = np.full((*shape, len(ious)), -1)
    is_ignored = np.zeros(matches.shape, dtype=bool)
    needed = np.minimum(thresholds, 1 - 1e-10)[:, None]
    overlaps = ious >= needed.min()
    # Most detections overlap one object that no other one overlaps: all of these at once.
    alone = (overlaps.sum(axis=1) == 1) & (overlaps & (overlaps.sum(axis=0) == 1)).any(axis=1)
    simple = np.flatnonzero(alone)
    best = overlaps[simple].argmax(axis=1)
    taken = ious[simple, best] >= needed
    matches[:, :, simple] = np.where(taken, best, -1)
    is_ignored[:, :, simple] = taken & ignored[:, None, best]

    free = np.ones((*shape, ious.shape[1]), dtype=bool)
    rows = np.indices(shape, sparse=True)
    for d in np.flatnonzero(overlaps.any(axis=1) & ~alone):
        near = np.flatnonzero(overlaps[d])[::-1]  # the last of equals comes first
        possible = free[:, :, near] & (ious[d, near] >= needed)
        counted = possible & ~ignored[:, None, near]
        possible = np.where(counted.any(axis=2, keepdims=True), counted, possible)
        best = near[np.where(possible, ious[d, near], -1).argmax(axis=2)]
        taken = possible.any(axis=2)
        matches[:, :, d] = np.where(taken, best, -1)
        is_ignored[:, :, d] = taken & ignored[rows[0], best]
        free[(*rows, best)] &= ~taken | crowd[best]
    return matches, is_ignored
