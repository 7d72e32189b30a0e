"""Image files beside what an annotation file says of them.

Of a file the header and the end are read. Only where these leave it in doubt whether all of it is
there, it is decoded.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from ...regular_files import open_regular
from ..reading.image_headers import (
    DEEP_MODES,
    MAX_FRAMES,
    MAX_PIXELS,
    excess,
    num_frames,
    open_image,
    orientation,
    require_few_steps,
    without_pillows_limit,
)
from ..reading.near_names import NearNames, near_text
from .entries import Entries

# Reading headers waits for the disk; so many at a time, and so many put in line.
THREADS = 8
BLOCK = 2048
# detectron2's INPUT.MAX_SIZE_TRAIN, and what is left of a side that is worth a word.
MAX_SIDE = 1333
THIN = 4
# Bytes at the end of a file in which its end must be found.
TAIL = 1024
# What files of the formats begin with whose headers say enough to be broken.
SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG",
    b"RIFF",
    b"BM",
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"\0\0\0\x0cjP",
)


class ImageFile(NamedTuple):
    """What the header of an image file says, or what is wrong with the file."""

    num_bytes: int = 0
    size: tuple[int, int] | None = None  # width and height, turned as the EXIF data say
    orientation: int = 1  # EXIF's; 1 is upright
    kind: str | None = None  # of a finding
    value: str = ""
    frames: int = 1  # or pages


def image_limits(cfg: CfgNode) -> dict[str, int]:
    """What a config can use of images: ``max_pixels`` and ``max_side`` of :func:`check_images`."""
    longest = min(cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TEST)
    return {"max_pixels": cfg.INPUT.MAX_PIXELS, "max_side": longest}


def check_images(
    entries: Entries,
    image_root: str,
    *,
    max_pixels: int = MAX_PIXELS,
    max_side: int = MAX_SIDE,
    decode: bool = False,
    progress: bool = False,
    known: dict[str, ImageFile] | None = None,
) -> list[ImageFile | None]:
    """Compare image files with their entries; findings go to ``entries.flaws``.

    Args:
        image_root: the folder that file names are relative to.
        max_pixels: ``INPUT.MAX_PIXELS``.
        max_side: the long side that images are resized to at the most.
        decode: decode every image to its end, which takes long.
        progress: show a progress bar on a terminal.
        known: images that have been looked at before, by file name.

    Returns:
        the images of the I images; None for those that do not lie in the folder.
    """
    known, near = dict(known or {}), NearNames(image_root)
    names = [entries.images[i].get("file_name") for i in range(len(entries.images))]
    wanted = [name for name, inside in zip(names, entries.in_folder) if inside]
    new = [name for name in dict.fromkeys(wanted) if name not in known]
    read = _read_image_files([os.path.join(image_root, name) for name in new], max_pixels, decode)
    hidden = None if progress and new else True
    known.update(zip(new, tqdm(read, "images", len(new), unit="", disable=hidden)))
    image_files = [known[x] if inside else None for x, inside in zip(names, entries.in_folder)]
    for i, image_file in enumerate(image_files):
        found = _found(entries.sizes[i], image_file, max_side) if image_file else ()
        for kind, value in found:
            near_name = near_text(near.find(names[i])) if kind == "missing image" else ""
            entries.flaws.append(entries.of_image_file(kind, i, value + near_name))
    return image_files


def _found(declared: np.ndarray, image_file: ImageFile, max_side: int) -> Iterator[tuple[str, str]]:
    """What is wrong with an image file, or may be: kinds and values."""
    kind, value = image_file.kind, image_file.value
    if image_file.size and kind in (None, "16-bit colour image"):
        kind, value = _compare(declared, image_file) or (kind, value)
    if kind:
        yield kind, value
    yield from _of_shape(image_file, max_side)


def _of_shape(image_file: ImageFile, max_side: int) -> Iterator[tuple[str, str]]:
    """What training cannot resize, and what of a file is not read: kinds and values."""
    if image_file.frames > 1:
        more = " or more" if image_file.frames == MAX_FRAMES else ""
        yield "further frames", f"{image_file.frames}{more} frames or pages"
    if image_file.size and min(image_file.size) > 0:
        # As detectron2 rounds, where the long side is what limits.
        left = int(min(image_file.size) * max_side / max(image_file.size) + 0.5)
        if left < THIN:
            kind = "thin image" if left else "image too thin"
            yield kind, f"{_by(image_file.size)} pixels, {left} of {max_side} once resized"


def _compare(declared: np.ndarray, image_file: ImageFile) -> tuple[str, str] | None:
    """What is wrong with a declared size, or may be with boxes: kind and value."""
    turned, upright = image_file.size, image_file.size
    if image_file.orientation >= 5:
        upright = turned[::-1]
    about = f"EXIF orientation {image_file.orientation}"
    sizes = f"{_by(declared)} declared, the file has {_by(turned)}"
    if tuple(declared) == turned or np.isnan(declared).any():
        return ("EXIF-rotated image", about) if image_file.orientation != 1 else None
    if tuple(declared) == upright:
        return "size before EXIF rotation", f"{about}: {sizes} once turned"
    return "wrong image size", sizes


def _by(size: tuple[float, float] | np.ndarray) -> str:
    return f"{size[0]:.0f} x {size[1]:.0f}"


def _read_image_files(paths: list[str], max_pixels: int, decode: bool) -> Iterator[ImageFile]:
    with (
        without_pillows_limit,
        warnings.catch_warnings(),
        ThreadPoolExecutor(THREADS) as threads,
    ):
        warnings.simplefilter("ignore")
        for start in range(0, len(paths), BLOCK):
            block = paths[start : start + BLOCK]
            yield from threads.map(lambda path: read_image_file(path, max_pixels, decode), block)


def read_image_file(path: str, max_pixels: int = MAX_PIXELS, decode: bool = False) -> ImageFile:
    """Look at an image file, by its header and its end."""
    try:
        with open_regular(path) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            try:
                return _examine(file, num_bytes, max_pixels, decode)
            except Exception as error:
                # Pillow raises errors of many types for broken files.
                return _unreadable(file, num_bytes, error)
    except FileNotFoundError:
        return ImageFile(kind="missing image", value=path)
    except (OSError, ValueError) as error:
        return ImageFile(kind="not an image", value=_told(error))


def _unreadable(file: BinaryIO, num_bytes: int, error: Exception) -> ImageFile:
    file.seek(0)
    head = file.read(12)
    if not head.startswith(SIGNATURES):
        value = f"the file begins with {head!r}" if head else "the file is empty"
        return ImageFile(num_bytes, kind="not an image", value=value)
    is_cut = head.startswith(b"RIFF") and num_bytes < _riff_length(head)
    kind = "truncated image" if is_cut else "damaged image"
    return ImageFile(num_bytes, kind=kind, value=f"{num_bytes} bytes: {_told(error)}")


def _examine(file: BinaryIO, num_bytes: int, max_pixels: int, decode: bool) -> ImageFile:
    with open_image(file) as header:
        turn = _orientation(header)
        size = header.size[::-1] if turn >= 5 else header.size
        image_file = ImageFile(num_bytes, size, turn, frames=num_frames(header))
        if reason := excess(size, max_pixels):
            return image_file._replace(kind="huge image", value=reason)
        is_whole = _is_whole(header, file, num_bytes)
        bits = _deep(header)
        if decode or not is_whole:
            kind = "damaged image"
            try:
                require_few_steps(header, file)
                kind = kind if is_whole else "truncated image"
                header.load()
            except Exception as error:
                return image_file._replace(kind=kind, value=f"{num_bytes} bytes: {_told(error)}")
        return (
            image_file._replace(kind=bits, value=f"Pillow's mode {header.mode}")
            if bits
            else image_file
        )


def _orientation(header: Image.Image) -> int:
    """EXIF's orientation, without a look behind the pixels."""
    # Pillow decodes a whole PNG in search of EXIF data behind the pixels.
    if header.format == "PNG" and "exif" not in header.info:
        return 1
    return orientation(header)


