"""Images and video frames on their way from files to outputs."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import threading
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import cv2
import numpy as np

from ..data.reading.image_headers import excess, frames_of
from ..regular_files import require_regular
from .detector import Detector, Prepared
from .inputs import InputFile

# Only files, and no lists of addresses or of other files.
_FORMATS = "mov,avi,matroska,mpegts,mpeg,mpegvideo,asf,flv,ogg"
_OPTIONS = {
    "OPENCV_FFMPEG_CAPTURE_OPTIONS": f"protocol_whitelist;file|format_whitelist;{_FORMATS}",
    # What is wrong with a file is said by this project.
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
}
_OPENING = threading.Lock()
# Of videos whose files say something impossible.
DEFAULT_RATE = 25.0
# Drawn videos can be written at these: a frame in 100 s, such as of a day that runs quickly.
MIN_RATE, MAX_RATE = 0.01, 1000.0


class Shot(NamedTuple):
    """An image, or a frame of a video."""

    file: str
    stem: str  # the path of its outputs, without folder and extension
    prepared: Prepared
    frame: int | None = None  # from 0
    seconds: float | None = None  # from the start of the video
    rate: float | None = None  # frames a second
    frames: int = 1  # of an image's file, or pages: the first alone is read

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.prepared.image.shape[:2]


class Failure(NamedTuple):
    """A file that could not be read, or not to its end."""

    file: str
    reason: str


@dataclasses.dataclass
class Summary:
    """How a prediction on many files went."""

    least_scores: dict[str, float]  # by class name, from which detections were written
    num_files: int = 0  # images and videos that are done
    num_images: int = 0  # images and frames
    num_detections: int = 0  # that were written
    highest_score: float = 0.0  # of all, also those below the least
    complete: bool = False  # whether all files have had their turn
    failures: list[Failure] = dataclasses.field(default_factory=list)
    frames: dict[str, int] = dataclasses.field(default_factory=dict)
    """Images with further frames or pages, which are not read, and how many they have in all."""

    @property
    def exit_code(self) -> int:
        """0 if all files are done, 3 if some are not, 1 if none is."""
        if not self.num_files:
            return 1
        return 3 if self.failures else 0


def read_image(detector: Detector, file: InputFile) -> Shot | Failure:
    """Read and resize an image; whatever is wrong with it is its own failure."""
    try:
        prepared = detector.prepare(file.path)
        return Shot(file.path, file.stem, prepared, frames=frames_of(file.path))
    except Exception as error:
        # Those of the mapper name the file, as the failure does.
        reason = str(error).removeprefix(f"Image '{file.path}' ")
        return Failure(file.path, reason if isinstance(error, OSError) else _described(error))


def read_video(detector: Detector, file: InputFile) -> Iterator[Shot | Failure]:
    """Read and resize the frames of a video; what is wrong with it comes last."""
    read = 0
    try:
        with _opened(file.path) as capture:
            limit, rate = detector.max_pixels, frame_rate(capture)
            _require_size(capture, limit)
            for number in count():
                there, image = capture.read()
                if not there:
                    break
                seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                if not math.isfinite(seconds) or (number and seconds <= 0):
                    seconds = number / rate
                prepared = detector.prepare(np.ascontiguousarray(image), "BGR")
                yield Shot(file.path, file.stem, prepared, number, seconds, rate)
                read = number + 1
            expected = num_frames(capture)
    except Exception as error:
        yield Failure(file.path, str(error) if isinstance(error, OSError) else _described(error))
        return
    # The header's number is an estimate in some formats.
    if read == 0:
        yield Failure(file.path, "it has no frame that can be decoded.")
    elif read < 0.9 * expected - 1:
        yield Failure(file.path, f"it breaks off after {read} of about {expected} frames.")


def count_frames(path: str) -> int:
    """Frames of a video by its header, 0 where it cannot be opened."""
    try:
        with _opened(path) as capture:
            return num_frames(capture)
    except OSError:
        return 0


def num_frames(capture: cv2.VideoCapture) -> int:
    """Frames by the header, 0 where it says nothing possible."""
    number = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(number) if 0 < number < 1e9 else 0


def frame_rate(capture: cv2.VideoCapture) -> float:
    """Frames a second by the header, or a usual number where it says nothing possible."""
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if MIN_RATE <= rate <= MAX_RATE else DEFAULT_RATE


@contextlib.contextmanager
def _opened(path: str) -> Iterator[cv2.VideoCapture]:
    require_regular(path)
    # An absolute path cannot be taken for an address or the name of a device.
    with _OPENING, _environment(_OPTIONS):
        capture = cv2.VideoCapture(os.path.abspath(path), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise OSError("it cannot be opened: it is broken, or no video of a known format.")
        yield capture
    finally:
        capture.release()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _require_size(capture: cv2.VideoCapture, max_pixels: int) -> None:
    width, height = (
        int(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
    )
    if reason := excess((width, height), max_pixels):
        raise OSError(f"it has {reason}.")


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
