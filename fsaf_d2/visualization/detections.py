"""Images of detections that tell which pyramid level and which branch answered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from PIL import Image

from ..texts import as_line

if TYPE_CHECKING:
    from detectron2.structures import Boxes, Instances

# Okabe and Ito's palette, which colour-blind readers can tell apart.
LEVEL_COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
TRUTH_COLOR = "#40FF40"
# Of the first branch, the second and so on: lengths of dashes and gaps, in px; none if solid.
LINES = ((), (7.0, 4.0), (2.0, 3.0), (9.0, 3.0, 2.0, 3.0))
CANVAS_COLOR = "#303030"
DPI = 100
FONT = FontProperties(size=8)
LABEL_HEIGHT = 14
# Of a label or caption, and of these at its end, where a score stands.
LETTERS = 100, 40
GAP = 8
MIN_LONGER_SIDE = 512


def level_color(index: int) -> str:
    """Return the colour of a pyramid level, the same in every image.

    Args:
        index: the level's place in the list of levels, 0 for the finest.

    Returns:
        The colour as "#RRGGBB".
    """
    return LEVEL_COLORS[index % len(LEVEL_COLORS)]


def draw_detections(
    image: np.ndarray,
    instances: Instances,
    *,
    class_names: Sequence[str],
    level_names: Sequence[str] = (),
    branch_names: Sequence[str] = (),
    gt_boxes: Boxes | None = None,
    scale: float | None = None,
) -> np.ndarray:
    """Draw detections: the level gives the colour, the branch the kind of line.

    Every box carries a label such as "7 0.83 P4 point": class, score, level, branch. Level and
    branch are left out where detections do not tell them, the branch also where there is but one.
    No detection is left out, so choose them by their score before.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: detections in image pixels with pred_boxes, scores, pred_classes and perhaps
            pred_levels and pred_branches (indices into `level_names` and `branch_names`).
        class_names: the names of the K classes.
        level_names: the names of the levels, the finest first, such as "p3".
        branch_names: the names of the branches.
        gt_boxes: true boxes in image pixels, drawn thin and white under the detections.
        scale: magnification; None magnifies small images so that the labels can be read.

    Returns:
        The image, (round(H * scale), round(W * scale), 3) uint8 RGB.
    """
    if scale is None:
        scale = max(1, math.ceil(MIN_LONGER_SIDE / max(image.shape[:2])))
    axes = _canvas(image, scale)
    if gt_boxes is not None:
        for box in gt_boxes.tensor.cpu().numpy() * scale:
            _draw_box(axes, box, "white", width=1.0)

    detections = instances.to("cpu")
    boxes = detections.pred_boxes.tensor.numpy() * scale
    order = detections.scores.argsort().tolist()
    levels = _told(detections, "pred_levels", level_names)
    branches = _told(detections, "pred_branches", branch_names)
    colors = [level_color(level or 0) for level in levels]
    for i in order:
        _draw_box(axes, boxes[i], colors[i], width=2.0, line=LINES[(branches[i] or 0) % len(LINES)])
    taken: list[tuple[float, float, float, float]] = []
    # The surest detection has the first choice of a place for its label.
    for i in reversed(order):
        words = [class_names[int(detections.pred_classes[i])], f"{float(detections.scores[i]):.2f}"]
        words += [level_names[levels[i]].upper()] if levels[i] is not None else []
        has_others = branches[i] is not None and len(branch_names) > 1
        words += [branch_names[branches[i]]] if has_others else []
        taken.append(_draw_label(axes, " ".join(words), boxes[i], colors[i], taken))
    return _drawn(axes)


def _told(detections: Instances, field: str, names: Sequence[str]) -> list[int | None]:
    """Of each detection, the index into the names; None where it, or the names, do not tell."""
    is_told = detections.has(field) and len(names) > 0
    return detections.get(field).tolist() if is_told else [None] * len(detections)


def draw_truth(
    image: np.ndarray, boxes: np.ndarray, names: Sequence[str], *, scale: float = 1.0
) -> np.ndarray:
    """Draw annotated boxes with the names of their classes, in a colour that no level has.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (M, 4), xyxy in image pixels.
        names: of the M classes.
        scale: magnification.

    Returns:
        The image, (round(H * scale), round(W * scale), 3) uint8 RGB.
    """
    axes = _canvas(image, scale)
    for box in boxes * scale:
        _draw_box(axes, box, TRUTH_COLOR, width=1.5)
    taken: list[tuple[float, float, float, float]] = []
    for box, name in zip(boxes * scale, names, strict=True):
        taken.append(_draw_label(axes, name, box, TRUTH_COLOR, taken))
    return _drawn(axes)


def detection_grid(
    images: Sequence[np.ndarray],
    *,
    columns: int = 3,
    level_names: Sequence[str] = (),
    branch_names: Sequence[str] = (),
    ground_truth: bool = False,
) -> np.ndarray:
    """Lay images of detections out in rows, with a legend above them.

    Args:
        images: at least one image, each (H, W, 3) uint8 RGB; the sizes may differ.
        columns: images per row.
        level_names, branch_names: as for :func:`draw_detections`.
        ground_truth: whether the images show true boxes, which the legend then explains.

    Returns:
        The canvas, (H, W, 3) uint8 RGB.

    Raises:
        ValueError: there are no images, or `columns` is below 1.
    """
    if not images or columns < 1:
        raise ValueError(f"got {len(images)} images for {columns} columns")
    columns = min(columns, len(images))
    cell_height = max(image.shape[0] for image in images) + GAP
    cell_width = max(image.shape[1] for image in images) + GAP
    rows = -(-len(images) // columns)
    legend = _legend(columns * cell_width + GAP, level_names, branch_names, ground_truth)
    canvas = np.empty((len(legend) + rows * cell_height, legend.shape[1], 3), dtype=np.uint8)
    canvas[:] = np.rint(255 * np.array(to_rgb(CANVAS_COLOR)))
    canvas[: len(legend)] = legend
    for i, image in enumerate(images):
        top = len(legend) + i // columns * cell_height
        left = GAP + i % columns * cell_width
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


def draw_caption(text: str, width: int) -> np.ndarray:
    """Write a line in the middle of a strip of the grid's colour: (H, width, 3) uint8 RGB."""
    figure = _figure(width, 28)
    figure.text(
        *(0.5, 0.4, _line(text)),
        color="white",
        fontsize=10,
        horizontalalignment="center",
        verticalalignment="center",
        parse_math=False,
    )
    return _pixels(figure)


