"""Small trainings for the tests."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.env import seed_all_rng
from models import ROOT

from fsaf_d2 import load_config
from fsaf_d2.training import Trainer
from fsaf_d2.training.random_state import random_state, set_random_state

OVERRIDES = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    # A tenth of the tensors of R-50, as to save and load them takes most of the time.
    "MODEL.BACKBONE.NAME": "build_timm_fpn_backbone",
    "MODEL.TIMM.NAME": "test_resnet",
    "MODEL.FPN.OUT_CHANNELS": 16,
    # Batch norm has more state, which a run can lose, than group norm.
    "MODEL.TIMM.NORM": "BN",
    "MODEL.FPN.NORM": "BN",
    "MODEL.RETINANET.NORM": "BN",
    "MODEL.CHANNELS_LAST": True,
    "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.RETINANET.NUM_CLASSES": 10,
    "DATASETS.TRAIN": "('runs_train',)",
    "DATASETS.TEST": "('runs_val',)",
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TRAIN": "(96, 128)",
    "INPUT.MIN_SIZE_TEST": 128,
    "SEED": 1,
    # Drawing takes longer than such a run.
    "TEST.SAMPLES": 0,
    "TEST.LEVEL_LENS": 0,
    # Runs that are stopped are to go on on both sides of it.
    "MODEL.FSAF.HEURISTIC_STEPS": 3,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.001,
    # torch calls hooks of a step twice where a class derives from an optimizer's, as clipping does.
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "SOLVER.MAX_ITER": 6,
    "SOLVER.STEPS": "()",
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.CHECKPOINT_PERIOD": 2,
}
# detectron2's own detectors, on the backbone of the others.
RETINANET = {"MODEL__META_ARCHITECTURE": "RetinaNet"}
FASTER_RCNN = {
    "MODEL__META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL__ROI_HEADS__NAME": "StandardROIHeads",
    "MODEL__ROI_HEADS__IN_FEATURES": "['p3', 'p4', 'p5']",
    "MODEL__ROI_HEADS__NUM_CLASSES": 10,
    "MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE": 16,
    "MODEL__ROI_BOX_HEAD__NAME": "FastRCNNConvFCHead",
    "MODEL__ROI_BOX_HEAD__NUM_FC": 1,
    "MODEL__ROI_BOX_HEAD__FC_DIM": 16,
    "MODEL__ROI_BOX_HEAD__POOLER_RESOLUTION": 3,
    "MODEL__RPN__IN_FEATURES": "['p3', 'p4', 'p5', 'p6', 'p7']",
    "MODEL__RPN__POST_NMS_TOPK_TRAIN": 50,
    "MODEL__RPN__POST_NMS_TOPK_TEST": 20,
}


def register(data_root: Path) -> None:
    """Make the digits below the folder known as runs_train and runs_val."""
    for part in ("train", "val"):
        if f"runs_{part}" in DatasetCatalog:
            DatasetCatalog.remove(f"runs_{part}")
        digits = data_root / "digits"
        annotations = digits / "annotations" / f"{part}.json"
        register_coco_instances(f"runs_{part}", {}, str(annotations), str(digits / part))


def run_cfg(output: Path, **overrides: object) -> CfgNode:
    """The config of a small run; keys are written with ``__`` for the dot."""
    values = {**OVERRIDES, "OUTPUT_DIR": output}
    values.update({key.replace("__", "."): value for key, value in overrides.items()})
    words = [str(word) for pair in values.items() for word in pair]
    return load_config(ROOT / "configs" / "Base-FSAF-small.yaml", words)


def run_trainer(cfg: CfgNode, *, resume: bool = False) -> Trainer:
    """A trainer that is ready to train."""
    torch.set_num_threads(1)
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Copies of all that the model holds."""
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def replay(capsys, *words: object) -> str:
    """What tools/replay_step.py says."""
    tool = runpy.run_path(str(ROOT / "tools" / "replay_step.py"))
    before = random_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["replay_step.py", *map(str, words)])
        capsys.readouterr()
        tool["main"]()
    set_random_state(before)
    return capsys.readouterr().out
