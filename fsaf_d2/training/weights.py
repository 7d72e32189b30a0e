"""Reading weights that strangers made, without running what is in the files.

SECURITY.md says what this protects from and what not.
"""

from __future__ import annotations

import collections
import hashlib
import io
import logging
import math
import mmap
import os
import pickle
import pickletools
import re
import stat
import zipfile
from collections.abc import Callable
from typing import BinaryIO
from urllib.parse import parse_qs

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

_ZIP_START = b"PK\x03\x04"
# Behind the two bytes that name the pickle protocol, what torch wrote before it wrote archives.
_TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_TORCH_PICKLES = 5  # magic number, version, system, the checkpoint, its storages

# torch.load(weights_only=True) admits more, among it what allocates as much as it is told to.
_TORCH_NAMES = re.compile(
    r"collections (OrderedDict|Counter)|_codecs encode|(builtins|__builtin__) set"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|parameter)|torch\.nn\.parameter Parameter"
    r"|torch(\.cuda)? (?!Untyped|Typed)\w+Storage|torch (Size|device|bool|[a-z]+\d+)"
)
# As torch.hub reads names, but for those of digits alone, which are as often dates.
_HASH_IN_NAME = re.compile(r"-(?=\d*[a-f])([0-9a-f]{8,64})\.\w+$")
_SOUND_TORCH = (2, 10)


class WeightsFileError(ValueError):
    """A file of weights is broken, is of no known kind or holds more than weights."""


def load_file(path: str | os.PathLike[str], *, trust: bool = False) -> dict:
    """Read a checkpoint of torch, or a pickle of a model zoo, whatever its name ends with.

    Where the name carries the start of the file's SHA-256, as in ``resnet50-0676ba61.pth``, it is
    compared.

    Args:
        path: of a file on this machine.
        trust: read it by pickle without limits, which runs any code in it.

    Returns:
        a dict with ``model``, which maps names to tensors or arrays, and, as in detectron2,
        ``matching_heuristics`` and ``__author__`` of model-zoo files, or all else that a
        checkpoint holds.

    Raises:
        WeightsFileError: the file is not as its name says, or could do more than give weights; the
            message names it.
        OSError: there is no such file, or it cannot be read.
    """
    path = os.fspath(path)
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise WeightsFileError(f"'{path}' is not an ordinary file.")
        if os.fstat(file.fileno()).st_size == 0:
            raise WeightsFileError(f"'{path}' is empty.")
        try:
            _check_hash(path, file)
            return _load(file, trust)
        except _Refused as error:
            raise WeightsFileError(f"'{path}' is refused: {error}") from error
        except Exception as error:
            # torch advises to do without its protection first.
            reason = str(error).rpartition("WeightsUnpickler error:")[2].strip()
            first_line = reason.partition("\n")[0]
            raise WeightsFileError(
                f"'{path}' is no whole checkpoint of torch or of a model zoo "
                f"({type(error).__name__}: {first_line})."
            ) from error


class SafeCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, which reads files only by :func:`load_file`.

    Heuristics can be asked for as in detectron2's newer versions:
    ``weights.pth?matching_heuristics=True``.

    Saving is detectron2's.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, trust: bool = False, **options: object
    ) -> None:
        """Take what is to be loaded and saved.

        Args:
            model: whose weights they are.
            save_dir: the output folder.
            trust: run the code that files may hold, and say so in one line.
            options: of detectron2's checkpointer, and what else is in a checkpoint, by name.
        """
        super().__init__(model, save_dir, **options)
        self.trust = trust
        self._heuristics = False

    def load(self, path: str, *args: object, **kwargs: object) -> dict:
        """Load weights and, unless told otherwise, all else, as detectron2's method does.

        Raises:
            WeightsFileError: as :func:`load_file`.
            ValueError: what follows the question mark is not known.
        """
        path, _, query = (path or "").partition("?")
        options = parse_qs(query)
        self._heuristics = options.pop("matching_heuristics", None) == ["True"]
        if options:
            raise ValueError(f"Weights '{path}': unknown options {', '.join(options)} behind '?'.")
        return super().load(path, *args, **kwargs)

    def get_checkpoint_file(self) -> str:
        """The file that ``last_checkpoint`` names, or an empty text where there is none.

        Raises:
            WeightsFileError: it names a file that does not lie in the output folder itself.
        """
        try:
            path = super().get_checkpoint_file()
            inside = os.path.dirname(os.path.realpath(path)) == os.path.realpath(self.save_dir)
        except ValueError as error:
            path, inside = str(error), False
        if path and not inside:
            raise WeightsFileError(
                f"'{os.path.join(self.save_dir, 'last_checkpoint')}' must name a file in its own "
                f"folder, and is refused: it leads to {path!r}."
            )
        return path

    def _load_file(self, filename: str) -> dict:
        if self.trust and comm.is_main_process():
            print(f"--trust-weights: code in '{filename}' is run, whatever it does.", flush=True)
        checkpoint = load_file(filename, trust=self.trust)
        if self._heuristics:
            checkpoint["matching_heuristics"] = True
        return checkpoint


