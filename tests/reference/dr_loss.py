"""DR loss stated loop by loop (arXiv 1907.10156), as a slow reference for the tests.

``positives`` and ``negatives`` are the logits of (anchor, class) entries, those of all classes,
anchors and images of one process: float64 tensors, computed with scalar by scalar, so that autograd
gives the gradients. A positive is the entry of an anchor that answers for an object at the object's
class; all other entries are negatives, other classes of that anchor included.

What the paper leaves open:

- Gradients flow through the weights of both distributions.
- Without positives their probability is 1, a constant; without negatives theirs is 0.
- The loss is (total, count) = (loss, 1): one of each process, divided by no number of anchors.
- Anchors: positive with IoU >= .5, or as a best anchor of an object; all others are negative, as
  there is no zone that is ignored. Ties and objects are as in ``reference.ap_loss``.
- The box loss is RetinaNet's, and is not stated here.
- The score of a detection is the sigmoid of the logit.
"""

from __future__ import annotations

import math

import torch
from reference import ap_loss
from torch import Tensor

MARGIN, SMOOTHNESS, TAU = 0.5, 6.0, 4.0
NEGATIVE_SCALE, POSITIVE_SCALE = 0.1 / math.log(3.5), 1.0


def expected(probabilities: list[Tensor], scale: float) -> Tensor:
    """sum_i softmax(p / scale)_i p_i."""
    weights = [torch.exp(p / scale) for p in probabilities]
    total = sum(weights)
    return sum(weight / total * p for weight, p in zip(weights, probabilities))


def distributions(positives, negatives) -> tuple[Tensor, Tensor]:
    """The probabilities (n_hat, p_hat) that stand for the negatives and for the positives."""
    n_hat, p_hat = torch.tensor(0.0).double(), torch.tensor(1.0).double()
    if len(negatives):
        n_hat = expected([torch.sigmoid(x) for x in negatives], NEGATIVE_SCALE)
    if len(positives):
        p_hat = expected([torch.sigmoid(x) for x in positives], -POSITIVE_SCALE)
    return n_hat, p_hat


def dr_loss(positives, negatives) -> Tensor:
    """tau / L ln(1 + exp(L (n_hat - p_hat + margin)))."""
    n_hat, p_hat = distributions(positives, negatives)
    rank = torch.exp(SMOOTHNESS * (n_hat - p_hat + MARGIN))
    return TAU / SMOOTHNESS * torch.log(1 + rank)


def assign(objects, anchors) -> dict:
    """(image, anchor) -> Object of every positive anchor."""
    return ap_loss.labels(objects, anchors)[0]


def losses(objects, anchors, logits) -> tuple[Tensor, int]:
    """The pair (total, count) of the predictions logits[image][anchor][k] of a process."""
    positive = assign(objects, anchors)
    positives, negatives = [], []
    for image in range(len(logits)):
        for index in range(len(anchors)):
            obj = positive.get((image, index))
            for k, logit in enumerate(logits[image][index]):
                is_target = obj is not None and obj.label == k
                (positives if is_target else negatives).append(logit)
    return dr_loss(positives, negatives), 1


def score(logit: float) -> float:
    """The score of a detection."""
    return 1 / (1 + math.exp(-logit))
