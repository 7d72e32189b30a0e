"""A process that runs one ONNX file, which is not trusted; nothing of it is opened elsewhere.

It is started as a script by :class:`.onnx_process.OnnxProgram`, and needs neither torch nor the
rest of this project. The system refuses it more memory than a request says, and ends it when it
has computed longer. It answers each request, a line of JSON with raw
numbers behind it, in the same form.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO

import numpy as np

INPUTS = ("images", "sizes")
OUTPUTS = ("boxes", "scores", "classes", "levels", "branches")
# What export writes for all branches and pyramids, and for networks of timm. None of them has a
# graph in it. tests/export/test_operators.py finds what is missing here, or is not needed.
OPERATORS = {
    *("Add", "And", "Cast", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "Div"),
    *("Equal", "Exp", "Expand", "Flatten", "Gather", "GatherElements", "Greater", "Identity"),
    *("InstanceNormalization", "IsInf", "IsNaN", "Less", "MatMul", "MaxPool", "Min", "Mod", "Mul"),
    *("NonMaxSuppression", "Not", "Or", "Pad", "Range", "ReduceMax", "ReduceSum", "Relu"),
    *("Reshape", "Resize", "ScatterND", "Shape", "Sigmoid", "Slice", "Softmax", "Sqrt", "Sub"),
    *("Tile", "TopK", "Transpose", "Unsqueeze", "Where"),
}
OF_TIMM = {
    *("AveragePool", "BatchNormalization", "Ceil", "Cos", "CumSum", "Erf", "HardSigmoid"),
    *("HardSwish", "LayerNormalization", "LeakyRelu", "Pow", "ReduceL2", "ReduceMean", "Sin"),
    *("Split", "Squeeze"),
}
# Protocol buffers have a limit there.
MAX_FILE = 2**31 - 1
# Of all names that are said in messages.
_MAX_LETTERS = 199


def refuse_unless_plain(model: object, path: str, trust: bool = False) -> None:
    """Make sure that a model is of our operators alone and names no other files.

    Args:
        model: onnx.ModelProto.
        path: its file, for messages.
        trust: whether it may have any operators.

    Raises:
        ValueError: it has functions, graphs in operators, other operators, or weights in files.
    """
    if _names_files(model):
        raise ValueError(
            f"'{path}' is refused: it has weights in other files, whose names may lead anywhere. "
            "Those of this project's export have none."
        )
    if trust:
        return
    strange = ["functions"] if model.functions or model.training_info else []
    strange += ["sparse tensors"] if model.graph.sparse_initializer else []
    for node in model.graph.node:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        if name not in OPERATORS | OF_TIMM:
            strange.append(f"the operator {name!r:.99}")
        elif any(map(_holds_more, node.attribute)):
            strange.append(f"an operator {name!r} with a program in it")
    if strange:
        raise ValueError(
            f"'{path}' is refused: it has {strange[0]}, which no export of this "
            "project has. For own branches, and files of people whom you trust, there "
            "is --trust-weights; in Python, trust=True."
        )


def _holds_more(attribute: object) -> bool:
    """Whether an operator's attribute is a program, or a tensor that is larger than its numbers."""
    return attribute.HasField("g") or attribute.graphs or attribute.HasField("sparse_tensor")


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


def read_model(path: str, trust: bool = False) -> tuple[bytes, dict]:
    """Read and check a file; see :func:`refuse_unless_plain`.

    Returns:
        its bytes; and what is to be known of them: the ``texts`` that it holds, by key, and its
        ``nodes``, the number of its operators.

    Raises:
        ValueError: it is no ONNX model, or not one of this project's; the message names it.
    """
    import onnx

    if os.path.getsize(path) > MAX_FILE:
        raise ValueError(f"'{path}' has more than {MAX_FILE} bytes, which no ONNX model has.")
    with open(path, "rb") as file:
        data = file.read()
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:
        raise ValueError(f"'{path}' is no ONNX model ({first_line(error)}).") from error
    refuse_unless_plain(model, path, trust)
    texts = {entry.key: entry.value for entry in model.metadata_props}
    return data, {"texts": texts, "nodes": len(model.graph.node)}


