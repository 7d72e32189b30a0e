"""Images that would fill the memory, or are none, are refused and named."""

import io
import struct
import zlib

import numpy as np
import pytest
from models import tiny_cfg
from PIL import Image

from fsaf_d2.data.loading import mapper as mapper_module
from fsaf_d2.data.loading.mapper import build_mapper, read_image


def image(file_format: str, size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (90, 0, 200)).save(buffer, file_format)
    return buffer.getvalue()


def png_bomb() -> bytes:
    """60000 x 60000 pixels of zeros."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    rows = b"IDAT" + zlib.compress(bytes(10**6))
    chunks = [header, rows, b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


def jpeg_bomb() -> bytes:
    content = bytearray(image("JPEG"))
    place = content.index(b"\xff\xc0")
    content[place + 5 : place + 9] = struct.pack(">HH", 60000, 60000)
    return bytes(content)


def patched(file_format: str, place: int, layout: str) -> bytes:
    content = bytearray(image(file_format))
    packed = struct.pack(layout, 60000, 60000)
    content[place : place + len(packed)] = packed
    return bytes(content)


def tiff_bomb() -> bytes:
    content = bytearray(image("TIFF"))
    for tag in (256, 257):
        place = next(
            content.index(start)
            for start in (struct.pack("<HHI", tag, kind, 1) for kind in (3, 4))
            if start in content
        )
        content[place : place + 12] = struct.pack("<HHII", tag, 4, 1, 60000)
    return bytes(content)


BOMBS = {
    "png": png_bomb,
    "jpeg": jpeg_bomb,
    "jpeg with a trailer": lambda: jpeg_bomb() + b"trailer",
    "bmp": lambda: patched("BMP", 18, "<ii"),
    "gif": lambda: patched("GIF", 6, "<HH"),
    "ppm": lambda: b"P6 60000 60000 255\n" + bytes(99),
    "tiff": tiff_bomb,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_by_their_header(tmp_path, little_memory, kind):
    file = tmp_path / "bomb.jpg"
    file.write_bytes(BOMBS[kind]())
    with pytest.raises(OSError, match=r"bomb\.jpg'.* 60000 x 60000 .*INPUT\.MAX_PIXELS"):
        read_image(str(file), "BGR")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_the_limit_can_be_set(tmp_path, monkeypatch, file_format):
    file = tmp_path / "image.jpg"
    file.write_bytes(image(file_format))
    with pytest.raises(OSError, match="40 x 30 pixels, more than the 1199"):
        read_image(str(file), "BGR", max_pixels=1199)
    # Pillow has a limit of its own, which must not be in the way of a higher one.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image(str(file), "BGR", max_pixels=1200).shape == (30, 40, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("opencv", [True, False])
@pytest.mark.parametrize("image_format", ["BGR", "L"])
def test_the_mapper_has_the_limit(tmp_path, monkeypatch, image_format, opencv):
    if not opencv:
        monkeypatch.setattr(mapper_module, "cv2", None)
    cfg = tiny_cfg("INPUT.FORMAT", image_format)
    file = tmp_path / "image.png"
    file.write_bytes(image("PNG"))
    entry = {"file_name": str(file), "height": 30, "width": 40}
    mapper = build_mapper(cfg, is_train=False)
    assert mapper(entry)["image"].shape[0] == (3 if image_format == "BGR" else 1)
    mapper.max_pixels = 1199
    with pytest.raises(OSError, match=r"image\.png'.*INPUT\.MAX_PIXELS"):
        mapper(entry)


STRANGE = {
    "EPS": lambda: image("EPS"),
    "PDF": lambda: image("PDF"),
    "password file": lambda: b"root:x:0:0:root:/root:/bin/bash\n",
    "SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "empty": lambda: b"",
    "numpy": lambda: np.lib.format.magic(1, 0) + bytes(99),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_image_is_refused(tmp_path, kind):
    file = tmp_path / "strange.jpg"
    file.write_bytes(STRANGE[kind]())
    with pytest.raises(OSError, match=r"strange\.jpg' cannot be read"):
        read_image(str(file), "BGR")
