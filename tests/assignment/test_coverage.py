"""What anchors and locations reach, beside detectron2's IoUs of all pairs and a count by hand."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, pairwise_iou

from fsaf_d2.assignment.anchors import AnchorKinds
from fsaf_d2.assignment.coverage import (
    best_anchor_ious,
    count_locations_of,
)
from fsaf_d2.assignment.feature_selection import SelectionRule
from fsaf_d2.assignment.grid import Grid
from fsaf_d2.assignment.objects import Objects

STRIDES = (8, 16, 32)
SIZES = [(12, 20), (6, 10), (3, 5)]  # heights and widths of the maps


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_best_ious_are_those_of_all_pairs(offset):
    generator = DefaultAnchorGenerator(
        sizes=[[16, 20], [32, 40], [64, 80]],
        aspect_ratios=[[0.5, 1.0, 2.0]],
        strides=STRIDES,
        offset=offset,
    )
    assert ShapeSpec(stride=8).stride == STRIDES[0]
    anchors = Boxes.cat(generator([torch.zeros(1, 1, *size) for size in SIZES]))
    # Anywhere in the image of 160 x 96 and over its border, of 2 to 128 pixels.
    centers = torch.rand(300, 2) * torch.tensor([180.0, 116.0]) - 10
    halves = 2 ** (torch.rand(300, 2) * 6)
    boxes = torch.cat([centers - halves, centers + halves], dim=1)
    map_sizes = torch.tensor([size[::-1] for size in SIZES]).expand(300, -1, -1)
    found = best_anchor_ious(
        AnchorKinds.of_generator(generator), boxes, torch.tensor(STRIDES), map_sizes
    )
    expected = pairwise_iou(Boxes(boxes), anchors).amax(dim=1)
    torch.testing.assert_close(found.float(), expected)


def test_images_of_other_sizes_have_other_anchors():
    generator = DefaultAnchorGenerator(
        sizes=[[16]], aspect_ratios=[[1.0]], strides=(16,), offset=0.5
    )
    boxes = torch.tensor([[32.0, 0, 48, 16]]).repeat(2, 1)
    # The third cell holds the anchor that is the box; the second one's only touches it.
    map_sizes = torch.tensor([[[3, 1]], [[2, 1]]])
    found = best_anchor_ious(
        AnchorKinds.of_generator(generator), boxes, torch.tensor([16]), map_sizes
    )
    assert found.tolist() == [1, 0]


def test_no_objects():
    generator = DefaultAnchorGenerator(sizes=[[16]], aspect_ratios=[[1.0]], strides=(16,))
    empty = torch.zeros(0, 4), torch.tensor([16]), torch.zeros(0, 1, 2)
    assert len(best_anchor_ious(AnchorKinds.of_generator(generator), *empty)) == 0


def test_locations_that_smaller_objects_take():
    grid = Grid.of(STRIDES, SIZES, torch.device("cpu"))
    # All belong to the level of stride 8, as 28 pixels do. The effective box of the first is
    # (36.8, 36.8, 43.2, 43.2), of cells 4 and 5 in x and y: four locations. The second is smaller,
    # about (36, 36), of the single cell (4, 4). The third is the same as the second, in another
    # image. The fourth lies on the second, and is larger: it loses its only location.
    boxes = [[24, 24, 56, 56], [34, 34, 38, 38], [34, 34, 38, 38], [33, 33, 39, 39]]
    images = torch.tensor([0, 0, 1, 0])
    objects = Objects(torch.tensor(boxes).float(), torch.zeros(4, dtype=torch.int64), images)
    found = count_locations_of(objects, grid, 2, rule=SelectionRule())
    assert found.least.tolist() == [1, 1, 1, 1]
    assert found.owned.tolist() == [4, 1, 1, 1] and found.kept.tolist() == [3, 1, 1, 0]
