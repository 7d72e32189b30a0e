"""Labels of boxes in images, where they hide nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle

from ..texts import as_line

# Of boxes with a shorter side of less than SMALL, in drawn pixels, the labels are smaller, too.
SMALL = 48
FONT, SMALL_FONT = FontProperties(size=8), FontProperties(size=6)
LABEL_HEIGHT, SMALL_LABEL_HEIGHT = 14, 10
# The share of a box, or of another label, that a label may hide.
MAY_HIDE = 0.25
# Of a label or caption, and of these at its end, where a score stands.
_LETTERS = 100, 40


def drawable_line(text: str) -> str:
    """A text as it can be drawn: a line of letters, without the middle of a long one."""
    most, end = _LETTERS
    return as_line(text if len(text) <= most else f"{text[: most - end - 1]}…{text[-end:]}")


class Labels:
    """Places for the labels of boxes (N, 4), xyxy in canvas pixels."""

    def __init__(self, axes: Axes, boxes: np.ndarray) -> None:
        self._axes, self._boxes = axes, boxes
        self._taken = np.empty((0, 4))

    def draw(self, i: int, labels: Sequence[str], color: str) -> np.ndarray | None:
        """Write the label of a box beside it, inside the image and clear of others.

        Args:
            i: of the box.
            labels: the first that has a place is written.
            color: of its ground.

        Returns:
            its place, xyxy in canvas pixels; None if all would hide another object or label.
        """
        for label in map(drawable_line, labels):
            place = self._draw(i, label, color)
            if place is not None:
                return place
        return None

    def _draw(self, i: int, label: str, color: str) -> np.ndarray | None:
        x0, y0, x1, y1 = self._boxes[i].tolist()
        is_small = min(x1 - x0, y1 - y0) < SMALL
        font = SMALL_FONT if is_small else FONT
        height = SMALL_LABEL_HEIGHT if is_small else LABEL_HEIGHT
        renderer = self._axes.figure.canvas.get_renderer()
        width = renderer.get_text_width_height_descent(label, font, False)[0] + height / 2 - 1
        places = self._places(i, width, height)
        costs = self._hidden(places)
        best = int(costs.argmin())
        if costs[best] > MAY_HIDE:
            return None
        place = places[best]
        self._taken = np.concatenate([self._taken, place[None]])
        self._write(place, label, color, font)
        return place

    def _places(self, i: int, width: float, height: float) -> np.ndarray:
        """(P, 4) where a label may stand, the best first: outside the box, then inside."""
        x0, y0, x1, y1 = self._boxes[i].tolist()
        corners = np.array(
            [
                *((x0, y0 - height), (x0, y1), (x1 - width, y0 - height), (x1 - width, y1)),
                *((x1, y0), (x0 - width, y0), (x1, y1 - height), (x0 - width, y1 - height)),
                (x0, y0),
            ]
        )
        most = np.array(self._axes.figure.canvas.get_width_height()) - (width, height)
        corners = np.maximum(np.minimum(corners, most), 0)
        return np.concatenate([corners, corners + (width, height)], axis=1)

    def _hidden(self, places: np.ndarray) -> np.ndarray:
        """(P,) the largest share of a box, or of a label, that each place would hide."""
        others = np.concatenate([self._boxes, self._taken])
        starts = np.maximum(places[:, None, :2], others[:, :2])
        ends = np.minimum(places[:, None, 2:], others[:, 2:])
        shared = (ends - starts).clip(min=0).prod(axis=2)
        areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
        return (shared / np.maximum(areas, 1)).max(axis=1)

    def _write(self, place: np.ndarray, label: str, color: str, font: FontProperties) -> None:
        x0, y0, x1, y1 = place.tolist()
        self._axes.add_artist(
            Rectangle((x0, y0), x1 - x0, y1 - y0, facecolor=color, edgecolor="none")
        )
        self._axes.text(
            (x0 + x1) / 2,
            (y0 + y1) / 2,
            label,
            fontproperties=font,
            color="black" if np.dot(to_rgb(color), (0.299, 0.587, 0.114)) > 0.45 else "white",
            horizontalalignment="center",
            verticalalignment="center",
            parse_math=False,
        )
