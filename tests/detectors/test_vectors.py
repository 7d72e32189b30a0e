"""Numbers that RetinaNet's published parts must give in our configs."""

import pytest
import torch
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, pairwise_iou
from fvcore.nn import giou_loss, sigmoid_focal_loss
from models import ROOT, grid_of, tiny_model
from reference import fsaf as reference

from fsaf_d2 import load_config


def test_cell_anchors():
    cfg = load_config(ROOT / "configs" / "Base-FSAF.yaml")
    shapes = [type("Shape", (), {"stride": stride}) for stride in (8, 16, 32, 64, 128)]
    anchors = next(iter(build_anchor_generator(cfg, shapes).cell_anchors))
    # side 32, height : width = 1:2, 1:1, 2:1; then 32 * 2^(1/3) and 32 * 2^(2/3), square
    expected = [(22.6274, 11.3137), (16, 16), (11.3137, 22.6274)]
    for anchor, (half_width, half_height) in zip(anchors[:3].tolist(), expected):
        sides = (-half_width, -half_height, half_width, half_height)
        assert anchor == pytest.approx(sides, abs=1e-4)
    assert anchors[[4, 7], 2].tolist() == pytest.approx([20.1587, 25.3984], abs=1e-4)
    assert len(anchors) == 9


def test_anchors_are_centred_on_the_corners_of_cells_and_points_on_their_centres():
    model = tiny_model()
    grid = grid_of([(size, size) for size in (8, 4, 2, 1, 1)])
    for name, index, center in (("anchor", 9, [16, 0]), ("point", 1, [24, 8])):
        kinds = model.branches[name].kinds
        first = 64 * kinds.num_per_location  # of the second level
        box = kinds.boxes(torch.tensor(first + index), grid)
        assert ((box[:2] + box[2:]) / 2).tolist() == center


def test_box_deltas():
    transform = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
    anchor, box = torch.tensor([[0.0, 0, 32, 32]]), torch.tensor([[4.0, 8, 44, 40]])
    deltas = transform.get_deltas(anchor, box)[0].tolist()
    assert deltas == pytest.approx([0.25, 0.25, 0.22314355, 0], abs=1e-6)


def test_giou():
    one = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1]])
    other = torch.tensor([[1.0, 1, 3, 3], [2, 2, 3, 3]])
    assert pairwise_iou(Boxes(one), Boxes(other))[0, 0].item() == pytest.approx(0.1428571)
    giou = 1 - giou_loss(one, other)
    assert giou.tolist() == pytest.approx([-0.0793651, -0.7777778], abs=1e-5)


def test_focal_loss():
    logits, labels = torch.tensor([2.0, 2, 0, 0]), torch.tensor([0.0, 1, 0, 1])
    expected = [1.23755863, 0.00045089, 0.1299651, 0.0433217]
    values = sigmoid_focal_loss(logits, labels, alpha=0.25, gamma=2.0)
    assert values.tolist() == pytest.approx(expected, abs=1e-7)
    stated = [reference.focal_loss(x, int(y)) for x, y in zip(logits.tolist(), labels.tolist())]
    assert stated == pytest.approx(expected, abs=1e-7)


def test_focal_loss_of_untrained_heads():
    """22,400 locations, one or nine predictions at each, 80 classes, all background at 0.01."""
    logits = torch.full((22_400, 80), -4.59511985)
    total = sigmoid_focal_loss(logits, torch.zeros_like(logits), 0.25, 2.0, reduction="sum")
    assert total.item() == pytest.approx(1.3508, abs=1e-3)
    assert 9 * total.item() == pytest.approx(12.157, abs=1e-2)


def test_locations_of_an_image_of_coco_size():
    """800 x 1344: 22,400 locations and nine anchors at each."""
    grid = grid_of([(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)])
    branches = tiny_model().branches
    counts = [grid.num_locations * x.kinds.num_per_location for x in branches.values()]
    assert counts == [201_600, 22_400]
