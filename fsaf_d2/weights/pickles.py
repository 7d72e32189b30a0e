"""Pickles of strangers: looked through before they are read, and read as arrays alone."""

from __future__ import annotations

import collections
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import BinaryIO

import numpy as np


class Refused(Exception):
    """Why a file is refused, without its name."""


def check_pickle(file: BinaryIO, size: int, admitted: re.Pattern[str] | None) -> None:
    """Make sure that a pickle names nothing else, and claims no more memory than its size.

    Args:
        file: at the pickle's start; it is read to its end.
        size: of the file, in bytes.
        admitted: ``module name`` of what may be imported; None to leave that to the unpickler.
    """
    # What is longer than the rest of the file pickletools refuses itself.
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST") and admitted and not admitted.fullmatch(argument):
            raise _refused_name(*argument.split(" ", 1))
        # The unpickler makes a table, or reads at once, as much as these say.
        if opcode.name.endswith(("PUT", "FRAME")) and int(argument) > size:
            raise Refused("it is cut off, or claims more memory than its size explains.")


def _refused_name(module: str, name: str) -> Refused:
    return Refused(
        f"it imports {f'{module}.{name}'!r:.99}, which weights do not need and which may run code. "
        "--trust-weights runs it, for files of people whom you trust."
    )


class ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and plain containers, as Python 2 and 3 with any NumPy have written them."""

    def find_class(self, module: str, name: str) -> object:
        try:
            return _PICKLE_NAMES[re.sub(r"^numpy\.core\b", "numpy._core", module), name]
        except KeyError:
            raise _refused_name(module, name) from None


class _Dtype:
    """Stands in for ``numpy.dtype``, whose state could make numbers pointers: numbers only."""

    def __init__(self, code: str, *_: object) -> None:
        if not (isinstance(code, str) and re.fullmatch(r"[biuf]\d{1,2}", code)):
            raise Refused(f"it holds an array of {code!r:.99}: only numbers are read.")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        # version, byte order, then what numbers do not have
        if any(part is not None for part in state[2:5]):
            raise Refused("it holds an array of records: only numbers are read.")
        self.dtype = self.dtype.newbyteorder(state[1])


class Array(np.ndarray):
    """An array that is filled with what it has in the file."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran_order, content = state
        super().__setstate__((1, *_checked(shape, dtype, content, fortran_order)))


def _checked(shape: tuple, dtype: _Dtype, content: bytes | str, fortran_order: bool) -> tuple:
    # Python 2's bytes were texts.
    content = content.encode("latin1") if isinstance(content, str) else bytes(content)
    if math.prod(shape) * dtype.dtype.itemsize != len(content):
        raise Refused(f"it claims an array of {shape!r:.99}, but has {len(content)} bytes of it.")
    return tuple(shape), dtype.dtype, bool(fortran_order), content


class _Maker:
    """A function that a pickle may call; of a plain one it could set the defaults."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable) -> None:
        self._function = function

    def __call__(self, *args: object) -> object:
        return self._function(*args)

    def __setstate__(self, _: object) -> None:
        raise Refused("it changes what reads it.")


@_Maker
def _reconstruct(*_: object) -> Array:
    return np.ndarray.__new__(Array, 0, np.int8)


@_Maker
def _frombuffer(content: bytes, dtype: _Dtype, shape: tuple, order: str) -> Array:
    array = _reconstruct()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


@_Maker
def _scalar(dtype: _Dtype, content: bytes | str) -> np.generic:
    _, dtype, _, content = _checked((), dtype, content, False)
    return np.frombuffer(content, dtype)[0]


@_Maker
def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"it holds bytes in the encoding {encoding!r:.99}.")
    return text.encode("latin1")


@_Maker
def _empty() -> bytes:
    return b""


_PICKLE_NAMES: dict[tuple[str, str], Callable | str] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty,
    # Only ever an argument: called, it would allocate what it is told to.
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Dtype,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
}