class _Refused(Exception):
    """Why a file is refused, without its name."""


def _check_hash(path: str, file: BinaryIO) -> None:
    expected = _HASH_IN_NAME.search(os.path.basename(path))
    if expected is None:
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = hashlib.sha256(content).hexdigest()
    if not found.startswith(expected[1]):
        raise _Refused(
            f"its name says that its SHA-256 starts with {expected[1]}, but it starts with "
            f"{found[: len(expected[1])]}. Fetch it again, or rename it if it is right."
        )


def _load(file: BinaryIO, trust: bool) -> dict:
    head = file.read(2 + len(_TORCH_MAGIC))
    file.seek(0)
    archive, old_torch = head.startswith(_ZIP_START), head[2:] == _TORCH_MAGIC
    if not trust:
        if archive:
            _check_archive(file)
        else:
            admitted, count = (_TORCH_NAMES, _TORCH_PICKLES) if old_torch else (None, 1)
            # Reading past the end of a mapped file allocates nothing.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                for _ in range(count):
                    _check_pickle(content, len(content), admitted)
        file.seek(0)
    if archive or old_torch:
        _warn_of_old_torch()
        return _from_torch(torch.load(file, map_location="cpu", weights_only=not trust), trust)
    unpickler = pickle.Unpickler if trust else _ArrayUnpickler
    return _from_model_zoo(unpickler(file, encoding="latin1").load(), trust)


def _from_torch(loaded: object, trust: bool) -> dict:
    _require_dict(loaded)
    if "model_state" in loaded:
        # Of pycls, as detectron2 takes it.
        weights = loaded["model_state"]
        _require_weights(weights)
        weights = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
        loaded = {"model": weights, "__author__": "pycls", "matching_heuristics": True}
    elif "model" not in loaded:
        loaded = {"model": loaded.get("state_dict", loaded)}
    if not trust:
        _require_plain(loaded)
    _require_weights(loaded["model"])
    return loaded


