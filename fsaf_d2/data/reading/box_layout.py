"""In which way boxes are written: in pixels or shares, with sizes or two corners.

Boxes are (x, y, width, height) where nothing else is said. Letter: M boxes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Pixels that tools may round by, those that write shares less.
TOLERANCE = 1.0
ROUNDING = 0.25
# Shares of an image's side, and of all boxes, that are more than rounding and single mistakes.
FAR = 0.05
MANY, FEW = 0.1, 0.01
# So many boxes can say in which way all are written; of shares, which seldom leave an image, two.
LEAST_EVIDENCE = 3
LEAST_OF_SHARES = 2
# What is above this is no share of a side, not even of one that is left a little.
LARGEST_SHARE = 1.5


class Layout(NamedTuple):
    """How the four numbers of all boxes are meant."""

    corners: bool = False  # x0, y0, x1, y1 in place of x, y, width, height
    centers: bool = False  # the centre in place of the first corner
    normalised: bool = False  # shares of the image's sides
    certain: bool = True  # no other way fits

    def to_pixels(self, boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Boxes as written -> (x, y, width, height) in pixels.

        Args:
            boxes: (M, 4).
            sizes: (M, 2), width and height of each one's image.
        """
        if self.normalised:
            is_share = (np.abs(boxes) <= LARGEST_SHARE).all(axis=1, keepdims=True)
            boxes = np.where(is_share, boxes * np.tile(sizes, 2), boxes)
        if self.corners:
            return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        if self.centers:
            return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, 2:]], axis=1)
        return boxes


def find_layout(boxes: np.ndarray, sizes: np.ndarray) -> Layout:
    """Judge from all boxes together how they are written.

    Boxes are taken as normalised where nearly all have nothing but values up to 1, and as two
    corners where many of them leave their images far as (x, y, width, height), and as corners
    nearly all are boxes in their images.

    Args:
        boxes: (M, 4), as written.
        sizes: (M, 2), nan where not known.
    """
    is_known = np.isfinite(sizes).all(axis=1)
    boxes, sizes = boxes[is_known], sizes[is_known]
    if len(boxes) and are_shares(boxes, sizes).mean() >= 1 - MANY:
        return _normalised_layout(boxes, sizes)
    leaving = misfits(Layout(), boxes, sizes, FAR)
    if leaving.sum() < max(LEAST_EVIDENCE, MANY * len(boxes)):
        return Layout()
    corners = Layout(corners=True)
    return corners if misfits(corners, boxes, sizes).mean() <= FEW else Layout()


def _normalised_layout(boxes: np.ndarray, sizes: np.ndarray) -> Layout:
    """The way in which fewest boxes leave their images; certain if in all others far more do."""
    ways = [Layout(normalised=True), Layout(True, False, True), Layout(False, True, True)]
    counts = [int(misfits(way, boxes, sizes, tolerance=ROUNDING).sum()) for way in ways]
    least, *others = sorted(counts)
    return ways[counts.index(least)]._replace(certain=_tells(boxes, least, others[0]))


def better_than_centers(boxes: np.ndarray, sizes: np.ndarray) -> tuple[list[str], int] | None:
    """In which ways shares fit that are given as centre, width and height, where they do not.

    Args:
        boxes: (M, 4), as written.
        sizes: (M, 2).

    Returns:
        "top-left" and "corners", those that fit, and how many boxes leave their images as centres;
        None where nothing else than centres is better.
    """
    ways = {"top-left": Layout(normalised=True), "corners": Layout(True, False, True)}
    leaving = int(misfits(Layout(False, True, True), boxes, sizes).sum())
    counts = {x: int(misfits(way, boxes, sizes).sum()) for x, way in ways.items()}
    fitting = [name for name, count in counts.items() if _tells(boxes, count, leaving)]
    return (fitting, leaving) if fitting else None


def _tells(boxes: np.ndarray, least: int, other: int) -> bool:
    """Whether one way, in which fewer boxes are wrong, is certain beside another."""
    return least <= FEW * len(boxes) and other >= max(LEAST_OF_SHARES, 10 * least)


def are_shares(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(M,) whether boxes have values up to 1 alone, in images where that is less than a pixel."""
    is_small = ((boxes >= 0) & (boxes <= 1)).all(axis=1) & (boxes != boxes.round()).any(axis=1)
    is_whole = (boxes == (0, 0, 1, 1)).all(axis=1)
    return (is_small | is_whole) & (boxes[:, 2:] > 0).all(axis=1) & ~(sizes <= 2).all(axis=1)


def misfits(
    layout: Layout,
    boxes: np.ndarray,
    sizes: np.ndarray,
    far: float = 0,
    tolerance: float = TOLERANCE,
) -> np.ndarray:
    """(M,) whether boxes are none in a layout, or leave their images.

    Args:
        far: by more than this share of their longer sides.
        tolerance: and by more pixels than this.
    """
    pixels = layout.to_pixels(boxes, sizes)
    limit = np.maximum(tolerance, far * sizes.max(axis=1, initial=0))
    return (pixels[:, 2:] < 0).any(axis=1) | (overhang(pixels, sizes) > limit)


def overhang(pixels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(M,) by how many pixels boxes leave their images, 0 or less if they do not."""
    last = pixels[:, :2] + pixels[:, 2:]
    beyond = np.concatenate([-pixels[:, :2], last - np.nan_to_num(sizes, nan=np.inf)], axis=1)
    return beyond.max(axis=1, initial=-np.inf)


def clip(pixels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(M, 4) the parts of boxes in their images; of size 0 where there is none."""
    limits = np.nan_to_num(sizes, nan=np.inf)
    first = np.clip(pixels[:, :2], 0, limits)
    last = np.clip(pixels[:, :2] + pixels[:, 2:], 0, limits)
    return np.concatenate([first, last - first], axis=1)
