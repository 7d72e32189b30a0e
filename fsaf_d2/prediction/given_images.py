"""Images as callers have them: files, OpenCV's arrays, Pillow's images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Literal

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps

from ..data.loading.mapper import read_image
from ..data.reading.image_headers import DEEP_MODES, excess

Channels = Literal["BGR", "RGB"]
# What a single image can be; all else is taken for a list of them.
GivenImage = str | os.PathLike | np.ndarray | Image.Image
_SINGLE = (str, os.PathLike, np.ndarray, Image.Image, torch.Tensor, type(None))


def is_single(images: object) -> bool:
    """Whether what a caller gives is one image, if not one that can be taken."""
    return isinstance(images, (*_SINGLE, Mapping)) or not isinstance(images, Iterable)


def to_array(image: GivenImage, channels: Channels, max_pixels: int) -> np.ndarray:
    """An image as a contiguous uint8 array (H, W, 3), upright.

    Args:
        image: path of a file; uint8 array (H, W, 3) in the order of ``channels``; or an image of
            Pillow's, which is turned as its EXIF orientation says.
        channels: order of the result's channels.
        max_pixels: width times height above which a file or an image of Pillow's is refused.

    Raises:
        OSError: a file cannot be read, is no image, or has too many pixels.
        ValueError: it is none of these.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(
                "An image must be a uint8 array of shape (height, width, 3), not "
                f"{image.dtype} of {image.shape}: cv2.imread gives it so."
            )
        return np.ascontiguousarray(image)
    if isinstance(image, Image.Image):
        return _from_pillow(image, channels, max_pixels)
    if isinstance(image, (str, os.PathLike)):
        return read_image(os.fspath(image), channels, max_pixels)
    if image is None:
        raise ValueError(
            "An image is None, which is what cv2.imread gives for a file that it cannot read: give "
            "the file's path, and the error will say what is wrong with it."
        )
    if isinstance(image, torch.Tensor):
        raise ValueError(
            f"An image is a tensor of {tuple(image.shape)}: give a uint8 array (height, width, 3), "
            "as of tensor.permute(1, 2, 0).cpu().numpy(), or the file's path."
        )
    raise ValueError(
        f"An image is of type {type(image).__name__}: give the path of a file, a uint8 array "
        "(height, width, 3) or an image of Pillow's."
    )


def _from_pillow(image: Image.Image, channels: Channels, max_pixels: int) -> np.ndarray:
    if reason := excess(image.size, max_pixels):
        raise OSError(f"An image has {reason}.")
    if image.mode in DEEP_MODES:
        raise ValueError(
            f"An image's grey has more than 8 bits (Pillow's mode {image.mode}), for which there "
            "is more than one way to 8: convert it as the images of the training were."
        )
    pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if 0 in pixels.shape:
        raise ValueError(
            f"An image has {image.width} x {image.height} pixels: there is nothing in it."
        )
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if channels == "BGR" else pixels
