"""Files of weights, written as nobody's tools write them."""

import io
import pickle
import zipfile

import torch


def zoo(**weights) -> bytes:
    return pickle.dumps({"model": weights, "__author__": "somebody"}, 4)


def archive(content: bytes, extra: dict[str, bytes] | None = None, **options) -> bytes:
    """An archive as torch writes it, with this pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as file:
        for name, data in {
            "archive/data.pkl": content,
            "archive/byteorder": b"little",
            "archive/version": b"3\n",
            **(extra or {}),
        }.items():
            file.writestr(name, data)
    return buffer.getvalue()


def saved(value: object, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def old_torch(content: bytes) -> bytes:
    """A checkpoint as torch wrote it before it wrote archives."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(part, 2) for part in parts) + content + pickle.dumps([], 2)
