"""Headers of image files, and which images are not decoded for what their headers say."""

from __future__ import annotations

import contextlib
import math
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image

from ...regular_files import open_regular
from .image_folder import ImageFolder

EXIF_ORIENTATION = 274
# Of an image, 400 MB in memory; INPUT.MAX_PIXELS.
MAX_PIXELS = 2**27
# Of a side: decoders keep a pointer for each row, and take half a minute for 2^27 rows of 1 pixel.
MAX_SIDE = 2**20
# Of a file: Pillow takes a part of a header at a time, however many millions there are.
MAX_READS = 200_000
# Of a header: it puts comments of GIF together in a time that is the square of their parts.
MAX_HEADER_READS = 20_000
# Of a progressive JPEG, of which each passes through all pixels; cameras and tools write about ten.
MAX_SCANS = 100
# Of PPM in text, a second each: Pillow takes its numbers one by one, and copies a block for each
# comment.
MAX_TEXT, MAX_COMMENTS = 1 << 22, 1000
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
# Of a page of TIFF: where each row is a strip of its own, its height.
MAX_PARTS = 2**18
MAX_TAGS = 2**16
# Offsets and lengths of strips and of tiles.
_PARTS = (273, 279, 324, 325)
# So many frames are counted.
MAX_FRAMES = 100
# Grey of more than 8 bits: Pillow cuts it off at 255, so that most of it becomes white.
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
# Pillow knows more, some of which it has other programs read (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000")


