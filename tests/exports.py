"""Exported detectors for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from predictions import MORE, content_of

from fsaf_d2 import load_detector
from fsaf_d2.export.writing import ENDINGS, write_program, write_sidecar
from fsaf_d2.prediction import Detector

KINDS = list(ENDINGS)


class Exported(NamedTuple):
    """A detector and its file, which has a sidecar beside it."""

    detector: Detector
    file: Path

    def load(self) -> Detector:
        """The detector in the file."""
        return load_detector(self.file, trust=self.file.suffix != ".onnx")


def export(folder: Path, kind: str, *, with_nms: bool = True, **overrides: object) -> Exported:
    """Export a tiny detector of three classes; keys are written with ``__`` for the dot."""
    weights = folder / "model.pth"
    more = {**MORE, "input_format": overrides.get("INPUT__FORMAT", "BGR")}
    torch.save({**content_of(folder, **overrides), **more}, weights)
    detector = load_detector(weights, device="cpu")
    file = folder / f"model{ENDINGS[kind]}"
    write_program(detector, file, kind, with_nms=with_nms)
    write_sidecar(detector, file, with_nms=with_nms)
    return Exported(detector, file)
