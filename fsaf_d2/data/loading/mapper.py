"""Reading and resizing images with OpenCV where that equals detectron2's own way and is faster.

Equal means: no pixel differs by more than one grey level. What was measured is in
docs/data_loading.md.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.utils.file_io import PathManager
from PIL import UnidentifiedImageError

from ...regular_files import open_regular
from ..reading.image_headers import MAX_PIXELS, open_image, require_size, without_pillows_limit
from .color_jitter import color_jitter
from .resizing import RESIZE_METHODS, shortest_edge

try:
    import cv2
except ImportError:
    cv2 = None

_JPEG_END = b"\xff\xd9"


class ImageError(OSError):
    """An image cannot be used. One sentence, also where a DataLoader's worker passes it on."""

    def __str__(self) -> str:
        # Torch puts the worker's traceback before it.
        return super().__str__().rpartition(f"{__name__}.{type(self).__name__}: ")[2].strip()


def build_mapper(cfg: CfgNode, *, is_train: bool) -> DatasetMapper:
    """The mapper of this project's loaders; detectron2's way where OpenCV is not installed.

    Args:
        cfg: its ``INPUT`` section says how images are read, resized and flipped.
        is_train: whether for training, with annotations and random transforms.

    Raises:
        ValueError: ``INPUT.RESIZE`` is not known, or needs OpenCV, which is not installed.
    """
    method = cfg.INPUT.RESIZE
    if method not in RESIZE_METHODS:
        raise ValueError(f"INPUT.RESIZE must be one of {RESIZE_METHODS}, not {method!r}.")
    if method == "opencv" and cv2 is None:
        raise ValueError("INPUT.RESIZE 'opencv' needs OpenCV: pip install opencv-python-headless.")
    return (LimitedMapper if cv2 is None else OpenCVMapper)(cfg, is_train)


def build_labelled_mapper(cfg: CfgNode) -> DatasetMapper:
    """The mapper of evaluation, which also gives the annotations, transformed as the image is."""
    mapper = LimitedMapper if cv2 is None else OpenCVMapper
    return mapper(**{**mapper.from_config(cfg, is_train=False), "is_train": True})


class LimitedMapper(DatasetMapper):
    """detectron2's mapper, which refuses images of more pixels than a limit."""

    @configurable
    def __init__(self, is_train: bool, *, max_pixels: int = MAX_PIXELS, **options: object) -> None:
        """Take a config and ``is_train``, or the arguments of detectron2's mapper.

        Args:
            is_train: whether for training.
            max_pixels: width times height above which an image is not decoded.
            options: of detectron2's mapper.
        """
        super().__init__(is_train, **options)
        self.max_pixels = max_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        """As detectron2's, with ``INPUT.RESIZE``, ``MAX_PIXELS`` and ``COLOR_JITTER``."""
        arguments = super().from_config(cfg, is_train)
        arguments["max_pixels"] = cfg.INPUT.MAX_PIXELS
        keys = "INPUT.MIN_SIZE_{0} and INPUT.MAX_SIZE_{0}".format("TRAIN" if is_train else "TEST")
        limits = {"max_pixels": cfg.INPUT.MAX_PIXELS, "keys": keys}
        arguments["augmentations"] = [
            shortest_edge(
                *(a.short_edge_length, a.max_size, cfg.INPUT.RESIZE, a.sample_style, a.interp),
                **limits,
            )
            if type(a) is T.ResizeShortestEdge
            else a
            for a in arguments["augmentations"]
        ]
        jitter = color_jitter(cfg.INPUT.COLOR_JITTER, cfg.INPUT.FORMAT)
        if is_train:
            # Last, where most images are smallest.
            arguments["augmentations"] = [*arguments["augmentations"], *jitter]
        return arguments

    def __call__(self, dataset_dict: dict) -> dict:
        """Map as detectron2's.

        Raises:
            OSError: the image cannot be read or resized, is too large or has more than 8 bits of
                grey; the message names it.
        """
        file_name = dataset_dict["file_name"]
        with _naming(file_name), _opened(file_name) as file:
            require_size(file, self.max_pixels)
        with without_pillows_limit, _naming_change(file_name):
            try:
                return super().__call__(dataset_dict)
            except utils.SizeMismatchError:
                raise
            except Exception:
                # What failed, reading or what follows, is seen by reading alone.
                with _naming(file_name):
                    utils.read_image(file_name, self.image_format)
                raise


