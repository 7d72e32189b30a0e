"""Learning from Noisy Anchors stated loop by loop (arXiv 1912.05086), a slow reference for tests.

``anchors`` are the boxes of one image, all levels in one list, as all images have the same. A
prediction is looked up as ``logits[image][anchor][k]`` and ``deltas[image][anchor]`` = (dx, dy, dw,
dh), float64 tensors, computed with scalar by scalar, so that autograd gives the gradients. A loss
is a pair (total, count), its value total / count.

What the paper leaves open:

- Positives are the 30 anchors of highest IoU with each object; of equals those of lower index. An
  anchor that does not overlap the object is never among them, so an object without area has none.
- A positive's object is the one of highest IoU with it, not always the one that chose it; of equals
  the smallest, see ``reference.atss.smallest_first``. All other anchors are negative.
- Means, least and greatest, and the factors that keep the totals are those of one image, over its
  positives. loc, cls, soft labels, weights r and the factors are constants.
- Soft labels are rescaled to [mean(loc), 1]; if all of an image are equal (one positive, say) they
  are 1. Means that are divided by are held at 1e-6; so are 1 - loc and 1 - cls.
- r of a positive multiplies the focal loss of all its classes and its box loss. Negatives have 1.
  Each of the two losses is then scaled, image by image, to its total without r; if the total with r
  is 0 it is left.
- Box losses are smooth L1 with beta .1, summed over the four deltas, whose weights are 1. Decoding
  holds dw and dh at ln(1000 / 16). Boxes are not clipped to the image.
- The count of both losses is the number of positives; detectors average it over iterations.
- The score of a detection is the sigmoid of the logit.
"""

from __future__ import annotations

import math

import torch
from reference.atss import iou, smallest_first
from torch import Tensor
from torch.nn.functional import logsigmoid

TOP = 30
SHARE = 0.75  # a: what the place counts for against the class
ALPHA, GAMMA = 0.5, 2
BETA = 0.1
LEAST = 1e-6


def assign(objects, anchors, top: int = TOP) -> dict:
    """(image, anchor) -> Object of every positive anchor."""
    found = {}
    for chooser in objects:
        ious = [(-iou(box, chooser.box), index) for index, box in enumerate(anchors)]
        for value, index in sorted(ious)[:top]:
            if value == 0:
                continue
            same_image = [obj for obj in objects if obj.image == chooser.image]
            best = min(
                same_image, key=lambda obj: (-iou(anchors[index], obj.box), smallest_first(obj))
            )
            found[chooser.image, index] = best
    return found


def encode(anchor, box) -> tuple[float, ...]:
    """The deltas from an anchor to a box."""
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    return (
        ((box[0] + box[2]) - (anchor[0] + anchor[2])) / 2 / width,
        ((box[1] + box[3]) - (anchor[1] + anchor[3])) / 2 / height,
        math.log((box[2] - box[0]) / width),
        math.log((box[3] - box[1]) / height),
    )


def decode(anchor, deltas) -> tuple[float, ...]:
    """The box that deltas from an anchor lead to."""
    dx, dy, dw, dh = (float(delta) for delta in deltas)
    limit = math.log(1000 / 16)
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = (anchor[0] + anchor[2]) / 2 + dx * width
    y = (anchor[1] + anchor[3]) / 2 + dy * height
    half_width = width * math.exp(min(dw, limit)) / 2
    half_height = height * math.exp(min(dh, limit)) / 2
    return x - half_width, y - half_height, x + half_width, y + half_height


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def soft_labels(loc: list[float], cls: list[float]) -> list[float]:
    """The labels of an image's positives from their IoUs and scores."""
    mean_loc, mean_cls = max(mean(loc), LEAST), max(mean(cls), LEAST)
    raw = [SHARE * a / mean_loc + (1 - SHARE) * b / mean_cls for a, b in zip(loc, cls)]
    low, high = min(raw), max(raw)
    if low == high:
        return [1.0] * len(raw)
    return [mean(loc) + (s - low) * (1 - mean(loc)) / (high - low) for s in raw]


def weights(loc: list[float], cls: list[float]) -> list[float]:
    """r of an image's positives; their mean is 1."""
    by_loc = [1 / max(1 - a, LEAST) for a in loc]
    by_cls = [1 / max(1 - b, LEAST) for b in cls]
    mean_loc, mean_cls = mean(by_loc), mean(by_cls)
    return [SHARE * a / mean_loc + (1 - SHARE) * b / mean_cls for a, b in zip(by_loc, by_cls)]


def soft_focal_loss(logit: Tensor, label: float) -> Tensor:
    """-s alpha (1 - p)^2 ln p - (1 - s) (1 - alpha) p^2 ln(1 - p)."""
    p = torch.sigmoid(logit)
    positive = ALPHA * (1 - p) ** GAMMA * logsigmoid(logit)
    negative = (1 - ALPHA) * p**GAMMA * logsigmoid(-logit)
    return -label * positive - (1 - label) * negative


def smooth_l1(pred: Tensor, target: float) -> Tensor:
    difference = abs(pred - target)
    if difference < BETA:
        return difference**2 / (2 * BETA)
    return difference - BETA / 2


def score(logit: float) -> float:
    """The score of a detection."""
    return 1 / (1 + math.exp(-logit))


def rescaled(items: list[Tensor], factors: list[float]) -> Tensor:
    """The sum of items times factors, scaled to the value of the sum without factors."""
    plain = sum(item.item() for item in items)
    total = sum(factor * item for item, factor in zip(items, factors))
    return total * (plain / total.item()) if total.item() != 0 else total


def losses(objects, anchors, logits, deltas, top: int = TOP):
    """Two pairs (total, count): focal loss with soft labels, box loss."""
    positive = assign(objects, anchors, top)
    classes = boxes = torch.zeros((), dtype=torch.float64)
    for image in range(len(logits)):
        indices = [i for i in range(len(anchors)) if (image, i) in positive]
        loc, cls = [], []
        for i in indices:
            obj = positive[image, i]
            loc.append(iou(decode(anchors[i], deltas[image][i].detach()), obj.box))
            cls.append(score(logits[image][i][obj.label].item()))
        label = dict(zip(indices, soft_labels(loc, cls))) if indices else {}
        weight = dict(zip(indices, weights(loc, cls))) if indices else {}

        items, factors = [], []
        for i in range(len(anchors)):
            for k, logit in enumerate(logits[image][i]):
                is_target = i in label and positive[image, i].label == k
                items.append(soft_focal_loss(logit, label[i] if is_target else 0.0))
                factors.append(weight.get(i, 1.0))
        classes = classes + rescaled(items, factors)

        items, factors = [], []
        for i in indices:
            target = encode(anchors[i], positive[image, i].box)
            items += [smooth_l1(*pair) for pair in zip(deltas[image][i], target)]
            factors += [weight[i]] * 4
        if items:
            boxes = boxes + rescaled(items, factors)
    return (classes, len(positive)), (boxes, len(positive))
