"""Images of detections: the class gives the colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL import Image

from .drawn_labels import Labels, drawable_line

if TYPE_CHECKING:
    from detectron2.structures import Boxes, Instances

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
# Their black would not be seen on dark images.
CLASS_COLORS = (*COLORS, "#C8C8C8")
# Hues of further classes lie so far apart, as shares of the circle: none comes again.
GOLDEN = 0.618034
# Of the first branch, the second and so on: lengths of dashes and gaps, in px; none if solid.
LINES = ((), (7.0, 4.0), (2.0, 3.0), (9.0, 3.0, 2.0, 3.0))
CANVAS_COLOR = "#303030"
DPI = 100
GAP = 8
MIN_LONGER_SIDE = 512


def level_color(index: int) -> str:
    """Return the colour of a pyramid level, the same in every image.

    Args:
        index: the level's place in the list of levels, 0 for the finest.

    Returns:
        The colour as "#RRGGBB".
    """
    return COLORS[index % len(COLORS)]


def class_color(index: int) -> str:
    """Return the colour of a class, the same in every image, as "#RRGGBB".

    Colour-blind readers can tell the first eight apart.

    Args:
        index: the class's place in the list of classes.
    """
    if index < len(CLASS_COLORS):
        return CLASS_COLORS[index]
    place = index - len(CLASS_COLORS)
    return to_hex(hsv_to_rgb(((place * GOLDEN) % 1, 0.55 + 0.4 * (place % 2), 0.95)))


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
    """Draw detections: the class gives the colour, the branch the kind of line.

    A box carries a label such as "7 0.83 P4 point": class, score, level, branch. Level and branch
    are left out where no names are given or detections do not tell them, the branch also where
    there is but one. Labels lie outside of their boxes, where there is room for them; where one
    would hide another object it has the score alone, or is left out. No box is, so choose them by
    their score before.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: detections in image pixels with pred_boxes, scores, pred_classes and perhaps
            pred_levels and pred_branches (indices into `level_names` and `branch_names`).
        class_names: the names of the K classes.
        level_names: the names of the levels, the finest first, such as "p3"; empty not to tell.
        branch_names: the names of the branches; empty not to tell.
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
    colors = [class_color(k) for k in detections.pred_classes.tolist()]
    for i in order:
        _draw_box(axes, boxes[i], colors[i], width=2.0, line=LINES[(branches[i] or 0) % len(LINES)])
    labels = Labels(axes, boxes)
    # The surest detection has the first choice of a place for its label.
    for i in reversed(order):
        words = [class_names[int(detections.pred_classes[i])], f"{float(detections.scores[i]):.2f}"]
        words += [level_names[levels[i]].upper()] if levels[i] is not None else []
        has_others = branches[i] is not None and len(branch_names) > 1
        words += [branch_names[branches[i]]] if has_others else []
        labels.draw(i, (" ".join(words), words[1]), colors[i])
    return _drawn(axes)


def _told(detections: Instances, field: str, names: Sequence[str]) -> list[int | None]:
    """Of each detection, the index into the names; None where it, or the names, do not tell."""
    is_told = detections.has(field) and len(names) > 0
    return detections.get(field).tolist() if is_told else [None] * len(detections)


def draw_truth(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: Sequence[int],
    class_names: Sequence[str],
    *,
    scale: float = 1.0,
) -> np.ndarray:
    """Draw annotated boxes with the names and colours of their classes.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (M, 4), xyxy in image pixels.
        classes: of the M boxes.
        class_names: the names of the K classes.
        scale: magnification.

    Returns:
        The image, (round(H * scale), round(W * scale), 3) uint8 RGB.
    """
    axes = _canvas(image, scale)
    boxes = boxes * scale
    for box, k in zip(boxes, classes, strict=True):
        _draw_box(axes, box, class_color(k), width=1.5)
    labels = Labels(axes, boxes)
    for i, k in enumerate(classes):
        labels.draw(i, (class_names[k],), class_color(k))
    return _drawn(axes)


def detection_grid(
    images: Sequence[np.ndarray],
    *,
    columns: int = 3,
    branch_names: Sequence[str] = (),
    ground_truth: bool = False,
) -> np.ndarray:
    """Lay images of detections out in rows, with a legend above them.

    Args:
        images: at least one image, each (H, W, 3) uint8 RGB; the sizes may differ.
        columns: images per row.
        branch_names: as for :func:`draw_detections`.
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
    legend = _legend(columns * cell_width + GAP, branch_names, ground_truth)
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
        *(0.5, 0.4, drawable_line(text)),
        color="white",
        fontsize=10,
        horizontalalignment="center",
        verticalalignment="center",
        parse_math=False,
    )
    return _pixels(figure)


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


def _legend(width: int, branch_names: Sequence[str], ground_truth: bool) -> np.ndarray:
    """Draw the legend, (H, width, 3) uint8 RGB, in as many rows as the width asks for."""
    handles: list[Line2D] = []
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