def _line(text: str) -> str:
    """A text as it can be drawn: a line of letters, without the middle of a long one."""
    most, end = LETTERS
    return as_line(text if len(text) <= most else f"{text[: most - end - 1]}…{text[-end:]}")


def _canvas(image: np.ndarray, scale: float) -> Axes:
    """Axes in pixels over the magnified image, which is in the canvas already."""
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    figure = _figure(width, height)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    # Where the image gets smaller, Pillow averages over all of its pixels.
    magnified = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    # Into the canvas itself: as an image of matplotlib's it would be resampled once more.
    canvas = np.asarray(figure.canvas.get_renderer().buffer_rgba())
    canvas[:, :, :3] = magnified
    canvas[:, :, 3] = 255
    return axes


def _drawn(axes: Axes) -> np.ndarray:
    """Draw what was added to the axes of a canvas: (H, W, 3) uint8 RGB."""
    renderer = axes.figure.canvas.get_renderer()
    axes.draw(renderer)
    return np.asarray(renderer.buffer_rgba())[:, :, :3].copy()


def _figure(width: int, height: int) -> Figure:
    """Create a figure of so many pixels, apart from pyplot's global state."""
    # The canvas rounds down: without the hundredth of a pixel a size may come out one short.
    figure = Figure(figsize=((width + 0.01) / DPI, (height + 0.01) / DPI), dpi=DPI)
    figure.set_facecolor(CANVAS_COLOR)
    FigureCanvasAgg(figure)
    return figure


