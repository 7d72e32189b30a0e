"""Images that would fill the memory, or are none, are refused and named."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from models import tiny_cfg
from PIL import Image, UnidentifiedImageError

from fsaf_d2.data.checking.images import read_image_file
from fsaf_d2.data.loading import mapper as mapper_module
from fsaf_d2.data.loading.mapper import build_mapper, read_image
from fsaf_d2.data.reading import image_headers
from fsaf_d2.data.reading.image_headers import frames_of, num_frames, open_image


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


def many_chunks(count: int) -> bytes:
    """A PNG with so many parts of nothing."""
    content, part = image("PNG"), struct.pack(">I4sI", 0, b"abCd", zlib.crc32(b"abCd"))
    return content[:33] + part * count + content[33:]


def many_markers(count: int) -> bytes:
    """A JPEG with so many parts of nothing."""
    content = image("JPEG")
    return content[:2] + b"\xff\xe1\x00\x02" * count + content[2:]


def many_tiles(count: int, pages: int = 1) -> bytes:
    """A TIFF whose pages share so many tiles of one pixel."""
    tags = [
        *((256, 3, 1, 600), (257, 3, 1, 600), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)),
        *((277, 3, 1, 1), (322, 3, 1, 1), (323, 3, 1, 1)),
    ]
    length = 2 + 12 * (len(tags) + 2) + 4
    data = 8 + pages * length
    content = struct.pack("<2sHI", b"II", 42, 8)
    for page in range(pages):
        content += struct.pack("<H", len(tags) + 2)
        for tag in (*tags, (324, 4, count, data), (325, 4, count, data)):
            content += struct.pack("<HHII", *tag)
        content += struct.pack("<I", 8 + (page + 1) * length if page + 1 < pages else 0)
    return content + bytes(4 * count)


def many_scans(count: int) -> bytes:
    """A progressive JPEG that passes so often over 32 megapixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG", progressive=True)
    content = bytearray(buffer.getvalue())
    place = content.index(b"\xff\xc2")
    content[place + 5 : place + 9] = struct.pack(">HH", 4000, 8000)
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x01" + bytes(4)
    return bytes(content[:-2]) + scan * count + b"\xff\xd9"


def long_comment(count: int) -> bytes:
    """A GIF with a comment of so many parts, which Pillow puts together one by one."""
    content = image("GIF")
    place = 13 + 3 * 2 ** ((content[10] & 7) + 1)
    return content[:place] + b"!\xfe" + (b"\xff" + bytes(255)) * count + b"\0" + content[place:]


def test_scans_are_counted_in_the_image_alone(tmp_path):
    file = tmp_path / "scans.jpg"
    file.write_bytes(many_scans(3000))
    with pytest.raises(OSError, match=r"scans\.jpg'.* more than 100 progressive scans"):
        read_image(str(file), "BGR")
    found = read_image_file(str(file), decode=True)
    assert found.kind and "more than 100 progressive scans" in found.value
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(
        buffer, "JPEG", progressive=True, exif=b"Exif" + b"\xff\xda" * 200
    )
    file.write_bytes(buffer.getvalue() + b"\xff\xda" * 200)
    assert read_image(str(file), "BGR").shape == (16, 16, 3)


TEXTS = {
    "long": (b"P3\n1200 1200 255\n" + b"7 " * 1200 * 1200 * 3, "more than 4194304 bytes"),
    "comments": (b"P2\n9 9 255\n" + b"#\n" * 500_000, "more than 1000 comments"),
    "bits": (b"P1\n4000 4000\n" + b"1" * 5_000_000, "more than 4194304 bytes"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_ppm_in_text_is_small(tmp_path, kind):
    file, (content, words) = tmp_path / "text.ppm", TEXTS[kind]
    file.write_bytes(content)
    with pytest.raises(OSError, match=rf"text\.ppm'.*{words}"):
        read_image(str(file), "BGR")
    found = read_image_file(str(file))
    assert found.kind == "damaged image" and words in found.value
    file.write_bytes(b"P3\n# a comment\n2 1 100\n100 0 0 0 50 100\n")
    assert read_image(str(file), "RGB").tolist() == [[[255, 0, 0], [0, 128, 255]]]
    assert read_image_file(str(file)).kind is None


FLOODS = {
    "GIF": (lambda: long_comment(100_000), "more than 20000 parts"),
    "PNG": (lambda: many_chunks(100_000), "more than 20000 parts"),
    "JPEG": (lambda: many_markers(200_000), "more than 20000 parts"),
    "TIFF": (lambda: many_tiles(300_000), "300000 strips or tiles, more than the 262144"),
    "TIFF's pages": (lambda: many_tiles(300_000, 9), "300000 strips or tiles"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FLOODS)
def test_files_of_millions_of_parts_are_refused(tmp_path, little_memory, kind):
    file, (make, words) = tmp_path / "flood.jpg", FLOODS[kind]
    file.write_bytes(make())
    start = time.process_time()
    with pytest.raises(OSError, match=rf"flood\.jpg' cannot be read .*{words}"):
        read_image(str(file), "BGR")
    assert time.process_time() - start < 10
    found = read_image_file(str(file))
    assert found.kind == "damaged image" and words in found.value
    assert frames_of(str(file)) == 1


def test_the_parts_of_all_pages_of_all_kinds_of_tiff_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(image_headers, "MAX_PARTS", 9)
    for pages in (1, 3):
        content = many_tiles(10, pages)
        with pytest.raises(OSError, match="10 strips or tiles, more than the 9"):
            open_image(io.BytesIO(content))
        assert num_frames(open_image(io.BytesIO(many_tiles(9, pages)))) == pages
    for start in (b"MM\0*", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0", b"II"):
        for content in (start, start + bytes(9), start + b"\xff" * 99):
            with pytest.raises((UnidentifiedImageError, ValueError)):
                open_image(io.BytesIO(content))
    buffer = io.BytesIO()
    Image.new("L", (30, 30)).save(buffer, "TIFF", big_tiff=True)
    buffer.seek(0)
    assert open_image(buffer).size == (30, 30)
    monkeypatch.setattr(image_headers, "MAX_PARTS", 0)
    with pytest.raises(OSError, match="1 strips or tiles, more than the 0"):
        buffer.seek(0)
        open_image(buffer)


def test_images_of_one_long_row_are_refused(tmp_path, little_memory):
    for size in ((1, 2**27), (2**27, 1), (2**20 + 1, 1)):
        content = b"P5 %d %d 255\n" % size + bytes(9)
        (tmp_path / "row.jpg").write_bytes(content)
        with pytest.raises(OSError, match=r"row\.jpg'.* but a side has 1048576 at the most"):
            read_image(str(tmp_path / "row.jpg"), "BGR")
        assert read_image_file(str(tmp_path / "row.jpg")).kind == "huge image"


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