def _deep(header: Image.Image) -> str | None:
    """The kind of finding that an image of more than 8 bits is."""
    if header.mode in DEEP_MODES:
        return "16-bit grey image"
    is_deep = any(";16" in str(tile[3]) for tile in header.tile)
    return "16-bit colour image" if is_deep else None


def _is_whole(header: Image.Image, file: BinaryIO, num_bytes: int) -> bool:
    """Whether a file is surely as long as its header says; there may be more behind it."""
    position = file.tell()
    file.seek(max(num_bytes - TAIL, 0))
    tail = file.read(TAIL)
    file.seek(0)
    head = file.read(12)
    file.seek(position)
    match header.format:
        # Within pixels these bytes cannot occur.
        case "JPEG" | "MPO" | "JPEG2000":
            return b"\xff\xd9" in tail
        case "PNG":
            return b"IEND\xaeB`\x82" in tail
        case "GIF":
            return tail.rstrip(b"\0").endswith(b";")
        case "WEBP":
            return num_bytes >= _riff_length(head)
        case "BMP":
            return num_bytes >= int.from_bytes(head[2:6], "little") > 0
        case "TIFF":
            return _ends_of_strips(header) <= num_bytes
        case "PPM":
            bits = 8 * len(header.getbands()) * math.prod(header.size)
            return header.tile[0][0] == "raw" and num_bytes >= header.tile[0][2] + bits // 8
        case _:
            return False


def _riff_length(head: bytes) -> int:
    return int.from_bytes(head[4:8], "little") + 8


def _ends_of_strips(header: Image.Image) -> float:
    """Where the last of a TIFF file's strips or tiles ends, infinite if that is not said."""
    for offsets, counts in ((273, 279), (324, 325)):
        if offsets in header.tag_v2 and counts in header.tag_v2:
            pairs = zip(header.tag_v2[offsets], header.tag_v2[counts])
            return max(offset + count for offset, count in pairs)
    return math.inf


def _told(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "its header cannot be read"
    return f"{type(error).__name__}: {error}"[:200]