def open_model(path: str, data: bytes, threads: int) -> Callable[[list], list]:
    """Make a model ready.

    Args:
        path: of its file, for messages.
        data: of :func:`read_model`.
        threads: that one operator may use.

    Returns:
        what runs it on images and sizes.

    Raises:
        ValueError: the runtime does not take it, or it has other inputs and outputs.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what is wrong is said by the error
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(f"onnxruntime refuses '{path}' ({first_line(error)}).") from error
    _require_names(path, INPUTS, [x.name for x in session.get_inputs()])
    names = [x.name for x in session.get_outputs()]
    # Before version 0.2 the last one had another name.
    last = [name for name in names if name not in OUTPUTS]
    wanted = [*OUTPUTS[:-1], *last] if len(last) == 1 else list(OUTPUTS)
    _require_names(path, wanted, names)

    def run(given: list[np.ndarray]) -> list[np.ndarray]:
        try:
            return session.run(wanted, dict(zip(INPUTS, given)))
        except Exception as error:
            raise ValueError(f"'{path}' cannot be run ({first_line(error)}).") from error

    return run


def _require_names(path: str, expected: Sequence[str], found: Sequence[str]) -> None:
    if sorted(expected) != sorted(found):
        raise ValueError(
            f"'{path}' was not made by this project's export: it has "
            f"{', '.join(map(repr, found)):.{_MAX_LETTERS}} in place of {', '.join(expected)}."
        )


def first_line(error: Exception) -> str:
    """An error's type and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.300}"


def write_message(stream: BinaryIO, content: dict, arrays: Sequence[np.ndarray] = ()) -> None:
    """Write a line of JSON and numbers behind it."""
    about = [[x.dtype.str, x.shape] for x in arrays]
    stream.write(json.dumps({**content, "arrays": about}).encode() + b"\n")
    for array in arrays:
        stream.write(np.ascontiguousarray(array).data)
    stream.flush()


def read_message(stream: BinaryIO, max_bytes: int) -> tuple[dict, list[np.ndarray]]:
    """Read what :func:`write_message` has written.

    Args:
        max_bytes: of the line, and of the numbers.

    Raises:
        EOFError: it breaks off, or is something else.
    """
    try:
        content = json.loads(stream.readline(max_bytes))
        about = [(np.dtype(kind), tuple(shape)) for kind, shape in content.pop("arrays")]
        if sum(kind.itemsize * math.prod(shape) for kind, shape in about) > max_bytes:
            raise EOFError
        arrays = [_read_array(stream, *one) for one in about]
    except (ValueError, TypeError, KeyError, AttributeError, MemoryError) as error:
        raise EOFError from error
    return content, arrays


def _read_array(stream: BinaryIO, kind: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(shape, kind)
    if array.nbytes and stream.readinto(array.reshape(-1).view(np.uint8)) != array.nbytes:
        raise EOFError
    return array


def limit_memory(num_bytes: int) -> None:
    """Have the system refuse memory above this, where it can; a limit is never lowered."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        if hard != resource.RLIM_INFINITY:
            num_bytes = min(num_bytes, hard)
        if soft == resource.RLIM_INFINITY or soft < num_bytes:
            resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, hard))


def limit_time(seconds: float) -> None:
    """Have the system end this process once it has computed so long from now on, where it can.

    Unlike the time that passes, that does not grow where others compute as well.
    """
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        end = math.ceil(time.process_time() + seconds)
        if hard != resource.RLIM_INFINITY:
            end = min(end, hard)
        resource.setrlimit(resource.RLIMIT_CPU, (end, hard))


class _Answers:
    """What is answered: first of the file, then that it is ready, then what it computes."""

    def __init__(self, path: str, threads: int, trust: bool) -> None:
        self._path, self._threads, self._trust = path, threads, trust
        self._data = self._run = None

    def to(self, request: dict, given: list) -> tuple[dict, list]:
        """The answer to a request with numbers."""
        if self._run:
            outputs = self._run(given)
            if not all(isinstance(x, np.ndarray) and x.dtype.kind in "fiub" for x in outputs):
                return {"strange": True}, []
            is_much = sum(x.nbytes for x in outputs) > request["most"]
            return ({"many": True}, []) if is_much else ({}, outputs)
        if self._data is None:
            self._data, about = read_model(self._path, self._trust)
            return about, []
        self._run = open_model(self._path, self._data, self._threads)
        self._data = b""
        return {}, []


def main(path: str, threads: int, trust: bool) -> None:
    """Open a file and run it as it is asked to, until nothing more is asked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # Libraries may say something, which is no answer.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        # Whatever time they take, it is no file's doing.
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        write_message(answers, {"missing": str(error)})
        return
    write_message(answers, {})
    answered = _Answers(path, threads, trust)
    while True:
        try:
            request, given = read_message(questions, sys.maxsize)
        except EOFError:
            return
        limit_memory(request["memory"])
        limit_time(request["seconds"])
        try:
            answer, outputs = answered.to(request, given)
        except (ValueError, OSError) as error:
            answer, outputs = {"error": str(error)}, []
        write_message(answers, answer, outputs)


if __name__ == "__main__":
    # The folder of this file, whose other files are no modules of that name.
    del sys.path[0]
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "trusted")
