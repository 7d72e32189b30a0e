"""Every detector of the house, and detectron2's two, for the tests that all must pass."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from models import HEURISTIC, JOINT, NUM_CLASSES, RETINANET

from fsaf_d2.detectors import BRANCHES

OURS = {"joint": JOINT, "joint_heuristic": HEURISTIC}
# Each branch alone, and all of them joined.
for names in (*((name,) for name in sorted(BRANCHES)), tuple(sorted(BRANCHES))):
    OURS["+".join(names)] = [
        *("MODEL.META_ARCHITECTURE", "OneStageDetector", "MODEL.RETINANET.NORM", "GN"),
        *("MODEL.BRANCHES", str(list(names))),
    ]
# detectron2's own.
FASTER_RCNN = [
    *("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", "1"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "3"),
    *("MODEL.ROI_HEADS.IN_FEATURES", "['p3', 'p4', 'p5']", "MODEL.ROI_HEADS.NUM_CLASSES"),
    *(str(NUM_CLASSES), "MODEL.RPN.IN_FEATURES", "['p3', 'p4', 'p5', 'p6', 'p7']"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32"),
]
THEIRS = {"detectron2_retinanet": RETINANET, "detectron2_faster_rcnn": FASTER_RCNN}
ALL = {**OURS, **THEIRS}
ours = pytest.mark.parametrize("overrides", OURS.values(), ids=OURS)
everybody = pytest.mark.parametrize("overrides", ALL.values(), ids=ALL)


def train_step(model, inputs) -> dict[str, torch.Tensor]:
    """The losses of a step; their gradients are left behind."""
    with EventStorage():
        losses = model.train()(inputs)
    sum(losses.values()).backward()
    return losses
