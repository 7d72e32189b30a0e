"""ONNX files run in a process of their own, within limits of memory and time.

An ONNX file is data, but a few numbers in it can ask for any memory and any time, and what is wrong
in the runtime would end the whole program.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
from torch import Tensor, get_num_threads

from ..texts import as_line
from . import onnx_runner
from .sidecar import ENTRY

NEEDS_ONNX = (
    "{what} ONNX files needs the packages onnx and onnxruntime ({error}): pip install onnx "
    "onnxruntime, or this project with its extra 'export'."
)
# Of memory: for whatever file; for each byte of it, three times what reading it, parsing it twice,
# copying and packing it take; for each pixel of a batch, several times what the largest of
# networks takes; for a thread.
_BYTES, _BYTES_PER_BYTE, _BYTES_PER_PIXEL, _BYTES_PER_THREAD = 5 << 28, 14, 1 << 14, 1 << 24
# Of seconds: likewise; for a pixel a hundred times what a ResNet-50 takes on one core; and for the
# square of the operators, which opening them takes.
_SECONDS, _SECONDS_PER_BYTE, _SECONDS_PER_PIXEL, _SECONDS_PER_PAIR = 3.0, 5e-8, 5e-4, 7e-8
# All branches joined in one detector have 20400.
MAX_OPERATORS = 25_000
# So many times what may be computed is waited for, where other processes compute as well.
_PATIENCE = 10
# Of all that is answered at once: a hundred times of what is not suppressed in 8 images.
_MAX_ANSWER = 1 << 28
# As onnxruntime says it.
_OUT_OF_MEMORY = ("bad_alloc", "Failed to allocate", "bad allocation")


class OnnxProgram:
    """What an ONNX file computes; to be called with images and sizes.

    Attributes:
        text: what the file says of itself, "" if nothing.
    """

    def __init__(self, path: str, trust: bool = False) -> None:
        """Start a process and have it open the file.

        Args:
            path: of the file.
            trust: whether it may have operators that no export of this project has.

        Raises:
            ValueError: the file is broken, none of this project's, or takes too much.
            ImportError: a package is missing.
        """
        for package in ("onnx", "onnxruntime"):
            if find_spec(package) is None:
                raise ImportError(
                    NEEDS_ONNX.format(what="Running", error=f"No module named '{package}'")
                )
        self._path, self._lock = path, threading.Lock()
        self._num_bytes, self._threads = os.path.getsize(path), get_num_threads()
        self._process = _start(path, self._threads, trust)
        weakref.finalize(self, _end, self._process)
        started, _ = self._receive(math.inf, f"{sys.executable} cannot be started for '{path}'.")
        if "missing" in started:
            raise ImportError(NEEDS_ONNX.format(what="Running", error=started["missing"]))
        about, _ = self._ask()
        self.text = str(about["texts"].get(ENTRY, ""))
        if about["nodes"] > MAX_OPERATORS:
            raise ValueError(
                f"'{path}' is refused: it has {about['nodes']} operators, more than the "
                f"{MAX_OPERATORS} that any export of this project has."
            )
        self._ask(seconds=_SECONDS_PER_PAIR * about["nodes"] ** 2)

    def __call__(self, images: Tensor, sizes: Tensor) -> list[np.ndarray]:
        """Run the file; see :class:`.export.program.DetectionProgram`.

        Raises:
            ValueError: it cannot be run, or takes or gives too much.
        """
        pixels = len(images) * images.shape[2] * images.shape[3]
        answer, outputs = self._ask([images.numpy(), sizes.numpy()], pixels)
        if "strange" in answer:
            raise ValueError(
                f"'{self._path}' gives other outputs than {', '.join(onnx_runner.OUTPUTS)}."
            )
        if "many" in answer:
            raise ValueError(
                f"'{self._path}' gives more than {_MAX_ANSWER} bytes of detections. Export the "
                "detector again."
            )
        return outputs

    def _ask(
        self, arrays: Sequence[np.ndarray] = (), pixels: int = 0, seconds: float = 0.0
    ) -> tuple[dict, list[np.ndarray]]:
        """Ask for something, which may take memory and time in proportion to file and pixels."""
        memory = _BYTES + _BYTES_PER_BYTE * self._num_bytes + _BYTES_PER_PIXEL * pixels
        memory += _BYTES_PER_THREAD * self._threads
        seconds += _SECONDS + _SECONDS_PER_BYTE * self._num_bytes + _SECONDS_PER_PIXEL * pixels
        too_much = f"'{self._path}' cannot be run: it takes more than {memory / 2**30:.1f} GiB"
        with self._lock:
            # That the process has ended is seen where it is to answer.
            with contextlib.suppress(OSError):
                limits = {"memory": memory, "seconds": seconds * self._threads}
                question = {**limits, "most": _MAX_ANSWER}
                onnx_runner.write_message(self._process.stdin, question, arrays)
            answer, outputs = self._receive(seconds, f"{too_much} of memory, or ends the runtime.")
        error = as_line(str(answer.get("error", "")))
        if any(words in error for words in _OUT_OF_MEMORY):
            raise ValueError(f"{too_much} of memory. Export the detector again.")
        if error:
            raise ValueError(error)
        return answer, outputs

    def _receive(self, seconds: float, otherwise: str) -> tuple[dict, list[np.ndarray]]:
        """Wait for an answer; ``otherwise`` is said where there is none."""
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            self._process.kill()

        timer = threading.Timer(min(_PATIENCE * seconds, threading.TIMEOUT_MAX), end)
        timer.daemon = True
        timer.start()
        try:
            return onnx_runner.read_message(self._process.stdout, _MAX_ANSWER)
        except EOFError as error:
            self._process.kill()
            if is_late.is_set() or self._process.wait() == -getattr(signal, "SIGXCPU", 0):
                otherwise = (
                    f"'{self._path}' cannot be run: it takes more than {seconds:.0f} s. Export the "
                    "detector again."
                )
            raise ValueError(otherwise) from error
        finally:
            timer.cancel()


def _start(path: str, threads: int, trust: bool) -> subprocess.Popen:
    """Start a process that waits to be asked for this file."""
    # It finds the packages that this process finds.
    paths = os.pathsep.join(os.path.abspath(folder) for folder in sys.path if folder)
    environment = {**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, onnx_runner.__file__, path, str(threads), "trusted" if trust else ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            stream.close()
