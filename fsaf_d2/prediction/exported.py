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

from ..inference.candidates import NONE, Candidates, resized, to_instances
from ..inference.suppression import Suppression
from .detector import Detector
from .sidecar import ENTRY, MAX_BYTES, Sidecar, read_sidecar, sidecar_file

Kind = Literal["onnx", "torchscript"]
INPUTS = ("images", "sizes")
OUTPUTS = ("boxes", "scores", "classes", "levels", "branches")
# (N, 3, H, W) and (N, 2) -> (N, D, 4) and four times (N, D).
Program = Callable[[Tensor, Tensor], Sequence[Tensor]]
NEEDS_ONNX = (
    "{what} ONNX files needs the packages onnx and onnxruntime ({error}): pip install onnx "
    "onnxruntime, or this project with its extra 'export'."
)


def kind_of(path: str | os.PathLike[str]) -> Kind | None:
    """Which kind of exported detector a file is, by its contents; None for others, or for none."""
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        head = file.read(9)
        # The length of safetensors' header may begin so, too.
        if head[4:] == b"\0\0\0\0{":
            return None
        # The version of the format, which stands first.
        if head[:1] == b"\x08" or str(path).endswith(".onnx"):
            return "onnx"
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError):
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
        trust: run a TorchScript file, which is code.

    Raises:
        ValueError: file or sidecar is broken or not of this project, or the file is code and
            ``trust`` is not set; the message names it.
        ImportError: a package that ONNX needs is missing.
    """
    path = os.fspath(path)
    open_program = _open_onnx if kind == "onnx" else _open_torchscript
    program, copy = open_program(path, trust)
    file = sidecar_file(path)
    if file.is_file():
        with open(file, "rb") as stream:
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
            "made by tools/export.py, which writes both."
        )
    sidecar = read_sidecar(text, source)
    return Detector(
        ExportedModel(program, sidecar, path),
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
    )


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
        boxes, scores, classes, levels, branches = outputs
        there = scores > 0
        right = torch.isfinite(boxes).all(dim=2) & (scores <= 1)
        for numbers, names in (
            (classes, sidecar.class_names),
            (levels, sidecar.level_names),
            (branches.long(), sidecar.branch_names),
        ):
            right &= (numbers >= 0) & (numbers < len(names))
        if not right[there].all():
            raise ValueError(
                f"'{self._source}' does not fit its sidecar: a box, score, class, level or branch "
                "is out of range. Export the detector again."
            )
        numbers = (field.long() for field in (classes, levels, branches))
        return Candidates(boxes.float(), scores.float(), *numbers)


def _open_onnx(path: str, _: bool) -> tuple[Program, str]:
    """The program in an ONNX file and the text that it has of itself."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ImportError(NEEDS_ONNX.format(what="Running", error=error)) from error
    with open(path, "rb") as file:
        data = file.read()
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:
        raise ValueError(f"'{path}' is no ONNX model ({_first_line(error)}).") from error
    if _names_files(model):
        raise ValueError(
            f"'{path}' is refused: it has weights in other files, whose names may lead anywhere. "
            "Those of tools/export.py have none."
        )
    texts = {entry.key: entry.value for entry in model.metadata_props}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what is wrong is said by the error
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(f"onnxruntime refuses '{path}' ({_first_line(error)}).") from error
    _require_names(path, INPUTS, [x.name for x in session.get_inputs()])
    names = [x.name for x in session.get_outputs()]
    # Before version 0.2 the last one had another name.
    last = [name for name in names if name not in OUTPUTS]
    wanted = [*OUTPUTS[:-1], *last] if len(last) == 1 else list(OUTPUTS)
    _require_names(path, wanted, names)

    def run(images: Tensor, sizes: Tensor) -> list[np.ndarray]:
        try:
            return session.run(wanted, dict(zip(INPUTS, (images.numpy(), sizes.numpy()))))
        except Exception as error:
            raise ValueError(f"'{path}' cannot be run ({_first_line(error)}).") from error

    return run, texts.get(ENTRY, "")


def _names_files(message: object) -> bool:
    """Whether a message of ONNX, or one in it, says that its numbers lie in another file."""
    if getattr(message, "data_location", 0) == 1 or len(getattr(message, "external_data", ())):
        return True
    for field, value in message.ListFields():
        if field.message_type is not None:
            parts = [value] if hasattr(value, "ListFields") else value
            if any(map(_names_files, parts)):
                return True
    return False


def _require_names(path: str, expected: Sequence[str], found: Sequence[str]) -> None:
    if sorted(expected) != sorted(found):
        raise ValueError(
            f"'{path}' was not made by tools/export.py: it has {', '.join(map(repr, found)):.199} "
            f"in place of {', '.join(expected)}."
        )


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
        raise ValueError(f"'{path}' is no TorchScript program ({_first_line(error)}).") from error

    def run(images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        try:
            return program(images, sizes)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"'{path}' cannot be run ({_first_line(error)}).") from error

    text = texts[ENTRY]
    return run, text.decode("utf-8", "replace") if isinstance(text, bytes) else text


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.300}"
