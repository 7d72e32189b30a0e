"""The keys of every branch: wrong values are refused by name, and right ones change the losses."""

import re

import pytest
import torch
from models import batch, head_parameters, instances, tiny_model

OFFSET = "at least 0 and less than 1"
WEIGHT = "at least 0"
WRONG = {
    "fcos": [
        ("FCOS.SIZE_LIMITS", "[64, 128]", "4 rising numbers"),
        ("FCOS.SIZE_LIMITS", "[64, 128, 128, 512]", "4 rising numbers"),
        ("FCOS.CENTER_RADIUS", "0.0", "more than 0"),
        ("FCOS.LOSS_WEIGHT", "-1.0", WEIGHT),
    ],
    "atss": [
        ("ATSS.ANCHOR_SIZE", "0.0", "more than 0"),
        ("ATSS.TOP_K", "0", "at least 1"),
        ("ATSS.POINT_OFFSET", "-0.5", OFFSET),
        ("ATSS.BBOX_REG_WEIGHTS", "(1.0, 1.0)", "four numbers more than 0"),
        ("ATSS.BBOX_REG_WEIGHTS", "(1.0, 1.0, 0.0, 1.0)", "four numbers more than 0"),
        ("ATSS.BOX_WEIGHT", "-1.0", WEIGHT),
        ("ATSS.LOSS_WEIGHT", "-1.0", WEIGHT),
    ],
    "gfl": [
        ("GFL.REG_MAX", "0", "at least 1"),
        ("GFL.BETA", "0.5", "0 or at least 1"),
        ("GFL.ANCHOR_SIZE", "0.0", "more than 0"),
        ("GFL.TOP_K", "0", "at least 1"),
        ("GFL.POINT_OFFSET", "1.0", OFFSET),
        ("GFL.BOX_WEIGHT", "-1.0", WEIGHT),
        ("GFL.DFL_WEIGHT", "-1.0", WEIGHT),
        ("GFL.LOSS_WEIGHT", "-1.0", WEIGHT),
    ],
    "autoassign": [
        ("AUTOASSIGN.POINT_OFFSET", "1.0", OFFSET),
        ("AUTOASSIGN.PRIOR_PROB", "0.0", "between 0 and 1"),
        ("AUTOASSIGN.BBOX_BIAS", "0.0", "more than 0"),
        ("AUTOASSIGN.PRIOR_LOSS_WEIGHT", "-1.0", WEIGHT),
        ("AUTOASSIGN.LOSS_WEIGHT", "-1.0", WEIGHT),
    ],
    "noisy_anchor": [
        ("NOISY_ANCHORS.TOP_N", "0", "at least 1"),
        ("NOISY_ANCHORS.ALPHA", "1.5", "0 to 1"),
        ("NOISY_ANCHORS.LOSS_WEIGHT", "-1.0", WEIGHT),
        ("RETINANET.BBOX_REG_LOSS_TYPE", "giou", "'smooth_l1' for noisy anchors"),
    ],
    "dr_loss": [
        ("DR_LOSS.LAMBDA_POSITIVE", "0.0", "more than 0"),
        ("DR_LOSS.LAMBDA_NEGATIVE", "0.0", "more than 0"),
        ("DR_LOSS.SMOOTHNESS", "0.0", "more than 0"),
        ("DR_LOSS.TAU", "-1.0", WEIGHT),
        ("DR_LOSS.MARGIN", "-0.5", WEIGHT),
        ("DR_LOSS.LOSS_WEIGHT", "-1.0", WEIGHT),
    ],
    "ap_loss": [
        ("AP_LOSS.DELTA", "0.0", "more than 0"),
        ("AP_LOSS.LOSS_WEIGHT", "-1.0", WEIGHT),
    ],
}
# Of branches whose own tests do not say which loss a key changes.
HEEDED = {
    "fcos": [("FCOS.SIZE_LIMITS", "[30, 128, 256, 512]"), ("FCOS.CENTER_RADIUS", "0.8")],
    "atss": [
        ("ATSS.ANCHOR_SIZE", "4.0"),
        ("ATSS.TOP_K", "5"),
        ("ATSS.POINT_OFFSET", "0.0"),
        ("ATSS.BBOX_REG_WEIGHTS", "(1.0, 1.0, 1.0, 1.0)"),
        ("ATSS.BOX_WEIGHT", "1.0"),
    ],
    "gfl": [
        ("GFL.BETA", "1.0"),
        ("GFL.ANCHOR_SIZE", "4.0"),
        ("GFL.TOP_K", "5"),
        ("GFL.POINT_OFFSET", "0.0"),
        ("GFL.BOX_WEIGHT", "1.0"),
        ("GFL.DFL_WEIGHT", "0.5"),
    ],
}
# Where a branch has the weight of its losses beside those of other branches.
WEIGHTS = [key for keys in WRONG.values() for key, _, _ in keys if key.endswith(".LOSS_WEIGHT")]


def of_all(table: dict[str, list]) -> list[tuple]:
    return [(branch, *row) for branch, rows in table.items() for row in rows]


def model_of(branch: str, *words: str) -> torch.nn.Module:
    """A model whose outputs vary, boxes not below 0; the same at every call."""
    torch.manual_seed(3)
    model = tiny_model(
        *("MODEL.META_ARCHITECTURE", "OneStageDetector", "MODEL.BRANCHES", f"['{branch}']"),
        *("MODEL.RETINANET.NORM", "GN", *words),
    )
    torch.manual_seed(4)
    for name, parameter in head_parameters(model).items():
        if name.startswith("branches.") and name.endswith("weight"):
            torch.nn.init.normal_(parameter, std=0.03)
    return model.train()


def losses_of(branch: str, *words: str) -> dict[str, float]:
    model = model_of(branch, *words)
    torch.manual_seed(5)
    inputs = batch(instances([(10, 10, 70, 60), (40, 30, 150, 120)], [1, 2]))
    return {name: loss.item() for name, loss in model(inputs).items()}


@pytest.mark.parametrize(("branch", "key", "value", "words"), of_all(WRONG))
def test_wrong_values_are_refused_with_the_keys_name(branch, key, value, words):
    with pytest.raises(ValueError, match=re.escape(f"MODEL.{key} must be {words}")):
        model_of(branch, f"MODEL.{key}", value)


@pytest.mark.parametrize(("branch", "key", "value"), of_all(HEEDED))
def test_keys_are_heeded(branch, key, value):
    assert losses_of(branch) == losses_of(branch)
    assert losses_of(branch, f"MODEL.{key}", value) != losses_of(branch)


@pytest.mark.parametrize(("branch", "key"), list(zip(WRONG, WEIGHTS)))
def test_the_weight_is_of_all_losses_of_a_branch(branch, key):
    half = {name: loss / 2 for name, loss in losses_of(branch).items()}
    assert losses_of(branch, f"MODEL.{key}", "0.5") == pytest.approx(half, rel=1e-5)
