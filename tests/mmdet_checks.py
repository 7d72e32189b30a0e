"""What is asked of every model that mmdetection's weights become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from detectron2.structures import Instances
from torch import Tensor

from fsaf_d2 import load_config
from fsaf_d2.weights.layouts import Layout, conflicts, to_own_layout


def assert_same_maps(found: Sequence[Sequence[Tensor]], expected: Sequence[Sequence[Tensor]]):
    """Equal maps of every level, of which none is nearly constant."""
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
            assert other.std() > 0.1


def assert_same_detections(found: Instances, boxes: Tensor, scores: Tensor, classes: Tensor):
    """Equal detections, many and of several levels; of an image of 120 x 172 pixels."""
    # Scores that differ in the last digits alone may change their order.
    torch.testing.assert_close(found.scores, scores, rtol=0, atol=1e-5)
    distance = (found.pred_boxes.tensor[:, None] - boxes).abs().amax(dim=2)
    distance[found.pred_classes[:, None] != classes] = float("inf")
    nearest = distance.argmin(dim=1)
    assert sorted(nearest.tolist()) == list(range(len(scores)))
    assert distance.amin(dim=1).max() < 1e-3
    torch.testing.assert_close(found.scores, scores[nearest], rtol=0, atol=1e-5)
    assert len(scores) > 300 and len(found.pred_levels.unique()) > 2
    assert ((boxes[:, 2] == 172.0) & (boxes[:, 3] == 120.0)).any(), "none is clipped"


def assert_every_tensor_is_converted(weights: Mapping[str, Tensor], layout: Layout):
    found = to_own_layout(weights)
    assert found.layout is layout
    assert sorted(found.old_names.values()) == sorted(weights)
    assert found.weights.keys() == found.old_names.keys()


def assert_conflicts(layout: Layout, config: Path, starts: Sequence[str]):
    """A config has these keys of another value than the weights', in this order."""
    lines = conflicts(layout, load_config(config))
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts):
        assert line.startswith(start)
