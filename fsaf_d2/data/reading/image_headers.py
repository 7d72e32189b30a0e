"""Headers of image files, and which images are not decoded for what their headers say."""

from __future__ import annotations

import math
import os
import threading
import warnings
from typing import BinaryIO

from PIL import Image

from ...regular_files import open_regular
from .image_folder import ImageFolder

EXIF_ORIENTATION = 274
# Of an image, 400 MB in memory; INPUT.MAX_PIXELS.
MAX_PIXELS = 2**27
# So many frames are counted.
MAX_FRAMES = 100
# Grey of more than 8 bits: Pillow cuts it off at 255, so that most of it becomes white.
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
# Pillow knows more, some of which it has other programs read (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000")


def require_size(file: BinaryIO, max_pixels: int) -> bool:
    """Make sure that an image, of which only the header is read, has no more pixels or bits.

    Returns:
        whether it is of a kind that OpenCV is known to decode as Pillow does.

    Raises:
        OSError: it has more, or is no image.
    """
    with without_pillows_limit, Image.open(file, formats=FORMATS) as header:
        if math.prod(header.size) > max_pixels:
            width, height = header.size
            raise OSError(
                f"it has {width} x {height} pixels, more than the {max_pixels} that "
                "INPUT.MAX_PIXELS allows"
            )
        if header.mode in DEEP_MODES:
            raise OSError(
                f"its grey has more than 8 bits (Pillow's mode {header.mode}), for which there is "
                "more than one way to 8: convert it as the images of the training were"
            )
        if header.format != "JPEG" or header.mode not in ("RGB", "L"):
            return False
        try:
            return header.getexif().get(EXIF_ORIENTATION) not in range(2, 9)
        except Exception:
            # Pillow raises errors of many types for broken metadata.
            return False


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
            with open_regular(path) as file, Image.open(file, formats=FORMATS) as header:
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
        # Pillow takes time without end for a file that has nothing but the heads of pages.
        for number in range(1, MAX_FRAMES):
            try:
                header.seek(number)
            except EOFError:
                return number
        return MAX_FRAMES
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
            with Image.open(file, formats=FORMATS) as header:
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
