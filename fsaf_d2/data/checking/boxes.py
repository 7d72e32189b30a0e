"""Boxes in their images and beside each other.

Letter: M annotations that can be used (see :class:`.entries.Entries`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..object_sizes import LEAST_SIDE
from ..reading import box_layout
from ..reading.box_layout import Layout
from .entries import Entries

# YOLO's shares of a side give one of a pixel back with a rounding error.
PIXEL = 1.01


class Boxes(NamedTuple):
    """The boxes of the annotations that can be used."""

    layout: Layout
    pixels: np.ndarray  # (M, 4) x, y, width, height, by the layout
    sizes: np.ndarray  # (M, 2) declared width and height of the images, nan where not given
    is_usable: np.ndarray  # (M,) bool, whether something of the box is in the image

    def clipped(self) -> np.ndarray:
        """(M, 4) x, y, width, height of the parts in the images."""
        return box_layout.clip(self.pixels, self.sizes)


def check_boxes(entries: Entries) -> Boxes:
    """Compare boxes with the declared sizes of their images; findings go to ``entries.flaws``."""
    sizes = entries.sizes[entries.image_index]
    layout = box_layout.find_layout(entries.boxes, sizes)
    pixels = layout.to_pixels(entries.boxes, sizes)
    are_shares = box_layout.are_shares(entries.boxes, sizes)
    least_side = pixels[:, 2:].min(axis=1, initial=np.inf)
    least_inside = box_layout.clip(pixels, sizes)[:, 2:].min(axis=1, initial=np.inf)
    # A box is found for the first that is true of it.
    kinds = {
        "normalised box": are_shares & (not layout.normalised),
        "negative box size": least_side < 0,
        "zero-sized box": least_side <= LEAST_SIDE,
        "box outside the image": least_inside <= LEAST_SIDE,
        "box of a pixel": (pixels[:, 2:] <= PIXEL).any(axis=1) & (not layout.normalised),
        "box partly outside": box_layout.overhang(pixels, sizes) > box_layout.TOLERANCE,
    }
    is_free = np.ones(len(pixels), dtype=bool)
    is_usable = is_free.copy()
    for kind, mask in kinds.items():
        for m in np.flatnonzero(mask & is_free).tolist():
            entries.flaws.append(entries.of_box(kind, m, _image_size(sizes[m])))
        is_free &= ~mask
        if kind not in ("box partly outside", "box of a pixel"):
            is_usable &= ~mask
    _report_layout(entries, layout, sizes)
    _check_duplicates(entries, is_usable)
    return Boxes(layout, pixels, sizes, is_usable)


def _image_size(size: np.ndarray) -> str:
    return "" if np.isnan(size).any() else f" in {size[0]:.0f} x {size[1]:.0f} pixels"


def _report_layout(entries: Entries, layout: Layout, sizes: np.ndarray) -> None:
    """Name the boxes that show that all are written in another way."""
    if layout.normalised:
        shown, kind = box_layout.are_shares(entries.boxes, sizes), "normalised box"
        note = f", as are {shown.sum()} of {len(sizes)} boxes"
        if layout.corners or layout.centers:
            note += " (as two corners)" if layout.corners else " (as centre, width and height)"
    elif layout.corners:
        shown = box_layout.misfits(Layout(), entries.boxes, sizes, box_layout.FAR)
        kind, note = "xyxy given as xywh", f"; {len(sizes)} boxes fit better as two corners"
    else:
        return
    for m in np.flatnonzero(shown).tolist():
        entries.flaws.append(entries.of_box(kind, m, _image_size(sizes[m]) + note))


def _check_duplicates(entries: Entries, is_usable: np.ndarray) -> None:
    rows = np.column_stack(
        [entries.image_index, entries.category_index, entries.is_crowd, entries.boxes]
    )
    usable = np.flatnonzero(is_usable)
    _, first, group = np.unique(rows[usable], axis=0, return_index=True, return_inverse=True)
    originals = usable[first][group.reshape(-1)]
    for m, original in zip(usable.tolist(), originals.tolist()):
        if m != original:
            note = f", as annotation {entries.annotations[original].get('id')!r:.99}"
            entries.flaws.append(entries.of_box("duplicate box", m, note))
