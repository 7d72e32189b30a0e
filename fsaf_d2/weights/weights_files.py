"""Reading weights that strangers made, without running what is in the files.

SECURITY.md says what this protects from and what not.
"""

from __future__ import annotations

import hashlib
import io
import logging
import mmap
import os
import pickle
import re
from typing import BinaryIO

import numpy as np
import torch

from ..commands.calls import call
from ..regular_files import open_regular
from .pickle_checks import Refused, check_pickles
from .pickles import Array, ArrayUnpickler
from .torch_archives import MAX_DIRECTORY, read_archive

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
# What names carry of a file's hash: as torch.hub reads them, but for digits alone, which are as
# often dates; and as detectron2's MODEL_ZOO.md has them.
_HASHES_IN_NAMES = (
    ("SHA-256", hashlib.sha256, re.compile(r"-(?=\d*[a-f])([0-9a-f]{8,64})\.\w+$")),
    ("MD5", hashlib.md5, re.compile(r"^model_final_([0-9a-f]{6})\.pkl$")),
)
_SOUND_TORCH = (2, 10)


class WeightsFileError(ValueError):
    """A file of weights is broken, is of no known kind or holds more than weights."""


def load_file(path: str | os.PathLike[str], *, trust: bool = False, sha256: str = "") -> dict:
    """Read a file of torch, of safetensors or of a model zoo, whatever its name ends with.

    Where the name carries the start of the file's SHA-256, as in ``resnet50-0676ba61.pth``, or of
    its MD5, as in detectron2's ``model_final_bfca0b.pkl``, it is compared.

    Args:
        path: of a file on this machine.
        trust: read it by pickle without limits, which runs any code in it.
        sha256: how the file's SHA-256 begins, in small hexadecimal digits.

    Returns:
        a dict with ``model``, which maps names to tensors or arrays, and, as in detectron2,
        ``matching_heuristics`` and ``__author__`` of model-zoo files, or all else that a
        checkpoint holds.

    Raises:
        WeightsFileError: the file is not as its name says, or could do more than give weights; the
            message names it.
        OSError: there is no such file, it cannot be read, or it is a pipe or a device.
    """
    path = os.fspath(path)
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise WeightsFileError(f"'{path}' is empty.")
        try:
            _check_hash(path, file, sha256)
            return _load(file, trust)
        except Refused as error:
            raise WeightsFileError(f"'{path}' is refused: {error}{_advice(path)}") from error
        except Exception as error:
            # torch advises to do without its protection first.
            reason = str(error).rpartition("WeightsUnpickler error:")[2].strip()
            first_line = reason.partition("\n")[0]
            raise WeightsFileError(
                f"'{path}' is no whole checkpoint of torch or of a model zoo "
                f"({type(error).__name__}: {first_line}).{_advice(path)}"
            ) from error


def _advice(path: str) -> str:
    if path.endswith((".json", ".yaml", ".yml", ".txt", ".md", ".csv", ".jpg", ".png")):
        return " By its name it holds no weights."
    if not path.endswith((".onnx", ".torchscript")):
        return ""
    return (
        f" By its name it is an exported detector, which '{call('predict')}' runs: training and "
        "evaluation start from the .pth file that it was exported from."
    )


def _check_hash(path: str, file: BinaryIO, sha256: str) -> None:
    found = (
        (name, algorithm, pattern.search(os.path.basename(path)))
        for name, algorithm, pattern in _HASHES_IN_NAMES
    )
    asked = [("its name", name, algorithm, match[1]) for name, algorithm, match in found if match]
    if sha256:
        asked.append(("its address", "SHA-256", hashlib.sha256, sha256))
    for source, name, algorithm, expected in asked:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # Against damage, not malice: whoever chose the file chose its name, too.
            found = algorithm(content, usedforsecurity=False).hexdigest()
        if not found.startswith(expected):
            raise Refused(
                f"{source} says that its {name} starts with {expected}, but it starts with "
                f"{found[: len(expected)]}. Fetch it again, or mend {source} if the file is right."
            )


