"""The report of a run: one HTML file that opens anywhere, without a network."""

from __future__ import annotations

import base64
import io
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
import yaml
from PIL import Image, ImageDraw

from ..data.loading.mapper import read_image
from ..data.reading.image_headers import MAX_PIXELS
from ..plain_json import load_json
from ..plain_yaml import plain_yaml
from ..regular_files import open_regular
from ..texts import write_text
from ..visualization.data_statistics import plot_statistics
from ..visualization.training_curves import plot_training, read_metrics
from .average_precision import METRICS
from .figure_tables import row_name

_logger = logging.getLogger("detectron2.fsaf_d2.evaluation")
REPORT = "report.html"
SIZES = {"APs": "small", "APm": "medium", "APl": "large"}
# What most decides how a training goes; the rest of the config is folded away.
SETTINGS = (
    *("MODEL.WEIGHTS", "DATASETS.TRAIN", "DATASETS.TEST"),
    *("SOLVER.OPTIMIZER", "SOLVER.BASE_LR", "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER"),
    *("SOLVER.STEPS", "SOLVER.WARMUP_ITERS", "SOLVER.EMA_DECAY", "INPUT.MIN_SIZE_TRAIN"),
    *("INPUT.MIN_SIZE_TEST", "MODEL.META_ARCHITECTURE", "MODEL.BRANCHES", "SEED"),
)
# Sides of images, in pixels.
CROP_SIDE = 220
WIDEST = 1600
# How much of the surroundings a crop shows, as a share of the box's longer side.
CONTEXT = 0.6
# Of a data set, in words; the plot beside them has the rest.
STATISTICS = (
    *("images", "boxes", "crowds", "images_without_objects", "median_box_size"),
    *("median_image_size", "image_sizes"),
)
GREEN, RED = "#009E73", "#D55E00"


def keep_report(output_dir: str | os.PathLike[str]) -> None:
    """Write the report and log where it is; nothing that goes wrong with it ends a run."""
    try:
        _logger.info(f"Report: {write_report(output_dir)}")
    except Exception:
        _logger.exception("The report could not be written; the run goes on")


