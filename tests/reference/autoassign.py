"""AutoAssign stated loop by loop (arXiv 2007.03496), as a slow reference for the tests.

A prediction is looked up as ``logits[image][level][y][x][k]``, ``objectness[image][level][y][x]``,
a logit, and ``distances[image][level][y][x]`` = (left, top, right, bottom) in strides, none below
0. ``mu[k]`` and ``sigma[k]`` are pairs (x, y) in strides. All are float64 tensors, computed with
scalar by scalar, so that autograd gives the gradients. A loss is a pair (total, count), its value
total / count without the weights .25, .75 and .75 of the sum.

What the paper leaves open:

- Locations lie at (x + offset) strides; 0.5 by default, mmdetection's weights need 0.
- The candidates of an object are the locations of all levels strictly inside of its box.
- IoU_j of a location is its highest with any object of the image; 0 outside of all boxes, as in
  mmdetection. 1 / (1 - IoU_j), 1 - IoU_j held at 1e-12, is normalised among the candidates of each
  object: (q - min + 1e-12) / (max - min + 1e-12), so 1 for all if they are equal.
- Where a location is a candidate of several objects of one class the highest of its normalised
  values counts. This deviates from the published code, where the later object overwrites: the order
  of objects changes nothing here.
- The normalised values are constants, and so is the sum of G that the negative loss is divided by:
  mu and sigma have gradients from the positive and the centre loss alone. The weights w of the
  positive loss have gradients, through P as well as G; their sum is held at 1e-12.
- ln of the bag's probability, and ln(1 - p) of the negative loss, is held at -100, as in torch's
  binary cross entropy. An object without candidates adds nothing to the total, but is counted.
- Centre loss: mean over all images of objects / the image's sum of G, held at 1e-12; 0 for an image
  whose objects hold no location.
- Counts: objects; sum of G over objects and their candidates; images. Without
  candidates only the negative loss has a total. Its count then is 0 and has to be held above 0.
- The score of a detection is sigmoid(logit) * sigmoid(objectness).
"""

from __future__ import annotations

import torch
from reference.atss import iou, is_inside, point
from reference.fcos import giou_loss
from torch import Tensor
from torch.nn.functional import logsigmoid

SHARPNESS, BOX_WEIGHT = 3.0, 5.0
GAMMA = 2
LEAST = 1e-12
POSITIVE, NEGATIVE, CENTER = 0.25, 0.75, 0.75


def center_prior(distances, mu, sigma) -> Tensor:
    """G = prod_xy exp(-(d - mu)^2 / (2 sigma^2)) at distances (l, t, r, b) in strides."""
    left, top, right, bottom = distances
    d = (left - right) / 2, (top - bottom) / 2
    return torch.exp(-sum((d[i] - mu[i]) ** 2 / (2 * sigma[i] ** 2) for i in range(2)))


def bag_probability(confidences, priors):
    """sum_i w_i P_i with w_i = exp(3 P_i) G_i / sum_j exp(3 P_j) G_j."""
    shares = [torch.exp(SHARPNESS * p) * g for p, g in zip(confidences, priors)]
    total = max(sum(shares), LEAST)
    return sum(share / total * p for share, p in zip(shares, confidences))


def positive_loss(confidences, priors):
    """-ln of the bag's probability, at most 100."""
    return -max(torch.log(bag_probability(confidences, priors)), -100.0)


def normalized(ious: list[float]) -> list[float]:
    """The IoUs of an object's candidates, as the part of their class that is not background."""
    q = [1 / max(1 - value, LEAST) for value in ious]
    low, high = min(q), max(q)
    return [(value - low + LEAST) / (high - low + LEAST) for value in q]


def negative_loss(logit: Tensor, objectness: Tensor, share: float) -> Tensor:
    """p^2 BCE(p, 0) with p = sigmoid(logit) * sigmoid(objectness) * (1 - share)."""
    p = score(logit, objectness) * (1 - share)
    return -(p**GAMMA) * max(torch.log(1 - p), -100.0)


def score(logit: Tensor, objectness: Tensor) -> Tensor:
    """The score of a detection."""
    return torch.exp(logsigmoid(logit) + logsigmoid(objectness))


def target_distances(obj, level, y: int, x: int, offset: float = 0.5) -> tuple[float, ...]:
    """Distances in strides from a location to the sides of an object."""
    px, py = point(level, y, x, offset)
    sides = px - obj.box[0], py - obj.box[1], obj.box[2] - px, obj.box[3] - py
    return tuple(side / level.stride for side in sides)


def decode(distances: Tensor, level, y: int, x: int, offset: float = 0.5) -> tuple[float, ...]:
    """The box (x0, y0, x1, y1) of a location in pixels."""
    px, py = point(level, y, x, offset)
    left, top, right, bottom = (side.item() * level.stride for side in distances)
    return px - left, py - top, px + right, py + bottom


def candidates(obj, levels, offset: float = 0.5) -> list[tuple[int, int, int]]:
    """The (level, y, x) of the locations strictly inside of an object, level after level."""
    return [
        (index, y, x)
        for index, level in enumerate(levels)
        for y in range(level.height)
        for x in range(level.width)
        if is_inside(*point(level, y, x, offset), obj.box)
    ]


def shares(objects, levels, distances, offset: float = 0.5) -> dict:
    """(image, level, y, x, k) -> the part of a class at a location that is not background."""
    found = {}
    for obj in objects:
        places = candidates(obj, levels, offset)
        if not places:
            continue
        ious = []
        for index, y, x in places:
            box = decode(distances[obj.image][index][y][x].detach(), levels[index], y, x, offset)
            ious.append(max(iou(box, other.box) for other in objects if other.image == obj.image))
        for place, value in zip(places, normalized(ious)):
            key = (obj.image, *place, obj.label)
            found[key] = max(found.get(key, 0.0), value)
    return found


def losses(objects, levels, logits, objectness, distances, mu, sigma, offset: float = 0.5):
    """Three pairs (total, count): positive, negative and centre loss, none weighted."""
    positive = negative = center = torch.zeros((), dtype=torch.float64)
    priors_of = {}  # image -> sum of G
    for obj in objects:
        confidences, priors = [], []
        for index, y, x in candidates(obj, levels, offset):
            sides = target_distances(obj, levels[index], y, x, offset)
            loss = giou_loss(distances[obj.image][index][y][x], sides)
            here = logits[obj.image][index][y][x][obj.label], objectness[obj.image][index][y][x]
            confidences.append(score(*here) * torch.exp(-BOX_WEIGHT * loss))
            priors.append(center_prior(sides, mu[obj.label], sigma[obj.label]))
        if priors:
            positive = positive + positive_loss(confidences, priors)
            priors_of[obj.image] = priors_of.get(obj.image, 0) + sum(priors)
    for image, total in priors_of.items():
        center = center + sum(obj.image == image for obj in objects) / max(total, LEAST)

    share = shares(objects, levels, distances, offset)
    for image in range(len(logits)):
        for index, level in enumerate(levels):
            for y in range(level.height):
                for x in range(level.width):
                    for k, logit in enumerate(logits[image][index][y][x]):
                        not_background = share.get((image, index, y, x, k), 0.0)
                        itself = objectness[image][index][y][x]
                        negative = negative + negative_loss(logit, itself, not_background)
    prior_total = sum(float(total.detach()) for total in priors_of.values())
    return (positive, len(objects)), (negative, prior_total), (center, len(logits))
