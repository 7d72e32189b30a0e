"""Random brightness, contrast and saturation of training images."""

from __future__ import annotations

import numpy as np
from detectron2.data import transforms as T


def color_jitter(strength: float, image_format: str) -> list[T.Augmentation]:
    """The augmentations that ``INPUT.COLOR_JITTER`` asks for; none if it is 0.

    Args:
        strength: each of the three is multiplied by a factor from 1 - strength to 1 + strength.
        image_format: of the images, ``BGR`` or ``RGB``.

    Raises:
        ValueError: the strength is below 0 or above 1.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"INPUT.COLOR_JITTER must be from 0 to 1, not {strength}.")
    if not strength:
        return []
    limits = 1 - strength, 1 + strength
    saturation = T.RandomSaturation if image_format == "RGB" else _SaturationOfBGR
    return [T.RandomBrightness(*limits), T.RandomContrast(*limits), saturation(*limits)]


class _SaturationOfBGR(T.RandomSaturation):
    """detectron2's, which takes the channels for RGB, for the opposite order."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return super().get_transform(image[..., ::-1])