def _from_model_zoo(loaded: object, trust: bool) -> dict:
    _require_dict(loaded)
    if not trust:
        _require_plain(loaded)
    if not ("model" in loaded and "__author__" in loaded):
        # Of Caffe2, as detectron2 takes it: detectors have "blobs", backbones do not.
        weights = loaded.get("blobs", loaded)
        _require_dict(weights)
        weights = {k: v for k, v in weights.items() if not str(k).endswith("_momentum")}
        loaded = {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
    _require_weights(loaded["model"])
    return loaded


def _require_dict(value: object) -> None:
    if not isinstance(value, dict):
        raise _Refused(f"it holds a {type(value).__name__} where weights with names should be.")


def _require_weights(value: object) -> None:
    _require_dict(value)
    for name, weight in value.items():
        if not (isinstance(name, str) and isinstance(weight, (np.ndarray, torch.Tensor))):
            raise _Refused(f"its entry {name!r:.99} is a {type(weight).__name__}, no weights.")


def _require_plain(loaded: dict) -> None:
    """Make sure that nothing but containers, numbers, texts, arrays and tensors was read.

    Arrays in dicts and lists become NumPy's own.
    """
    plain = (int, float, complex, str, bytes, bytearray, np.generic, torch.dtype, torch.device)
    seen, left = set(), [loaded]
    while left:
        value = left.pop()
        if value is None or isinstance(value, (*plain, _Array)) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise _Refused("it holds a tensor that is larger than the numbers it has.")
        elif isinstance(value, dict):
            # An attribute could stand in for a method; torch keeps the versions of modules so.
            if set(getattr(value, "__dict__", ())) - {"_metadata"}:
                raise _Refused("it holds a dict with foreign attributes.")
            for key, item in value.items():
                if isinstance(item, _Array):
                    value[key] = item.view(np.ndarray)
                left += (key, item)
            left.append(getattr(value, "_metadata", None))
        elif isinstance(value, (list, tuple, set, frozenset)):
            if isinstance(value, list):
                value[:] = [v.view(np.ndarray) if isinstance(v, _Array) else v for v in value]
            left += value
        elif type(value) is not np.ndarray:
            raise _Refused(f"it holds a {type(value).__name__}, which weights do not need.")


def _warn_of_old_torch() -> None:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _SOUND_TORCH:
        logging.getLogger(__name__).warning(
            f"torch {torch.__version__} can be made to run code by hostile checkpoints "
            "(CVE-2026-24747, below 2.6 also CVE-2025-32434): load none of strangers before you "
            "have torch 2.10 or later."
        )


def _check_archive(file: BinaryIO) -> None:
    """Make sure that an archive is as torch writes them, before torch reads it."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                raise _Refused(
                    f"its part {entry.filename!r:.99} is compressed or encrypted, as torch never "
                    "writes it."
                )
            parts = re.split(r"[/\\]", entry.filename)
            outside = ".." in parts or parts[0] == "" or ":" in parts[0]
            if outside or stat.S_ISLNK(entry.external_attr >> 16):
                raise _Refused(f"its part {entry.filename!r:.99} is named as torch names none.")
        if len(set(names)) < len(names) or sum(entry.file_size for entry in entries) > size:
            raise _Refused("parts of the archive lie in one another.")
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise _Refused("it is an archive, but not one of torch.")
        content = archive.read(pickles[0])
    _check_pickle(io.BytesIO(content), len(content), _TORCH_NAMES)


def _check_pickle(file: BinaryIO, size: int, admitted: re.Pattern[str] | None) -> None:
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
            raise _Refused("it is cut off, or claims more memory than its size explains.")


def _refused_name(module: str, name: str) -> _Refused:
    return _Refused(
        f"it imports {f'{module}.{name}'!r:.99}, which weights do not need and which may run code. "
        "--trust-weights runs it, for files of people whom you trust."
    )


class _ArrayUnpickler(pickle.Unpickler):
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
            raise _Refused(f"it holds an array of {code!r:.99}: only numbers are read.")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        # version, byte order, then what numbers do not have
        if any(part is not None for part in state[2:5]):
            raise _Refused("it holds an array of records: only numbers are read.")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array that is filled with what it has in the file."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran_order, content = state
        super().__setstate__((1, *_checked(shape, dtype, content, fortran_order)))


def _checked(shape: tuple, dtype: _Dtype, content: bytes | str, fortran_order: bool) -> tuple:
    # Python 2's bytes were texts.
    content = content.encode("latin1") if isinstance(content, str) else bytes(content)
    if math.prod(shape) * dtype.dtype.itemsize != len(content):
        raise _Refused(f"it claims an array of {shape!r:.99}, but has {len(content)} bytes of it.")
    return tuple(shape), dtype.dtype, bool(fortran_order), content


class _Maker:
    """A function that a pickle may call; of a plain one it could set the defaults."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable) -> None:
        self._function = function

    def __call__(self, *args: object) -> object:
        return self._function(*args)

    def __setstate__(self, _: object) -> None:
        raise _Refused("it changes what reads it.")


@_Maker
def _reconstruct(*_: object) -> _Array:
    return np.ndarray.__new__(_Array, 0, np.int8)


@_Maker
def _frombuffer(content: bytes, dtype: _Dtype, shape: tuple, order: str) -> _Array:
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
        raise _Refused(f"it holds bytes in the encoding {encoding!r:.99}.")
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
