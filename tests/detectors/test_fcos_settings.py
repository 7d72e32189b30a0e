"""What FCOS begins with, and that its keys and arguments are heeded."""

import pytest
import torch
from models import (
    NUM_CLASSES,
    SIZES,
    STRIDES,
    batch,
    grid_of,
    instances,
    random_instances,
    tiny_model,
)

from fsaf_d2.assignment.objects import Objects
from fsaf_d2.detectors.fcos import FCOSBranch, FCOSPredictions
from fsaf_d2.inference.candidates import NONE

FCOS = ["MODEL.META_ARCHITECTURE", "PointFCOS", "MODEL.RETINANET.NORM", "GN"]


def branch_of(**arguments) -> FCOSBranch:
    return FCOSBranch(strides=STRIDES, in_channels=8, num_classes=NUM_CLASSES, **arguments)


def same_everywhere(logit: float) -> FCOSPredictions:
    """Of one image: all classes alike, boxes of two strides."""
    return FCOSPredictions(
        [torch.full((1, NUM_CLASSES, *size), logit) for size in SIZES],
        [torch.ones(1, 4, *size) for size in SIZES],
        [torch.zeros(1, 1, *size) for size in SIZES],
    )


@pytest.mark.parametrize(("prior", "bias"), [("0.01", -4.59512), ("0.02", -3.89182)])
def test_every_class_begins_with_its_prior(prior, bias):
    """-ln((1 - p) / p)."""
    branch = tiny_model(*FCOS, "MODEL.RETINANET.PRIOR_PROB", prior).branches.fcos
    assert branch.cls_score.bias.tolist() == pytest.approx([bias] * NUM_CLASSES, abs=1e-5)


def test_boxes_and_centerness_begin_without_a_bias():
    branch = tiny_model(*FCOS).branches.fcos
    assert not branch.bbox_pred.bias.any() and not branch.centerness.bias.any()


def test_arguments_are_by_default_what_the_config_says():
    """Table 1 and Sec. 2.3 of arXiv 2006.09214."""
    for branch in (branch_of(), tiny_model(*FCOS).branches.fcos):
        assert branch.size_limits == [64, 128, 256, 512] and branch.center_radius == 1.5
        assert branch.focal_loss == {"alpha": 0.25, "gamma": 2.0}
        assert branch.weights[0] == 1.0 and branch.kinds.offset == 0.5


def test_keys_of_the_focal_loss_are_heeded():
    words = ["MODEL.RETINANET.FOCAL_LOSS_ALPHA", "0.4", "MODEL.RETINANET.FOCAL_LOSS_GAMMA", "1.0"]
    branch = tiny_model(*FCOS, *words).branches.fcos
    assert branch.focal_loss == {"alpha": 0.4, "gamma": 1.0}


def test_the_focal_loss_has_the_branchs_alpha_and_gamma():
    """No object, all scores 1/2: a channel costs (1 - alpha) * 0.5 ** gamma * ln 2."""
    nothing = Objects.of([instances([], [])])
    channels = NUM_CLASSES * grid_of().num_locations
    for alpha, gamma in ((0.25, 2.0), (0.4, 1.0)):
        branch = branch_of(focal_loss_alpha=alpha, focal_loss_gamma=gamma)
        term = branch.losses(same_everywhere(logit=0.0), nothing, grid_of())["loss_fcos_cls"]
        expected = channels * (1 - alpha) * 0.5**gamma * torch.tensor(2.0).log()
        torch.testing.assert_close(term.total, expected)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    # Three of each level, whose coarsest has 2 locations of 7 classes.
    [("SCORE_THRESH_TEST", "0.9", 0), ("TOPK_CANDIDATES_TEST", "3", 15)],
)
def test_keys_of_inference_are_heeded(key, value, expected):
    words = ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", f"MODEL.RETINANET.{key}", value]
    branch = tiny_model(*FCOS, *words).branches.fcos
    found = branch.decode(same_everywhere(logit=0.0), grid_of())
    assert sum(int((x.scores != NONE).sum()) for x in found) == expected


def test_points_lie_in_their_cells():
    for offset in (1.0, -0.1):
        with pytest.raises(ValueError, match="point_offset must be at least 0 and less than 1"):
            branch_of(point_offset=offset)


def test_distances_are_not_negative_whatever_the_factor_has_learnt():
    branch = branch_of()
    torch.nn.init.constant_(branch.bbox_pred.bias, 2.0)
    torch.nn.init.constant_(branch.scales.scales[1], -1.0)
    features = [torch.randn(1, 8, *size) for size in SIZES]
    deltas = branch(features, features).fcos_deltas
    assert not deltas[1].any() and all((x >= 0).all() and x.any() for x in (deltas[0], deltas[2]))


def test_its_branches_may_be_others():
    assert list(tiny_model(*FCOS).branches) == ["fcos"]
    both = tiny_model(*FCOS, "MODEL.BRANCHES", "['fcos', 'anchor']")
    assert list(both.branches) == ["fcos", "anchor"]
    assert len(both(batch(random_instances(3)))) == 5
