"""Detectors in files of ONNX and TorchScript; neither file nor sidecar is trusted.

Letters: N images; D detections of an image; K classes; L levels.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..commands.calls import call
from ..inference.candidates import NONE, Candidates, resized, to_instances
from ..inference.suppression import Suppression
from ..regular_files import open_regular
from ..weights.pickle_checks import Refused
from ..weights.torch_archives import require_one_end
from .detector import Detector
from .onnx_process import OnnxProgram
from .onnx_runner import OUTPUTS, first_line
from .sidecar import ENTRY, MAX_BYTES, Sidecar, read_sidecar, sidecar_file

Kind = Literal["onnx", "torchscript"]
# (N, 3, H, W) and (N, 2) -> (N, D, 4) and four times (N, D).
Program = Callable[[Tensor, Tensor], Sequence[Tensor]]
# Of an image that still has to be suppressed, which takes the square of it in time; so many more
# than 10000 of each of 5 levels have no use.
MAX_CANDIDATES = 50_000
# Of a box's corners, in pixels.
MAX_PLACE = 1e9
# What a file is tried with before it is used, in pixels a side.
TRIAL = 64


def kind_of(path: str | os.PathLike[str]) -> Kind | None:
    """Which kind of exported detector a file is, by its contents; None for others, or for none."""
    if not os.path.isfile(path):
        return None
    with open_regular(path) as file:
        head = file.read(9)
        # The length of safetensors' header may begin so, too.
        if head[4:] == b"\0\0\0\0{":
            return None
        # The version of the format, which stands first.
        if head[:1] == b"\x08" or str(path).endswith(".onnx"):
            return "onnx"
        try:
            require_one_end(file)
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, Refused, NotImplementedError, ValueError):
            return None
    return "torchscript" if any(name.endswith("/constants.pkl") for name in names) else None


def load_exported(
    path: str | os.PathLike[str],
    kind: Kind,
    *,
    batch_size: int,
    max_pixels: int,
    trust: bool,
) -> Detector:
    """Load an exported detector, which runs on the CPU.

    What is known of it is read from the sidecar beside the file or, where there is none, from the
    copy in the file.

    Args:
        path: of the file.
        kind: of the file, see :func:`kind_of`.
        batch_size: images that pass the network together at the most.
        max_pixels: files of more pixels are not decoded.
        trust: run a TorchScript file, which is code, and any operators of ONNX.

    Raises:
        ValueError: file or sidecar is broken or not of this project, or the file is code and
            ``trust`` is not set; the message names it.
        ImportError: a package that ONNX needs is missing.
    """
    path = os.fspath(path)
    open_program = _open_onnx if kind == "onnx" else _open_torchscript
    program, copy = open_program(path, trust)
    sidecar = _sidecar_of(path, copy)
    model = ExportedModel(program, sidecar, path)
    model([{"image": torch.zeros(3, TRIAL, TRIAL), "height": TRIAL, "width": TRIAL}])
    return Detector(
        model,
        class_names=sidecar.class_names,
        category_ids=sidecar.category_ids,
        thresholds=sidecar.thresholds,
        level_names=sidecar.level_names,
        branch_names=sidecar.branch_names,
        short_side=sidecar.short_side,
        resize=sidecar.resize,
        max_side=sidecar.max_side,
        size_divisibility=sidecar.size_divisibility,
        input_format=sidecar.input_format,
        max_pixels=max_pixels,
        size_keys="short_side and max_side",
        batch_size=batch_size,
        nms_thresh=sidecar.nms_thresh,
    )


def _sidecar_of(path: str, copy: str | bytes) -> Sidecar:
    """What is said beside a file or, if nothing is, in it."""
    file = sidecar_file(path)
    if file.is_file():
        with open_regular(file) as stream:
            text, source = stream.read(MAX_BYTES + 1), os.fspath(file)
        if len(text) > MAX_BYTES:
            raise ValueError(
                f"'{file}' has more than {MAX_BYTES} bytes: export the detector again."
            )
    elif copy:
        text, source = copy, path
    else:
        raise ValueError(
            f"'{path}' says nothing of its classes, and there is no '{file}' beside it: it was not "
            f"made by '{call('export')}', which writes both."
        )
    return read_sidecar(text, source)


class ExportedModel(nn.Module):
    """Takes and gives what a detector of detectron2 does."""

    def __init__(self, program: Program, sidecar: Sidecar, source: str) -> None:
        """
        Args:
            program: what runs.
            sidecar: of it.
            source: its file, for messages.
        """
        super().__init__()
        self.device = torch.device("cpu")
        self._program, self._sidecar, self._source = program, sidecar, source

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Detect, as a detector of detectron2 does.

        Raises:
            ValueError: the file gives something else than detections, or cannot be run.
        """
        images = [x["image"] for x in batched_inputs]
        sizes = [tuple(image.shape[1:]) for image in images]
        batch = torch.zeros(len(images), 3, *np.max(sizes, axis=0).tolist())
        for place, image in zip(batch, images):
            place[:, : image.shape[1], : image.shape[2]] = image
        outputs = self._checked(self._program(batch, torch.tensor(sizes)), len(images))
        wanted = [(given["height"], given["width"]) for given in batched_inputs]
        found = self._detections(outputs)
        found = resized(found, torch.tensor(sizes), torch.tensor(wanted))
        return [{"instances": instances} for instances in to_instances(found, wanted)]

    def _detections(self, outputs: Candidates) -> Candidates:
        sidecar = self._sidecar
        found = outputs._replace(scores=outputs.scores.masked_fill(outputs.scores <= 0, NONE))
        if sidecar.with_nms:
            return found
        suppression = Suppression(sidecar.nms_thresh, sidecar.max_detections, sidecar.nms_per_level)
        return suppression([found])

    def _checked(self, outputs: Sequence[Tensor], num_images: int) -> Candidates:
        """Make sure that outputs are what they should be, whatever the file is."""
        sidecar = self._sidecar
        wrong = f"'{self._source}' gives other outputs than {', '.join(OUTPUTS)}."
        try:
            outputs = [torch.as_tensor(x) for x in outputs]
        except TypeError as error:
            raise ValueError(wrong) from error
        whole = [torch.int64, torch.int32]
        types = [[torch.float32, torch.float64, torch.float16]] * 2 + [whole] * 2
        types.append([*whole, torch.bool])
        count = outputs[1].shape[-1] if len(outputs) == len(OUTPUTS) and outputs[1].ndim else -1
        expected = [(num_images, count, 4), *[(num_images, count)] * 4]
        if [tuple(x.shape) for x in outputs] != expected or not all(
            x.dtype in known for x, known in zip(outputs, types)
        ):
            raise ValueError(wrong)
        most = sidecar.max_detections if sidecar.with_nms else MAX_CANDIDATES
        if count > most:
            raise ValueError(
                f"'{self._source}' gives {count} detections of an image, but there are {most} at "
                "the most. Export the detector again."
            )
        boxes, scores, classes, levels, branches = outputs
        right = (boxes.abs() <= MAX_PLACE).all(dim=2) & (scores <= 1)
        for numbers, names in (
            (classes, sidecar.class_names),
            (levels, sidecar.level_names),
            (branches.long(), sidecar.branch_names),
        ):
            right &= (numbers >= 0) & (numbers < len(names))
        # NaN is no empty place.
        if not right[~(scores <= 0)].all():
            raise ValueError(
                f"'{self._source}' does not fit its sidecar: a box, score, class, level or branch "
                "is out of range. Export the detector again."
            )
        numbers = (field.long() for field in (classes, levels, branches))
        return Candidates(boxes.float(), scores.float(), *numbers)


def _open_onnx(path: str, trust: bool) -> tuple[Program, str]:
    """The program in an ONNX file and the text that it has of itself."""
    program = OnnxProgram(path, trust)
    return program, program.text


def _open_torchscript(path: str, trust: bool) -> tuple[Program, str]:
    """The program in a TorchScript file and the text that it has of itself."""
    if not trust:
        raise ValueError(
            f"'{path}' is a TorchScript program: it is code, which runs with your rights. "
            "--trust-weights runs it, for files of people whom you trust; in Python, trust=True. "
            "An ONNX file needs no trust."
        )
    texts = {ENTRY: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            program = torch.jit.load(path, map_location="cpu", _extra_files=texts)
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(f"'{path}' is no TorchScript program ({first_line(error)}).") from error

    def run(images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        try:
            return program(images, sizes)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"'{path}' cannot be run ({first_line(error)}).") from error

    text = texts[ENTRY]
    return run, text.decode("utf-8", "replace") if isinstance(text, bytes) else text
