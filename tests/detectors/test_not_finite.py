"""What is not finite, in boxes or in predictions, is in the losses, by which a run sees it."""

import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from every_detector import OURS
from models import batch, instances, losses_given, predictions_of, tiny_model

BOXES = [[8.0, 8, 90, 100], [20, 30, 50, 60], [100, 10, 140, 90]]
SELECTIONS = {
    "online": [],
    "heuristic": ["MODEL.FSAF.LEVEL_SELECTION", "heuristic"],
    "first steps": ["MODEL.FSAF.HEURISTIC_STEPS", "9"],
}


def is_noticed(model, predictions, grid, truth) -> bool:
    with torch.no_grad(), EventStorage():
        losses = losses_given(model, predictions, grid, [truth])
    return not all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_box(selection, value):
    model = tiny_model(*SELECTIONS[selection]).train()
    model.at_step(0)
    truth = instances(BOXES, [0, 1, 2])
    predictions, grid = predictions_of(model, batch(truth))
    assert not is_noticed(model, predictions, grid, truth)
    for place in range(4):
        truth = instances(BOXES, [0, 1, 2])
        truth.gt_boxes.tensor[1, place] = value
        assert is_noticed(model, predictions, grid, truth), place


@pytest.mark.parametrize("name", [name for name in OURS if "+" not in name])
def test_predictions(name):
    overrides = OURS[name]
    model = tiny_model(*overrides).train()
    model.at_step(0)
    truth = instances(BOXES, [0, 1, 2])
    predictions, grid = predictions_of(model, batch(truth))
    assert not is_noticed(model, predictions, grid, truth)
    for name, of_branch in predictions.items():
        for field in of_branch._fields:
            wrong = [x * math.nan for x in getattr(of_branch, field)]
            changed = {**predictions, name: of_branch._replace(**{field: wrong})}
            assert is_noticed(model, changed, grid, truth), (name, field)
