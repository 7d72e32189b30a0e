"""Resizing images by Pillow, as detectron2 does, or by OpenCV, which is faster."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T
from PIL import Image

from ...texts import shown
from ..reading.image_headers import MAX_PIXELS

try:
    import cv2
except ImportError:
    cv2 = None

# Values of INPUT.RESIZE.
RESIZE_METHODS = ("auto", "pillow", "opencv")


def shortest_edge(
    short_side: int | Sequence[int],
    max_side: int,
    method: str,
    sample_style: str = "choice",
    interp: int = Image.BILINEAR,
    *,
    max_pixels: int = MAX_PIXELS,
    keys: str = "INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST",
) -> LimitedShortestEdge:
    """The resizing that ``INPUT.RESIZE`` asks for.

    Args:
        short_side, max_side, sample_style, interp: as detectron2's.
        method: one of :data:`RESIZE_METHODS`; without OpenCV "auto" is "pillow".
        max_pixels: to more no image is resized.
        keys: where the sides come from, for messages.

    Raises:
        ValueError: the method is not known, or OpenCV is not installed.
    """
    if method not in RESIZE_METHODS:
        raise ValueError(f"INPUT.RESIZE must be one of {RESIZE_METHODS}, not {method!r}.")
    if method == "opencv" and cv2 is None:
        raise ValueError("INPUT.RESIZE 'opencv' needs OpenCV: pip install opencv-python-headless.")
    sizes, limits = (short_side, max_side, sample_style, interp), (max_pixels, keys)
    if method == "pillow" or cv2 is None:
        return LimitedShortestEdge(*sizes, *limits)
    return ResizeShortestEdge(*sizes, *limits, always=method == "opencv")


class LimitedShortestEdge(T.ResizeShortestEdge):
    """detectron2's, which makes no image of none or of too many pixels."""

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int,
        sample_style: str = "range",
        interp: int = Image.BILINEAR,
        max_pixels: int = MAX_PIXELS,
        keys: str = "short_edge_length and max_size",
    ) -> None:
        """Take detectron2's arguments, the limit and where the sides come from, for messages."""
        super().__init__(short_edge_length, max_size, sample_style, interp)
        self.max_pixels, self.keys = max_pixels, keys

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Choose the size of an image of shape (height, width, channels).

        Raises:
            ValueError: it would have no pixels, or too many.
        """
        transform = super().get_transform(image)
        if not isinstance(transform, T.ResizeTransform):
            return transform
        size = f"once resized it has {transform.new_w} x {transform.new_h} pixels"
        if min(transform.new_h, transform.new_w) < 1:
            raise ValueError(f"{size}, which is none")
        if transform.new_h * transform.new_w > self.max_pixels:
            sides = sorted({*self.short_edge_length})
            raise ValueError(
                f"{size}, more than the {self.max_pixels} that INPUT.MAX_PIXELS allows, as "
                f"{self.keys} are {shown(sides if sides[1:] else sides[0])} and {self.max_size}"
            )
        return transform


class ResizeShortestEdge(LimitedShortestEdge):
    """The same, with the same random sizes, through :class:`ResizeTransform`."""

    def __init__(self, *arguments: object, always: bool = False, **named: object) -> None:
        """Take the same arguments, and whether OpenCV also makes images smaller."""
        super().__init__(*arguments, **named)
        self.always = always

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Choose the size of an image of shape (height, width, channels)."""
        transform = super().get_transform(image)
        if not isinstance(transform, T.ResizeTransform):
            return transform
        return ResizeTransform(
            transform.h,
            transform.w,
            transform.new_h,
            transform.new_w,
            transform.interp,
            always=self.always,
        )


class ResizeTransform(T.ResizeTransform):
    """detectron2's resizing, by OpenCV where the image gets larger.

    Where it gets smaller, Pillow averages over all pixels, which no mode of OpenCV does alike.
    """

    def __init__(
        self,
        h: int,
        w: int,
        new_h: int,
        new_w: int,
        interp: int | None = None,
        always: bool = False,
    ) -> None:
        """Take detectron2's arguments, and whether OpenCV, from four pixels, does that too."""
        super().__init__(h, w, new_h, new_w, interp)
        self.always = always

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize an image of shape (height, width[, channels]).

        Args:
            img: the image.
            interp: Pillow's interpolation method, in place of the transform's own.
        """
        enlarges = self.always or (self.new_h >= self.h and self.new_w >= self.w)
        bilinear = (self.interp if interp is None else interp) == Image.BILINEAR
        if not (enlarges and bilinear and img.dtype == np.uint8 and img.shape[2:] == (3,)):
            return super().apply_image(img, interp)
        return cv2.resize(img, (self.new_w, self.new_h), interpolation=cv2.INTER_LINEAR)