class OpenCVMapper(LimitedMapper):
    """detectron2's mapper, faster: the same boxes and images, within one grey level.

    Semantic segmentation, precomputed proposals and formats other than BGR and RGB take
    detectron2's way.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        """Read, transform and pack one image with its annotations.

        Args:
            dataset_dict: in detectron2's format of data sets; it is not changed.

        Returns:
            a model's input: ``image``, uint8 of shape (3, height, width), and for training
            ``instances``.

        Raises:
            OSError: as :func:`read_image`.
            detectron2.data.detection_utils.SizeMismatchError: it has another size than annotated.
        """
        if (
            self.image_format not in ("BGR", "RGB")
            or self.proposal_topk is not None
            or "sem_seg_file_name" in dataset_dict
        ):
            return super().__call__(dataset_dict)
        dataset_dict = copy.deepcopy(dataset_dict)
        image = read_image(dataset_dict["file_name"], self.image_format, self.max_pixels)
        augmented = T.AugInput(image)
        utils.check_image_size(dataset_dict, augmented.image)
        with _naming_change(dataset_dict["file_name"]):
            transforms = self.augmentations(augmented)
        dataset_dict["image"] = to_planes(augmented.image)
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, augmented.image.shape[:2])
        return dataset_dict


def read_image(file_name: str, image_format: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image to the same pixels as detectron2's function of this name.

    OpenCV decodes JPEG files in colour or grey that are upright and end as they should. All other
    files, among them truncated ones, are detectron2's to judge.

    Args:
        file_name: path, or an address that detectron2's PathManager knows.
        image_format: ``BGR`` or ``RGB``.
        max_pixels: width times height above which an image is not decoded.

    Returns:
        uint8 of shape (height, width, 3), contiguous, turned as its EXIF orientation says.

    Raises:
        OSError: the file cannot be read, is no image, has too many pixels or more than 8 bits of
            grey; the message names it.
    """
    with _naming(file_name):
        with _opened(file_name) as file:
            data = file.read()
        is_simple = require_size(io.BytesIO(data), max_pixels) and data.endswith(_JPEG_END)
        if is_simple and cv2 is not None:
            # Versions of OpenCV fill what is missing at the end with grey.
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
            if image is not None:
                return image if image_format == "BGR" else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        # As detectron2's read_image. It makes BGR a reversed view, which is slow to copy later.
        with without_pillows_limit, open_image(io.BytesIO(data)) as opened:
            upright = utils._apply_exif_orientation(opened)
            image = utils.convert_PIL_to_numpy(upright, "RGB")
        return cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image_format == "BGR" else image


def _opened(file_name: str) -> BinaryIO:
    """Open a file here, which must be one, or an address that detectron2's PathManager knows."""
    if os.path.exists(file_name):
        return open_regular(file_name)
    return PathManager.open(file_name, "rb")


@contextlib.contextmanager
def _naming(file_name: str) -> Iterator[None]:
    """Turn the errors of many types that broken images raise into one that names the image."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.filename:
            raise
        # Of a file that is no image Pillow says where in the memory it is.
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else error
        raise ImageError(
            f"Image '{file_name}' cannot be read ({type(error).__name__}: {reason})."
        ) from error


@contextlib.contextmanager
def _naming_change(file_name: str) -> Iterator[None]:
    """Name the image that cannot be resized or changed, such as one of 1 x 1000 pixels."""
    try:
        yield
    except utils.SizeMismatchError:
        raise
    except (ValueError, ZeroDivisionError) as error:
        raise ImageError(
            f"Image '{file_name}' cannot be resized as INPUT asks ({type(error).__name__}: "
            f"{error}): cut it up, or leave it out."
        ) from error


def to_planes(image: np.ndarray) -> torch.Tensor:
    """A tensor (3, height, width) of an image (height, width, 3), which may be a flipped view."""
    if image.strides[1] < 0:
        # Both NumPy and OpenCV's bindings are slow with reversed rows.
        image = cv2.flip(image[:, ::-1], 1)
    return torch.from_numpy(np.stack(cv2.split(image)))
