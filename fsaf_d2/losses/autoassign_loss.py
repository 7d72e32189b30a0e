"""AutoAssign's losses: what an object's bag of locations finds, and what it leaves to background.

From arXiv 2007.03496, Sec. 3.2 to 3.4.

Letters: N images; K classes; L levels; R locations of one image over all levels; B bags, each with
all locations inside the box of an object; T pairs of a bag and a location of it; U planes, each of
an image and a class, that have a bag. Boxes are (x0, y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .iou_loss import paired_giou
from .sparse_focal_loss import CHUNK

if TYPE_CHECKING:
    from ..assignment.inside_boxes import BagPairs

# Eq. 3: the weight of the box loss beside that of the class.
BOX_WEIGHT = 5.0
# Eq. 5: how much more the confident locations of a bag weigh.
TEMPERATURE = 3.0
# What divides is at least this.
LEAST = 1e-12
# Pairs of an object and a location compared at a time on a GPU.
CHUNK_GPU = 1 << 24


class BagTables(NamedTuple):
    """What is known of bags, where the predictions are."""

    boxes: Tensor  # (4, B) of the objects
    images: Tensor  # (B,) in 0..N-1
    planes: Tensor  # (B,) image * K + class
    points: Tensor  # (2, R) of all locations, in strides of their level


class BagSums(NamedTuple):
    """What the pairs of all bags add up to."""

    loss: Tensor  # scalar, of all bags
    priors: Tensor  # (B,) the centre prior summed over each bag


# Lists all pairs, in pieces.
ListPairs = Callable[[], Iterable["BagPairs"]]


def center_prior(points: Tensor, highest: Tensor, slope: Tensor) -> Tensor:
    """How likely locations answer for an object by where they lie (Eq. 4).

    Args:
        points: (2, T), of locations, in strides.
        highest: (2, T), the sums of their objects' centres and the classes' mu, in strides.
        slope: (2, T), 1 / (sqrt(2) sigma).

    Returns:
        (T,) G, above 0 and at most 1.
    """
    x, y = ((points - highest) * slope).square()
    return (-x - y).exp()


def bag_losses(confidence: Tensor, prior: Tensor, bag: Tensor, num_bags: int) -> Tensor:
    """-ln of the weighted mean of each bag's confidence (Eq. 5 and 6).

    Args:
        confidence, prior: (T,) P and G. Weights are exp(3 P) G; they pass gradients on to both.
        bag: (T,) in 0..num_bags-1.

    Returns:
        (num_bags,).
    """
    weight = (TEMPERATURE * confidence).exp() * prior
    found = _sums(weight * confidence, bag, num_bags)
    found = found / _sums(weight, bag, num_bags).clamp(min=LEAST)
    return -found.clamp(min=torch.finfo(found.dtype).tiny).log()


def _sums(values: Tensor, bag: Tensor, num_bags: int) -> Tensor:
    return values.new_zeros(num_bags).index_add(0, bag, values)


def bag_shares(iou: Tensor, bag: Tensor, num_bags: int) -> Tensor:
    """The share of each location that is an object's, by how well it predicts boxes (Eq. 7).

    1 / (1 - IoU) is stretched to 0 to 1 within each bag. Where all of a bag are alike, all have 1.

    Args:
        iou: (T,) of what the location predicts.
        bag: (T,) in 0..num_bags-1.

    Returns:
        (T,).
    """
    q = 1 / (1 - iou).clamp(min=LEAST)
    low = q.new_full((num_bags,), math.inf).scatter_reduce(0, bag, q, "amin")[bag]
    high = q.new_zeros(num_bags).scatter_reduce(0, bag, q, "amax")[bag]
    return (q - low + LEAST) / (high - low + LEAST)


def sum_bags(
    logits: Tensor,
    objectness: Tensor,
    boxes: Tensor,
    priors: Tensor,
    tables: BagTables,
    list_pairs: ListPairs,
) -> BagSums:
    """Sum the losses of all bags, piece by piece.

    Nothing of the size of all pairs is kept; pairs are listed once forward and once backward.

    Args:
        logits: (N, K, R), contiguous.
        objectness: (N, R), logits.
        boxes: (4, N, R), predicted.
        priors: (4, B * L), see :func:`prior_table`.
    """
    boxes, objectness = boxes.contiguous(), objectness.contiguous()
    return BagSums(*_BagSums.apply(logits, objectness, boxes, priors, tables, list_pairs))


def prior_table(centers: Tensor, mean: Tensor, sigma: Tensor, classes: Tensor) -> Tensor:
    """What :func:`center_prior` needs of every bag on every level.

    Args:
        centers: (2, B, L) of the boxes, in strides of the level.
        mean, sigma: (K, 2), in strides.
        classes: (B,).

    Returns:
        (4, B * L): where it is highest, and its slope.
    """
    mean, slope = (
        x.index_select(0, classes).T[:, :, None] for x in (mean, 1 / (math.sqrt(2) * sigma))
    )
    return torch.cat([centers + mean, slope.expand_as(centers)]).flatten(1)


class _Rows(NamedTuple):
    """What is predicted for the pairs of a piece; gradients are of these alone."""

    logits: Tensor  # (T,), of the object's class
    objectness: Tensor  # (T,)
    boxes: Tensor  # (4, T)
    priors: Tensor  # (4, T)


class _BagSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        logits: Tensor,
        objectness: Tensor,
        boxes: Tensor,
        priors: Tensor,
        tables: BagTables,
        list_pairs: ListPairs,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(logits, objectness, boxes, priors, *tables)
        ctx.list_pairs = list_pairs
        flat = _flat(logits, objectness, boxes, priors)
        total, sums = logits.new_zeros(()), logits.new_zeros(len(tables.images))
        for pairs in list_pairs():
            index = _places(pairs, tables, objectness.shape[1])
            losses, sums[pairs.bags] = _of_piece(_gather(flat, index), pairs, tables)
            total += losses.sum()
        return total, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_total: Tensor, grad_sums: Tensor):
        inputs, tables = ctx.saved_tensors[:4], BagTables(*ctx.saved_tensors[4:])
        flat = _flat(*inputs)
        gradients = [torch.zeros_like(x) for x in flat]
        for pairs in ctx.list_pairs():
            index = _places(pairs, tables, inputs[1].shape[1])
            with torch.enable_grad():
                rows = _Rows(*(x.requires_grad_() for x in _gather(flat, index)))
                losses, sums = _of_piece(rows, pairs, tables)
                value = (losses * grad_total + sums * grad_sums[pairs.bags]).sum()
            for gradient, place, part in zip(gradients, index, torch.autograd.grad(value, rows)):
                gradient.index_add_(-1, place, part)
        return (*(x.view(y.shape) for x, y in zip(gradients, inputs)), None, None)


def _flat(logits: Tensor, objectness: Tensor, boxes: Tensor, priors: Tensor) -> _Rows:
    """All that is predicted, with what pairs choose from as the last dimension."""
    return _Rows(logits.view(-1), objectness.view(-1), boxes.view(4, -1), priors)


def _places(pairs: BagPairs, tables: BagTables, num_locations: int) -> tuple[Tensor, ...]:
    """Where the pairs' predictions are, field by field of :class:`_Rows`."""
    image, plane = (x[pairs.bags][pairs.bag] for x in (tables.images, tables.planes))
    row = image * num_locations + pairs.location
    return plane * num_locations + pairs.location, row, row, pairs.region


