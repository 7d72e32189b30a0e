"""Checkpoints to predict with, and what to predict on."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from runs import run_cfg

from fsaf_d2.training import Trainer

NAMES = ["cat", "dog", "bird"]
# Deep enough for random weights to tell places of an image apart.
RESNET = {
    "MODEL__BACKBONE__NAME": "build_resnet_fpn_p6p7_backbone",
    "MODEL__RESNETS__STEM_OUT_CHANNELS": 8,
    "MODEL__RESNETS__RES2_OUT_CHANNELS": 16,
    "MODEL__RESNETS__WIDTH_PER_GROUP": 4,
    "MODEL__RESNETS__NORM": "BN",
}


def tiny_run(output: Path, **overrides: object) -> CfgNode:
    """The config of a small model of three classes."""
    options = {**RESNET, "MODEL__RETINANET__NUM_CLASSES": 3, **overrides}
    return run_cfg(output, **options)


def content_of(output: Path, **overrides: object) -> dict:
    """A checkpoint of a model that finds something in every image."""
    torch.manual_seed(0)
    cfg = tiny_run(output, **overrides)
    model = Trainer.build_model(cfg)
    for name, branch in model.branches.items():
        branch.cls_score.weight.data.mul_(40)
        branch.cls_score.bias.data.fill_(-5 if name == "anchor" else -3)
    return {"model": model.state_dict(), "config": cfg.dump(), "class_names": NAMES}


MORE = {
    "category_ids": [3, 7, 20],
    "thresholds": {"cat": 0.35, "dog": 0.4, "bird": 0.5},
    "input_format": "BGR",
}


def photo(height: int = 90, width: int = 120, seed: int = 0) -> np.ndarray:
    """Smooth colours with sharp edges, BGR."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(height // 10, 1), max(width // 10, 1), 3), dtype=np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    image[height // 4 : height // 2, width // 5 : width // 2] = rng.integers(0, 256, 3)
    return image


def write_video(file: Path, count: int, size=(96, 128), rate: float = 10.0, codec="mp4v") -> Path:
    """A video of so many different frames."""
    height, width = size
    writer = cv2.VideoWriter(
        str(file), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), rate, (width, height)
    )
    assert writer.isOpened()
    for index in range(count):
        writer.write(photo(height, width, index))
    writer.release()
    return file