def _pixels(figure: Figure) -> np.ndarray:
    """Render a figure to (H, W, 3) uint8 RGB."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[:, :, :3].copy()


def _draw_box(
    axes: Axes, box: np.ndarray, color: str, *, width: float, line: Sequence[float] = ()
) -> None:
    """Draw one xyxy box in canvas pixels, with a dark seam that shows it on any background."""
    x1, y1, x2, y2 = box.tolist()
    for line_color, line_width, alpha in (("black", width + 1.5, 0.5), (color, width, 1.0)):
        # Dashes are given in line widths: divided by them, those of seam and line coincide.
        dashes = (0, tuple(length / line_width for length in line)) if line else "solid"
        # add_patch would work out limits for the axes, too.
        axes.add_artist(
            Rectangle(
                (x1, y1),
                x2 - x1,
                y2 - y1,
                fill=False,
                edgecolor=line_color,
                linewidth=line_width * 72 / DPI,
                linestyle=dashes,
                alpha=alpha,
            )
        )


def _draw_label(
    axes: Axes,
    label: str,
    box: np.ndarray,
    color: str,
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """Write a label at the edge of its box, inside the image and clear of earlier labels.

    Returns the label's place, xyxy in canvas pixels.
    """
    canvas, label = axes.figure.canvas, _line(label)
    text_width, _, _ = canvas.get_renderer().get_text_width_height_descent(label, FONT, False)
    width, height = text_width + 6, LABEL_HEIGHT
    canvas_width, canvas_height = canvas.get_width_height()
    x1, y1, x2, y2 = box.tolist()
    places = []
    for x, y in (
        (x1, y1 - height),
        (x1, y2),
        (x2 - width, y1 - height),
        (x2 - width, y2),
        (x2, y1),
        (x1 - width, y1),
        (x1, y1),
    ):
        x = max(0.0, min(x, canvas_width - width))
        y = max(0.0, min(y, canvas_height - height))
        places.append((x, y, x + width, y + height))
    place = min(places, key=lambda place: sum(_overlap(place, other) for other in taken))
    axes.add_artist(Rectangle(place[:2], width, height, facecolor=color, edgecolor="none"))
    axes.text(
        (place[0] + place[2]) / 2,
        (place[1] + place[3]) / 2,
        label,
        fontproperties=FONT,
        color="black" if np.dot(to_rgb(color), (0.299, 0.587, 0.114)) > 0.45 else "white",
        horizontalalignment="center",
        verticalalignment="center",
        parse_math=False,
    )
    return place


def _overlap(place: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Return the area that two xyxy rectangles share."""
    width = min(place[2], other[2]) - max(place[0], other[0])
    height = min(place[3], other[3]) - max(place[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _legend(
    width: int, level_names: Sequence[str], branch_names: Sequence[str], ground_truth: bool
) -> np.ndarray:
    """Draw the legend, (H, width, 3) uint8 RGB, in as many rows as the width asks for."""
    handles: list[Patch | Line2D] = [
        Patch(facecolor=level_color(i), label=name.upper()) for i, name in enumerate(level_names)
    ]
    for i, name in enumerate(branch_names if len(branch_names) > 1 else ()):
        line = LINES[i % len(LINES)]
        style = (0, tuple(length / 2 for length in line)) if line else "solid"
        label = f"{name} branch"
        handles.append(Line2D([], [], color="#C0C0C0", linewidth=2, linestyle=style, label=label))
    if ground_truth:
        handles.append(Line2D([], [], color="white", linewidth=0.8, label="ground truth"))
    if not handles:
        return np.empty((0, width, 3), dtype=np.uint8)
    for columns in range(len(handles), 0, -1):
        height = 20 + 20 * -(-len(handles) // columns)
        figure = _figure(width, height)
        legend = figure.legend(
            handles=handles, loc="center", ncols=columns, frameon=False, labelcolor="white"
        )
        if legend.get_window_extent(figure.canvas.get_renderer()).width <= width:
            break
    return _pixels(figure)