def _gather(flat: _Rows, index: tuple[Tensor, ...]) -> _Rows:
    return _Rows(*(x.index_select(-1, places) for x, places in zip(flat, index)))


def _of_piece(rows: _Rows, pairs: BagPairs, tables: BagTables) -> tuple[Tensor, Tensor]:
    """The loss and the sum of priors of each bag."""
    giou = paired_giou(rows.boxes, tables.boxes[:, pairs.bags].index_select(1, pairs.bag))
    # Eq. 3: P = class score * objectness * exp(-5 GIoU loss).
    likelihood = (BOX_WEIGHT * (giou - 1)).exp()
    confidence = rows.logits.sigmoid() * rows.objectness.sigmoid() * likelihood
    points = tables.points.index_select(1, pairs.location)
    prior = center_prior(points, *rows.priors.split(2))
    losses = bag_losses(confidence, prior, pairs.bag, pairs.num_bags)
    return losses, _sums(prior, pairs.bag, pairs.num_bags)


@torch.no_grad()
def best_ious(boxes: Tensor, targets: Tensor, counts: Sequence[int]) -> Tensor:
    """The highest IoU of each location's predicted box with an object of its image (Eq. 7).

    Args:
        boxes: (4, N, R), predicted.
        targets: (4, M), of the objects, image by image.
        counts: how many objects each image has.

    Returns:
        (N, R), 0 in an image without objects.
    """
    num_locations, tiny = boxes.shape[2], torch.finfo(boxes.dtype).tiny
    size = max((CHUNK if boxes.device.type == "cpu" else CHUNK_GPU) // num_locations, 1)
    areas, target_areas = ((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (boxes, targets))
    # Intersection / sum of the areas rises with the IoU.
    best = torch.zeros_like(areas)
    parts = (x.split(list(counts), dim=-1) for x in (targets, target_areas))
    for image, of_image in enumerate(zip(*parts)):
        x0, y0, x1, y1 = boxes[:, image]
        for part, area in zip(*(x.split(size, dim=-1) for x in of_image)):
            left, top, right, bottom = part[..., None]
            width = torch.minimum(x1, right).sub_(torch.maximum(x0, left)).clamp_(min=0)
            height = torch.minimum(y1, bottom).sub_(torch.maximum(y0, top)).clamp_(min=0)
            ratio = width.mul_(height).div_((areas[image] + area[:, None]).clamp_(min=tiny))
            if len(area):
                torch.maximum(best[image], ratio.amax(dim=0), out=best[image])
    return best / (1 - best)


@torch.no_grad()
def shares_of_planes(
    ious: Tensor, planes: Tensor, tables: BagTables, list_pairs: ListPairs
) -> Tensor:
    """The share of every location that is an object's, in the planes of the objects.

    Args:
        ious: (N, R), see :func:`best_ious`.
        planes: (U,) image * K + class, rising: those of the bags, each once.

    Returns:
        (U, R), 0 outside of the bags.
    """
    num_locations = ious.shape[1]
    shares = ious.new_zeros(len(planes) * num_locations)
    row_of_bag = torch.searchsorted(planes, tables.planes)
    for pairs in list_pairs():
        row = tables.images[pairs.bags][pairs.bag] * num_locations + pairs.location
        share = bag_shares(ious.view(-1)[row], pairs.bag, pairs.num_bags)
        place = row_of_bag[pairs.bags][pairs.bag] * num_locations + pairs.location
        # Deviates from the paper: where objects of one class share a location, the larger share
        # counts, not that of the later object, so that the order of objects changes nothing.
        shares.scatter_reduce_(0, place, share, "amax")
    return shares.view(len(planes), num_locations)


def prior_losses(sums: Tensor, images: Tensor, num_objects: Tensor) -> Tensor:
    """How far the centre priors of an image are from summing up to its number of objects.

    Args:
        sums: (B,) of each bag.
        images: (B,) in 0..I-1, among the images that have bags.
        num_objects: (I,) of each such image.

    Returns:
        (I,) the number of objects / the sum of priors.
    """
    return num_objects / _sums(sums, images, len(num_objects)).clamp(min=LEAST)