def write_report(output_dir: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` from what a run has left in its folder.

    Whatever is there is shown: ``config.yaml``, ``metrics.json``, ``advice.txt``,
    ``data/check_*.json``, ``inference/*/evaluation.json`` and the images beside it,
    ``level_lens.png`` and the last of ``samples/``. What is not there is left out.

    Args:
        output_dir: the run's ``OUTPUT_DIR``.

    Returns:
        path of the report.

    Raises:
        FileNotFoundError: there is no such folder, or it holds nothing of a run.
        OSError: the report cannot be written.
    """
    folder = Path(output_dir)
    evaluations = [_evaluation(file) for file in sorted(folder.glob("inference/*/evaluation.json"))]
    config = _config(folder / "config.yaml")
    steps = _number_of_steps(folder / "metrics.json")
    if not (evaluations or config or steps):
        raise FileNotFoundError(
            f"'{folder}' holds neither config.yaml nor metrics.json nor "
            "inference/*/evaluation.json: give the OUTPUT_DIR of a training or an evaluation."
        )
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            name=folder.resolve().name,
            advice=_text(folder / "advice.txt"),
            evaluations=evaluations,
            row_name=row_name,
            metrics=METRICS,
            sizes=SIZES,
            steps=steps,
            curves=_curves(folder) if steps else None,
            level_lens=_image(folder / "level_lens.png"),
            samples=_image(_last(folder / "samples")),
            checks=[_check(file) for file in sorted(folder.glob("data/check_*.json"))],
            settings={
                key: _value(config, key) for key in SETTINGS if _value(config, key) is not None
            },
            config=yaml.safe_dump(config, sort_keys=True) if config else "",
        )
    )
    part, report = folder / f".{REPORT}.part", folder / REPORT
    write_text(part, page)
    part.replace(report)
    return report


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        # Names of classes and files are anybody's.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = _figure
    return environment


def _figure(value: float | None, digits: int = 1) -> str:
    """A number as it is shown; "n/a" where there is none."""
    return "n/a" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _evaluation(file: Path) -> dict:
    """What the report shows of one evaluation."""
    data = load_json(file)
    data["images"] = {
        "precision and recall": _image(file.parent / "pr_curves.png"),
        "confusion": _image(file.parent / "confusion.png"),
    }
    folder = Path(data.get("image_root") or "")
    data["galleries"] = {
        "Worst misses": (
            "Objects that were not found, with the best score of a box on them.",
            [_crop(folder, entry, GREEN, entry.get("best_score")) for entry in data["misses"]],
        ),
        "Worst false alarms": (
            "Boxes of the highest scores where no object of that class is.",
            [_crop(folder, entry, RED, entry.get("score")) for entry in data["false_alarms"]],
        ),
    }
    return data


def _crop(folder: Path, entry: dict, color: str, score: float | None) -> dict:
    """A box with its surroundings; without an image where that cannot be read."""
    shown = {"title": str(entry["category"]), "file": Path(entry["file_name"]).name, "score": score}
    try:
        image = read_image(str(folder / entry["file_name"]), "RGB", MAX_PIXELS)
        return {**shown, "image": _encode(crop(image, entry["bbox"], color))}
    except OSError as error:
        _logger.warning(f"Left out of the report: {error}")
        return {**shown, "image": None}


def crop(image: np.ndarray, box: Sequence[float], color: str) -> Image.Image:
    """Cut a box with its surroundings out of an image, and draw it.

    Args:
        image: (H, W, 3) uint8 RGB.
        box: (x, y, width, height) in pixels.
        color: of the box.

    Returns:
        RGB of CROP_SIDE x CROP_SIDE pixels; what lies outside of the image is grey.
    """
    x, y, width, height = box
    half = max((0.5 + CONTEXT) * max(width, height), 16.0)
    left, top = round(x + width / 2 - half), round(y + height / 2 - half)
    side = round(2 * half)
    result = Image.new("RGB", (side, side), (160, 160, 160))
    part = image[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)]
    if part.size:
        result.paste(Image.fromarray(part), (max(-left, 0), max(-top, 0)))
    scale = CROP_SIDE / side
    result = result.resize((CROP_SIDE, CROP_SIDE), Image.Resampling.BICUBIC)
    place = ((x - left, y - top), (x + width - left, y + height - top))
    corners = [tuple(round(value * scale) for value in corner) for corner in place]
    draw = ImageDraw.Draw(result)
    draw.rectangle(
        [tuple(v - 1 for v in corners[0]), tuple(v + 1 for v in corners[1])], None, "black", 4
    )
    draw.rectangle(corners, None, color, 2)
    return result


def _encode(image: Image.Image) -> str:
    """An image as an address that holds it."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _image(file: Path | None) -> str | None:
    """An image of the run's as an address that holds it; wide ones are made smaller."""
    if file is None or not file.is_file():
        return None
    data = _bytes(file)
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG", "JPEG"])
        if image.width > WIDEST:
            size = WIDEST, round(image.height * WIDEST / image.width)
            return _encode(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))
    except OSError as error:
        _logger.warning(f"'{file}' is left out of the report: {error}")
        return None
    kind = "png" if file.suffix == ".png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _bytes(file: Path) -> bytes:
    with open_regular(file) as stream:
        return stream.read()


def _text(file: Path) -> str:
    return _bytes(file).decode("utf-8").strip() if file.is_file() else ""


def _last(folder: Path) -> Path | None:
    files = sorted(folder.glob("step_*.jpg"))
    return files[-1] if files else None


def _curves(folder: Path) -> str | None:
    plot = folder / "training.png"
    # The level lens has the levels.
    plot_training(folder / "metrics.json", plot, level_names=())
    return _image(plot)


def _number_of_steps(metrics_file: Path) -> int:
    try:
        records = read_metrics(metrics_file)
    except FileNotFoundError:
        return 0
    return max((r["iteration"] + 1 for r in records if "total_loss" in r), default=0)


def _check(file: Path) -> dict:
    """What the report shows of the check of a data set."""
    data = load_json(file)
    name = file.stem.removeprefix("check_")
    shown: dict = {"name": name, "findings": data["findings"], "statistics": {}, "plot": None}
    if statistics := data.get("statistics"):
        plot = file.with_name(f"statistics_{name}.png")
        plot_statistics(statistics, plot, title=f"{name}:")
        shown["plot"] = _image(plot)
        shown["statistics"] = {key: _words(statistics[key]) for key in STATISTICS}
    return shown


def _words(value: object) -> str:
    """A statistic as it is read."""
    if isinstance(value, dict):
        return ", ".join(f"{name} ({part:,})" for name, part in value.items())
    if isinstance(value, list):
        return " x ".join(map(_words, value))
    if value is None:
        return "n/a"
    return f"{value:,.1f}".removesuffix(".0")


def _config(file: Path) -> dict:
    if not file.is_file():
        return {}
    return plain_yaml(_text(file), f"'{file}'") or {}


def _value(config: dict, key: str) -> object:
    node: object = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node
