"""What was found, as images: drawn over, and cut out."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.structures import Instances

from .detector import Detector
from .output_tables import output_file, rows
from .shots import Shot, Summary

# Of JPEG. Colours at half the resolution, as is usual, would blur those of thin lines; older
# versions of OpenCV cannot do without.
_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 92]
if hasattr(cv2, "IMWRITE_JPEG_SAMPLING_FACTOR_444"):
    _QUALITY += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
# Of a folder, in letters: file systems take 255 bytes, of which a letter can need four.
_NAME_LENGTH = 50


class DrawnImages:
    """``pictures/NAME.jpg`` for each image and ``pictures/NAME.mp4`` for each video."""

    def __init__(self, folder: Path, detector: Detector, show: Sequence[str] = ()) -> None:
        """
        Args:
            folder: of all outputs.
            detector: that finds what is drawn.
            show: as for :meth:`.Detector.draw`.
        """
        self._folder, self._show = folder / "pictures", show
        self._detector = detector
        self._video: _Video | None = None

    def add(self, shot: Shot, found: Instances) -> None:
        """Draw one image or frame; the frames of a video come one after the other."""
        drawn = self._detector.draw(bgr(shot), found, channels="BGR", show=self._show)
        if shot.frame is None:
            write_image(output_file(self._folder, shot, ".jpg"), drawn)
            return
        file = self._folder / f"{shot.stem}.mp4"
        if self._video is None or self._video.file != file:
            self._end_video()
            self._video = _Video(file, drawn.shape[:2], shot.rate)
        self._video.add(drawn)

    def finish(self, _: Summary) -> None:
        """End the last video."""
        self._end_video()

    def _end_video(self) -> None:
        if self._video is not None:
            self._video.close()
            self._video = None


class _Video:
    """A video that is being written, in MPEG-4, which most programs show."""

    def __init__(self, file: Path, size: tuple[int, int], rate: float) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file
        # The format halves the sides of its colours.
        self._height, self._width = (side + side % 2 for side in size)
        self._writer = cv2.VideoWriter(
            str(file.absolute()),
            cv2.CAP_FFMPEG,
            cv2.VideoWriter_fourcc(*"mp4v"),
            rate,
            (self._width, self._height),
        )
        if not self._writer.isOpened():
            raise OSError(
                f"The video '{file}' cannot be written: either its folder cannot be written to, or "
                "this OpenCV has no FFmpeg. Without drawn images: --save json csv"
            )

    def add(self, frame: np.ndarray) -> None:
        height, width = frame.shape[:2]
        below, right = self._height - height, self._width - width
        if below in (0, 1) and right in (0, 1):
            frame = cv2.copyMakeBorder(frame, 0, below, 0, right, cv2.BORDER_REPLICATE)
        else:
            # Some videos change their size on the way.
            frame = cv2.resize(frame, (self._width, self._height), interpolation=cv2.INTER_AREA)
        self._writer.write(frame)

    def close(self) -> None:
        self._writer.release()
        if not self.file.is_file() or self.file.stat().st_size == 0:
            raise OSError(f"The video '{self.file}' could not be written: is the disk full?")


class Crops:
    """``crops/CLASS/NAME_1.jpg`` and so on: what was found of some classes, cut out."""

    def __init__(self, folder: Path, detector: Detector, classes: Sequence[int]) -> None:
        self._detector = detector
        names = folder_names(detector.class_names)
        self._folders = {kind: folder / "crops" / names[kind] for kind in classes}

    def add(self, shot: Shot, found: Instances) -> None:
        """Cut out of one image or frame; the numbers begin with the surest of a class."""
        height, width = shot.size
        image = bgr(shot)
        counts = dict.fromkeys(self._folders, 0)
        for (x0, y0, x1, y1), _, kind, _, _ in rows(found, self._detector):
            if kind not in counts:
                continue
            left, top = max(math.floor(x0), 0), max(math.floor(y0), 0)
            right, bottom = min(math.ceil(x1), width), min(math.ceil(y1), height)
            if left < right and top < bottom:
                counts[kind] += 1
                file = output_file(self._folders[kind], shot, f"_{counts[kind]}.jpg")
                write_image(file, np.ascontiguousarray(image[top:bottom, left:right]))

    def finish(self, _: Summary) -> None:
        """Nothing is left to do."""


def folder_names(class_names: Sequence[str]) -> list[str]:
    """A name for the folder of each class, of harmless letters, no two the same."""
    names: list[str] = []
    for index, class_name in enumerate(class_names):
        name = re.sub(r"[^\w+-]+", "_", class_name)[:_NAME_LENGTH].strip("_") or "class"
        while name.casefold() in (other.casefold() for other in names):
            name = f"{name}_{index}"
        names.append(name)
    return names


def bgr(shot: Shot) -> np.ndarray:
    """The whole image with OpenCV's order of channels."""
    image = shot.prepared.image
    return image if shot.prepared.channels == "BGR" else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)


def write_image(file: Path, image: np.ndarray) -> None:
    """Write a BGR image.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    there, content = cv2.imencode(file.suffix, image, _QUALITY)
    if not there:
        raise OSError(f"The image '{file}' could not be encoded.")
    file.write_bytes(content.tobytes())
