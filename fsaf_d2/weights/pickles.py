"""Pickles of strangers, read as arrays alone once they were looked through."""

from __future__ import annotations

import collections
import math
import pickle
import re
from collections.abc import Callable

import numpy as np

from .pickle_checks import Refused, refused_name

# NumPy's own limit is 64 or less.
_MAX_DIMENSIONS = 64


class ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and plain containers, as Python 2 and 3 with any NumPy have written them."""

    def find_class(self, module: str, name: str) -> object:
        try:
            return _PICKLE_NAMES[re.sub(r"^numpy\.core\b", "numpy._core", module), name]
        except KeyError:
            raise refused_name(module, name) from None


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
    if len(shape) > _MAX_DIMENSIONS or math.prod(shape) * dtype.dtype.itemsize != len(content):
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
def _encode(text: str, encoding: str = "utf-8") -> bytes:
    return text.encode(encoding)


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