def _load(file: BinaryIO, trust: bool) -> dict:
    head = file.read(2 + len(_TORCH_MAGIC))
    file.seek(0)
    # The length of the header, which is JSON.
    if head[4:9] == b"\0\0\0\0{":
        if int.from_bytes(head[:8], "little") > MAX_DIRECTORY:
            raise Refused(f"its header has more than {MAX_DIRECTORY} bytes.")
        return {"model": _from_safetensors(file.name)}
    archive, old_torch = head.startswith(_ZIP_START), head[2:] == _TORCH_MAGIC
    if not trust:
        file = _checked(file, archive, old_torch)
    if archive or old_torch:
        _warn_of_old_torch()
        return _from_torch(torch.load(file, map_location="cpu", weights_only=not trust), trust)
    unpickler = pickle.Unpickler if trust else ArrayUnpickler
    return _from_model_zoo(unpickler(file, encoding="latin1").load(), trust)


def _checked(file: BinaryIO, is_archive: bool, is_old_torch: bool) -> BinaryIO:
    """Look through a file; returns what may be read in its place."""
    size = os.fstat(file.fileno()).st_size
    if is_archive:
        archive = read_archive(file)
        wanted = check_pickles(io.BytesIO(archive.pickle), size, _TORCH_NAMES)
        for key, claimed in wanted.items():
            # torch below 2.10 reads on behind the end.
            if claimed > archive.sizes.get(key, -1):
                raise Refused(f"it claims {claimed} bytes of numbers in {key!r:.99}, but has less.")
        return archive.file
    admitted, count = (_TORCH_NAMES, _TORCH_PICKLES) if is_old_torch else (None, 1)
    # Reading past the end of a mapped file allocates nothing.
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        claimed = sum(check_pickles(content, size, admitted, count).values())
    if claimed > size:
        raise Refused(f"it claims {claimed} bytes of numbers, but has {size}.")
    file.seek(0)
    return file


def _from_safetensors(path: str) -> dict:
    """Read tensors, which is all that the format can hold; its library checks their places."""
    try:
        from safetensors.torch import load_file as load_safetensors
    except ImportError as error:
        raise Refused(
            "it is in the format of safetensors, which is not installed: pip install safetensors."
        ) from error
    return load_safetensors(path)


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
        raise Refused(f"it holds a {type(value).__name__} where weights with names should be.")


def _require_weights(value: object) -> None:
    _require_dict(value)
    for name, weight in value.items():
        if not (isinstance(name, str) and isinstance(weight, (np.ndarray, torch.Tensor))):
            raise Refused(f"its entry {name!r:.99} is a {type(weight).__name__}, no weights.")


def _require_plain(loaded: dict) -> None:
    """Make sure that nothing but containers, numbers, texts, arrays and tensors was read.

    Arrays in dicts and lists become NumPy's own.
    """
    plain = (
        int,
        float,
        complex,
        str,
        bytes,
        bytearray,
        np.generic,
        torch.dtype,
        torch.device,
        Array,
    )
    seen, left = set(), [loaded]
    while left:
        value = left.pop()
        if value is None or isinstance(value, plain) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise Refused("it holds a tensor that is larger than the numbers it has.")
        elif isinstance(value, dict):
            # An attribute could stand in for a method; torch keeps the versions of modules so.
            if set(getattr(value, "__dict__", ())) - {"_metadata"}:
                raise Refused("it holds a dict with foreign attributes.")
            for key, item in value.items():
                if isinstance(item, Array):
                    value[key] = item.view(np.ndarray)
                left += (key, item)
            left.append(getattr(value, "_metadata", None))
        elif isinstance(value, (list, tuple, set, frozenset)):
            if isinstance(value, list):
                value[:] = [v.view(np.ndarray) if isinstance(v, Array) else v for v in value]
            left += value
        elif type(value) is not np.ndarray:
            raise Refused(f"it holds a {type(value).__name__}, which weights do not need.")


def _warn_of_old_torch() -> None:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _SOUND_TORCH:
        logging.getLogger(__name__).warning(
            f"torch {torch.__version__} can be made to run code by hostile checkpoints "
            "(CVE-2026-24747, below 2.6 also CVE-2025-32434): load none of strangers before you "
            "have torch 2.10 or later."
        )
