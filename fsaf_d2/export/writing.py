"""Detectors as files of ONNX and TorchScript that any program can run."""

from __future__ import annotations

import copy
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ..detectors.contract import contract_of
from ..prediction.detector import Detector
from ..prediction.exported import Kind
from ..prediction.onnx_process import NEEDS_ONNX
from ..prediction.onnx_runner import INPUTS, OUTPUTS
from ..prediction.said_fields import FORMAT
from ..prediction.sidecar import ENTRY, Sidecar, read_sidecar, sidecar_file
from .program import DetectionProgram

ENDINGS = {"onnx": ".onnx", "torchscript": ".torchscript"}
# NonMaxSuppression and ScatterND as they are used here, and the last that PyTorch's tracing knows
# in full.
OPSET = 17
# The operators that a program runs do not depend on the images that it is traced with.
_EXAMPLE_SIZES = [[200, 264], [180, 240]]


def describe_program(detector: Detector, *, with_nms: bool) -> Sidecar:
    """What is to be said beside a detector's program."""
    model = detector.model
    suppression = model.suppression
    return Sidecar(
        format=FORMAT,
        with_nms=with_nms,
        class_names=detector.class_names,
        category_ids=detector.category_ids,
        # As they are: one is the score of a detection, which counts.
        thresholds=[float(value) for value in detector.thresholds.clamp(0, 1)],
        level_names=detector.level_names,
        branch_names=list(model.traits.branch_names),
        input_format=detector.input_format,
        short_side=detector.short_side,
        resize=detector.resize,
        max_side=detector.max_side,
        size_divisibility=detector.size_divisibility,
        pixel_mean=model.pixel_mean.flatten().tolist(),
        pixel_std=model.pixel_std.flatten().tolist(),
        score_thresh=model.traits.score_threshold,
        nms_thresh=suppression.nms_thresh,
        nms_per_level=suppression.nms_per_level,
        max_detections=suppression.max_detections,
    )


def write_program(
    detector: Detector, file: str | os.PathLike[str], kind: Kind, *, with_nms: bool = True
) -> None:
    """Write a detector's program, with a copy of its sidecar in it.

    Args:
        detector: of a checkpoint, on the CPU.
        file: that is written; one that is there is replaced.
        kind: "onnx" or "torchscript".
        with_nms: whether the program suppresses; else all candidates come out of it.

    Raises:
        ImportError: the package onnx is missing.
        ValueError: the detector is an exported one, does not give candidates, or has a setting that
            no sidecar can have.
        OSError: the file cannot be written.
    """
    contract = contract_of(detector.model)
    if contract is None:
        raise ValueError("An exported detector cannot be exported again: take its checkpoint.")
    if contract.suppression is None:
        raise ValueError(f"{contract.name} cannot be exported: {contract.lacks('suppression')}")
    program = DetectionProgram(detector.model, with_nms=with_nms)
    text = describe_program(detector, with_nms=with_nms).to_text()
    read_sidecar(text, "The sidecar of this detector")
    sizes = torch.tensor(_EXAMPLE_SIZES)
    example = (torch.zeros(len(sizes), 3, *sizes.amax(dim=0).tolist()), sizes)
    write = _write_onnx if kind == "onnx" else _write_torchscript
    with torch.no_grad(), warnings.catch_warnings():
        # Of what is recorded as a constant: nothing that depends on images, as tests show.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Exporting aten::index operator", UserWarning)
        write(program, example, file, text)


def write_sidecar(detector: Detector, program: Path, *, with_nms: bool) -> Path:
    """Write what is said beside a program's file; where it lies."""
    file = sidecar_file(program)
    part = file.with_name(f".{file.name}.part")
    part.write_text(describe_program(detector, with_nms=with_nms).to_text(), encoding="utf-8")
    part.replace(file)
    return file


def _write_torchscript(
    program: DetectionProgram, example: tuple[Tensor, Tensor], file: os.PathLike[str], text: str
) -> None:
    # Who runs the file is to get no gradients.
    program = copy.deepcopy(program).requires_grad_(False)
    traced = torch.jit.trace(program, example, check_trace=False)
    torch.jit.save(traced, os.fspath(file), _extra_files={ENTRY: text})


def _write_onnx(
    program: DetectionProgram, example: tuple[Tensor, Tensor], file: os.PathLike[str], text: str
) -> None:
    try:
        import onnx
    except ImportError as error:
        raise ImportError(NEEDS_ONNX.format(what="Writing", error=error)) from error
    axes = {"images": {0: "images", 2: "height", 3: "width"}, "sizes": {0: "images"}}
    axes |= {name: {0: "images", 1: "detections"} for name in OUTPUTS}
    # Tracing, as with TorchScript: torch.export does not take sizes that depend on what is found.
    torch.onnx.export(
        program,
        example,
        os.fspath(file),
        dynamo=False,
        opset_version=OPSET,
        input_names=list(INPUTS),
        output_names=list(OUTPUTS),
        dynamic_axes=axes,
    )
    model = onnx.load_model(os.fspath(file))
    model.producer_name = "fsaf_d2"
    model.doc_string = "Detector of fsaf_d2; metadata: classes, preprocessing, thresholds."
    onnx.helper.set_model_props(model, {ENTRY: text})
    onnx.checker.check_model(model)
    onnx.save_model(model, os.fspath(file))
