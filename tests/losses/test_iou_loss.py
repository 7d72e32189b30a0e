import math

import pytest
import torch
from fvcore.nn import giou_loss
from reference import fsaf as reference

from fsaf_d2.losses import box_giou_loss, point_giou_loss, point_iou, point_iou_loss


def test_value_computed_by_hand():
    # overlap (1,3,4,4): (1+4)*(3+4) = 35; areas (1+5)*(3+4) = 42 and (2+4)*(3+5) = 48
    # IoU = 35 / (42 + 48 - 35) = 0.636364
    loss = point_iou_loss(torch.tensor([1.0, 3, 5, 4]), torch.tensor([2.0, 3, 4, 5]))
    assert loss.item() == pytest.approx(-math.log(35 / 55), abs=1e-6)
    assert loss.item() == pytest.approx(0.451985, abs=1e-6)


def test_equals_the_reference():
    pred, target = torch.rand(200, 4) * 5, torch.rand(200, 4) * 5 - 1
    expected = [
        reference.iou_loss(p, [max(x, 0) for x in t])
        for p, t in zip(pred.tolist(), target.tolist())
    ]
    assert point_iou_loss(pred, target).tolist() == pytest.approx(expected, abs=1e-5)


def test_perfect_box_costs_nothing():
    distances = torch.rand(50, 4) + 0.1
    assert point_iou_loss(distances, distances).abs().max() < 1e-6


def test_unit_plays_no_part():
    pred, target = torch.rand(50, 4), torch.rand(50, 4)
    torch.testing.assert_close(point_iou_loss(pred, target), point_iou_loss(pred * 32, target * 32))


def test_point_left_of_the_object_aims_at_both_together():
    # The object lies 2 to 6 to the right of the point: the box that holds both is 0 to 6.
    pred = torch.tensor([0.0, 1, 6, 1])
    assert point_iou_loss(pred, torch.tensor([-2.0, 1, 6, 1])).item() == pytest.approx(0, abs=1e-6)


def test_bounded_and_finite_gradient_where_nothing_overlaps():
    pred = torch.zeros(2, 4, requires_grad=True)
    loss = point_iou_loss(pred, torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]]))
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([-math.log(1e-7)] * 2)
    assert torch.isfinite(pred.grad).all()


def test_half_precision_is_computed_in_float32():
    pred, target = torch.rand(50, 4).half(), torch.rand(50, 4).half()
    loss = point_iou_loss(pred, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, point_iou_loss(pred.float(), target.float()))


def test_gradient_is_the_derivative():
    pred = (torch.rand(6, 4) + 0.2).requires_grad_()
    target = torch.rand(6, 4) + 0.2
    point_iou_loss(pred, target).sum().backward()
    step = 1e-3
    for index in range(4):
        shift = torch.zeros(4)
        shift[index] = step
        with torch.no_grad():
            difference = point_iou_loss(pred + shift, target) - point_iou_loss(pred - shift, target)
        torch.testing.assert_close(
            pred.grad[:, index], difference / (2 * step), rtol=0.02, atol=2e-3
        )


def test_iou_of_boxes_about_a_point():
    """The boxes of the first test; a point and a box; a point and itself."""
    pred = torch.tensor([[1.0, 3, 5, 4], [0, 0, 0, 0], [0, 0, 0, 0]])
    target = torch.tensor([[2.0, 3, 4, 5], [1, 1, 1, 1], [0, 0, 0, 0]])
    assert point_iou(pred, target).tolist() == pytest.approx([35 / 55, 0, 0])


def test_giou_loss_of_boxes_is_fvcores():
    first, size = torch.rand(2, 2, 200, 2, dtype=torch.float64).unbind()
    one, other = torch.cat([first, first + size], dim=-1).unbind()
    expected = giou_loss(one, other)
    assert expected.max() > 1  # some do not meet
    torch.testing.assert_close(box_giou_loss(one, other), expected.float(), rtol=1e-4, atol=1e-5)


def test_giou_loss_is_the_same_of_corners_and_of_distances():
    pred, target = torch.rand(2, 50, 4) * 5
    corners = torch.tensor([-1.0, -1, 1, 1])
    found = box_giou_loss(pred * corners, target * corners)
    torch.testing.assert_close(found, point_giou_loss(pred, target))


def test_giou_loss_of_boxes_without_an_area_is_finite():
    box = torch.tensor([[3.0, 3, 3, 3]], requires_grad=True)
    loss = box_giou_loss(box, torch.tensor([[3.0, 3, 3, 3]]))
    loss.sum().backward()
    assert loss.item() == 1 and torch.isfinite(box.grad).all()


def test_giou_loss_computed_by_hand():
    # As above IoU = 35 / 55; the hull (2,3,5,5) is (2+5)*(3+5) = 56.
    loss = point_giou_loss(torch.tensor([1.0, 3, 5, 4]), torch.tensor([2.0, 3, 4, 5]))
    assert loss.item() == pytest.approx(1 - 35 / 55 + 1 / 56, abs=1e-6)


def test_giou_loss_of_two_points_is_finite_and_so_is_its_gradient():
    pred = torch.zeros(1, 4, requires_grad=True)
    loss = point_giou_loss(pred, torch.zeros(1, 4))
    loss.sum().backward()
    assert loss.tolist() == [1.0] and torch.isfinite(pred.grad).all()
