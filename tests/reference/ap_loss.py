"""AP loss stated loop by loop (arXiv 1904.06373), as a slow reference for the tests.

Plain Python numbers only: the gradient is no derivative but the error-driven update, and is given
here as such. ``positives`` and ``negatives`` are logits of (anchor, class) entries, those of all
classes, anchors and images of one process in one ranking; entries of ignored anchors are left out.
A positive is the entry of an anchor that answers for an object at the object's class; the other
classes of that anchor are negatives.

What the paper leaves open:

- Positives are visited in ascending score. Those of one score have one precision, so that their
  order changes nothing.
- Without positives the loss and all gradients are 0; without negatives too.
- (total, count) of the classification loss is (sum of 1 - precision, number of positives), and the
  gradients are those of total / count.
- Anchors (``labels``): positive with IoU >= .5, or as a best anchor of an object, all equals
  included, as long as it overlaps the object at all; ignored with IoU in [.4, .5); else negative.
  The object of a positive is the one of highest IoU, of equals the smallest
  (``reference.atss.smallest_first``), also where it is kept as another object's best. An object
  that no anchor overlaps has none.
- The network's deltas are the usual ones times (10, 10, 5, 5). Box loss: smooth L1 with beta 1,
  total / number of positives; its gradient is divided by 4 as well, its value is not. The + 1 of
  the published code's box sizes is left out.
- The score of a detection is the sigmoid of the logit.
"""

from __future__ import annotations

import math

from reference.atss import iou, smallest_first
from reference.noisy_anchors import encode

DELTA = 1.0
POSITIVE, NEGATIVE = 0.5, 0.4
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def step(x: float, delta: float = DELTA) -> float:
    """H(x) = x / (2 delta) + 1 / 2, held in [0, 1]."""
    return min(max(x / (2 * delta) + 0.5, 0.0), 1.0)


def ap_loss(positives, negatives, delta: float = DELTA, interpolate: bool = True):
    """Rank positives against negatives.

    Returns:
        (total, count); gradients of total / count by positives; by negatives.
    """
    count = len(positives)
    total, highest = 0.0, 0.0
    by_positive, by_negative = [0.0] * count, [0.0] * len(negatives)
    for i in sorted(range(count), key=lambda index: positives[index]):
        above = 1.0  # the positive itself
        for j, other in enumerate(positives):
            if j != i:
                above += step(other - positives[i], delta)
        errors = [step(other - positives[i], delta) for other in negatives]
        rank = above + sum(errors)
        precision = above / rank
        errors = [error / rank for error in errors]
        if interpolate:
            highest = max(highest, precision)
            if precision < highest:
                errors = [error * (1 - highest) / (1 - precision) for error in errors]
                precision = highest
        total += 1 - precision
        by_positive[i] = -(1 - precision) / count
        for j, error in enumerate(errors):
            by_negative[j] += error / count
    return (total, count), by_positive, by_negative


def box_loss(deltas, targets):
    """Smooth L1 of the deltas of positives, each four numbers, both in the network's units.

    Returns:
        (total, count); gradients of the loss by the deltas, a quarter of those of total / count.
    """
    total, gradients = 0.0, []
    for pred, target in zip(deltas, targets):
        row = []
        for p, t in zip(pred, target):
            difference = p - t
            if abs(difference) < 1:
                total += difference**2 / 2
                slope = difference
            else:
                total += abs(difference) - 0.5
                slope = math.copysign(1.0, difference)
            row.append(slope / (4 * len(deltas)))
        gradients.append(row)
    return (total, len(deltas)), gradients


def box_target(anchor, box) -> tuple[float, ...]:
    """The deltas that lead from an anchor to a box, in the network's units."""
    return tuple(delta * weight for delta, weight in zip(encode(anchor, box), BOX_WEIGHTS))


def labels(objects, anchors) -> tuple[dict, set]:
    """Label the anchors of every image, all levels in one list.

    Returns:
        (image, anchor) -> Object of every positive; (image, anchor) of every ignored anchor.
    """
    positive, ignored = {}, set()
    for image in {obj.image for obj in objects}:
        here = sorted((obj for obj in objects if obj.image == image), key=smallest_first)
        best_of = [max(iou(anchor, obj.box) for anchor in anchors) for obj in here]
        for index, anchor in enumerate(anchors):
            ious = [iou(anchor, obj.box) for obj in here]
            highest = max(ious)
            is_best = any(0 < value == best for value, best in zip(ious, best_of))
            if highest >= POSITIVE or is_best:
                positive[image, index] = here[ious.index(highest)]
            elif highest >= NEGATIVE:
                ignored.add((image, index))
    return positive, ignored


def score(logit: float) -> float:
    """The score of a detection."""
    return 1 / (1 + math.exp(-logit))


def losses(objects, anchors, logits, deltas):
    """Two pairs (total, count), classification and box, of the predictions of a process.

    Predictions are looked up as logits[image][anchor][k] and deltas[image][anchor], the latter ten
    or five times the deltas that the box is decoded from.

    Returns:
        the pairs; gradients by logits and by deltas, as dictionaries by (image, anchor, k) and
        (image, anchor).
    """
    positive, ignored = labels(objects, anchors)
    positives, negatives, box_keys = {}, {}, []
    for image in range(len(logits)):
        for index in range(len(anchors)):
            if (image, index) in ignored:
                continue
            obj = positive.get((image, index))
            if obj is not None:
                box_keys.append((image, index))
            for k, logit in enumerate(logits[image][index]):
                entries = positives if obj is not None and obj.label == k else negatives
                entries[image, index, k] = logit
    pair, *gradients = ap_loss(list(positives.values()), list(negatives.values()))
    by_logit = dict(zip(positives, gradients[0])) | dict(zip(negatives, gradients[1]))
    targets = [box_target(anchors[i], positive[image, i].box) for image, i in box_keys]
    box_pair, rows = box_loss([deltas[image][i] for image, i in box_keys], targets)
    return (pair, box_pair), by_logit, dict(zip(box_keys, rows))