class _FewReads:
    """A file that is read so often as images need, and no more."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.most = self.left = MAX_HEADER_READS

    def read(self, size: int = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise OSError(f"it has more than {self.most} parts")
        return self._file.read(size)

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


def open_image(file: BinaryIO) -> Image.Image:
    """Open an image by Pillow, in one of ``FORMATS``, of which the header is read.

    Raises:
        Exception: of any type, as Pillow raises for what is no image or is broken.
    """
    start = file.tell()
    most = max(_tiff_pages(file), default=0)
    file.seek(start)
    if most > MAX_PARTS:
        raise OSError(f"it has {most} strips or tiles, more than the {MAX_PARTS} that are read")
    reader = _FewReads(file)
    image = Image.open(reader, formats=FORMATS)
    reader.most = reader.left = MAX_READS
    return image


def require_few_steps(header: Image.Image, file: BinaryIO) -> None:
    """Make sure that what takes Pillow longest is not long: JPEG's scans, and PPM in text.

    Raises:
        OSError: a progressive JPEG has more than MAX_SCANS scans, or a PPM file more than MAX_TEXT
            bytes or MAX_COMMENTS comments.
    """
    is_text = any(tile[0] == "ppm_plain" for tile in header.tile)
    if not is_text and not header.info.get("progressive"):
        return
    before = file.tell()
    file.seek(0)
    data = file.read(MAX_TEXT + 1 if is_text else -1)
    file.seek(before)
    if is_text:
        _require_little_text(data)
    else:
        _require_few_scans(data)


def _require_little_text(data: bytes) -> None:
    if len(data) > MAX_TEXT:
        raise OSError(
            f"it is PPM in text of more than {MAX_TEXT} bytes: save it in another format, such as "
            "PNG"
        )
    if data.count(b"#") > MAX_COMMENTS:
        raise OSError(f"it has more than {MAX_COMMENTS} comments")


def _require_few_scans(data: bytes) -> None:
    place = scans = 0
    while found := _MARKER.search(data, place):
        kind, place = data[found.end() - 1], found.end()
        if kind == 0xD9:
            return
        scans += kind == 0xDA
        if scans > MAX_SCANS:
            raise OSError(f"it has more than {MAX_SCANS} progressive scans")
        place += int.from_bytes(data[place : place + 2], "big")


def _tiff_pages(file: BinaryIO) -> Iterator[int]:
    """Of how many strips or tiles each page of a TIFF file is, up to MAX_FRAMES pages.

    Pillow takes time without end for a file of many, even if it has nothing but heads.
    """
    head = file.read(16)
    if head[:2] not in (b"II", b"MM") or not {42, 43} & {*head[2:4]}:
        return
    # Of BigTIFF.
    is_big, order = head[2] == 43, "<" if head[:2] == b"II" else ">"
    kinds = ("Q", "Q", "HHQ8x") if is_big else ("H", "I", "HHI4x")
    number, place, entry = (order + kind for kind in kinds)
    seen: list[int] = []
    with contextlib.suppress(struct.error, OverflowError, ValueError):
        offset = struct.unpack_from(place, head, 8 if is_big else 4)[0]
        while offset and offset not in seen and len(seen) < MAX_FRAMES:
            seen.append(offset)
            file.seek(offset)
            count = struct.unpack(number, file.read(struct.calcsize(number)))[0]
            if count > MAX_TAGS:
                return
            tags = file.read(count * struct.calcsize(entry))
            offset = struct.unpack(place, file.read(struct.calcsize(place)))[0]
            yield max((x[2] for x in struct.iter_unpack(entry, tags) if x[0] in _PARTS), default=0)


def require_size(file: BinaryIO, max_pixels: int) -> bool:
    """Make sure that an image, of which only the header is read, has no more pixels or bits.

    Returns:
        whether it is of a kind that OpenCV is known to decode as Pillow does.

    Raises:
        OSError: it has more, or is no image.
    """
    with without_pillows_limit, open_image(file) as header:
        if reason := excess(header.size, max_pixels):
            raise OSError(f"it has {reason}")
        if header.mode in DEEP_MODES:
            raise OSError(
                f"its grey has more than 8 bits (Pillow's mode {header.mode}), for which there is "
                "more than one way to 8: convert it as the images of the training were"
            )
        require_few_steps(header, file)
        if header.format != "JPEG" or header.mode not in ("RGB", "L"):
            return False
        try:
            return header.getexif().get(EXIF_ORIENTATION) not in range(2, 9)
        except Exception:
            # Pillow raises errors of many types for broken metadata.
            return False


def excess(size: tuple[int, int], max_pixels: int) -> str:
    """What is too much in an image of this width and height to be decoded, "" if nothing."""
    pixels = f"{size[0]} x {size[1]} pixels"
    if math.prod(size) > max_pixels:
        return f"{pixels}, more than the {max_pixels} that INPUT.MAX_PIXELS allows"
    return f"{pixels}, but a side has {MAX_SIDE} at the most" if max(size) > MAX_SIDE else ""


def image_size(folder: ImageFolder, name: str) -> tuple[int, int]:
    """Width and height in pixels by an image's header, turned as its EXIF orientation says.

    Raises:
        ValueError: it lies outside of its folder, or is no image; the message gives the reason.
        OSError: it cannot be read.
    """
    if not folder.holds(name):
        raise ValueError("it leads out of its folder, and is refused")
    path = os.path.join(folder.root, name)
    if not os.path.exists(path):
        raise FileNotFoundError("there is no such file")
    try:
        # Pixels are not decoded: how many are too many is said by whoever does.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_regular(path) as file, open_image(file) as header:
                width, height = header.size
                turned = orientation(header) >= 5
    except Exception as error:
        # Pillow raises errors of many types for broken files.
        raise ValueError(f"it is no image that can be read ({error})") from error
    return (height, width) if turned else (width, height)


def orientation(header: Image.Image) -> int:
    """EXIF's orientation as detectron2 finds it, 1 where there is none that it knows."""
    try:
        value = header.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:
        # As detectron2, which reads an image with broken metadata as it is.
        return 1
    return value if value in range(2, 9) else 1


def num_frames(header: Image.Image) -> int:
    """How many frames or pages a file has, the first of which is read; MAX_FRAMES of more."""
    place = header.tell()
    try:
        if not getattr(header, "is_animated", False):
            return 1
        if header.format != "TIFF":
            return min(header.n_frames, MAX_FRAMES)
        before = header.fp.tell()
        header.fp.seek(0)
        count = sum(1 for _ in _tiff_pages(header.fp))
        header.fp.seek(before)
        return count
    except Exception:
        # Pillow raises errors of many types for broken files.
        return 1
    finally:
        if header.tell() != place:
            header.seek(place)


def frames_of(path: str) -> int:
    """:func:`num_frames` of a file, 1 where it cannot be read."""
    try:
        with warnings.catch_warnings(), open_regular(path) as file:
            warnings.simplefilter("ignore")
            with open_image(file) as header:
                return num_frames(header)
    except Exception:
        # Pillow raises errors of many types for broken files.
        return 1


class _PillowsLimit:
    """Lifts Pillow's limit while any thread needs it, so that this project's is the only one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._limit: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                Image.MAX_IMAGE_PIXELS = self._limit


without_pillows_limit = _PillowsLimit()
