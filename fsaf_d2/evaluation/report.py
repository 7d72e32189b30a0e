"""The report of a run: one HTML file that opens anywhere, without a network."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import jinja2
import numpy as np
import yaml

from ..data.mapper import MAX_PIXELS, read_image
from ..visualization.training_curves import plot_training, read_metrics

_logger = logging.getLogger("detectron2.fsaf_d2.evaluation")
REPORT = "report.html"
# Of the branches in evaluation.json, in the order of the table.
BRANCHES = {
    "joint": "both branches",
    "anchor_branch": "anchor branch alone",
    "anchor_free_branch": "anchor-free branch alone",
}
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SIZES = {"APs": "small", "APm": "medium", "APl": "large"}
# What most decides how a training goes; the rest of the config is folded away.
SETTINGS = (
    *("MODEL.WEIGHTS", "MODEL.RETINANET.NUM_CLASSES", "DATASETS.TRAIN", "DATASETS.TEST"),
    *("SOLVER.OPTIMIZER", "SOLVER.BASE_LR", "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER"),
    *("SOLVER.STEPS", "SOLVER.WARMUP_ITERS", "SOLVER.EMA_DECAY", "INPUT.MIN_SIZE_TRAIN"),
    *("INPUT.MIN_SIZE_TEST", "MODEL.FSAF.LEVEL_SELECTION", "MODEL.FSAF.LOSS_WEIGHT"),
    *("MODEL.FSAF.ANCHOR_BRANCH", "MODEL.FSAF.ANCHOR_FREE_BRANCH", "SEED"),
)
# Sides of pictures, in pixels.
CROP_SIDE = 220
WIDEST = 1600
# How much of the surroundings a crop shows, as a share of the box's longer side.
CONTEXT = 0.6
GREEN, RED = (0, 158, 115), (213, 94, 0)


def write_report(output_dir: str | os.PathLike[str], *, advice: str = "") -> Path:
    """Write ``report.html`` from what a run has left in its folder.

    Whatever is there is shown: ``config.yaml``, ``metrics.json``, ``data/check_*.json``,
    ``inference/*/evaluation.json`` and the pictures beside it, ``level_lens.png`` and the last of
    ``samples/``. What is not there is left out.

    Args:
        output_dir: the run's ``OUTPUT_DIR``.
        advice: a sentence on what to do next.

    Returns:
        path of the report.

    Raises:
        FileNotFoundError: there is no such folder, or it holds nothing of a run.
        OSError: the report cannot be written.
    """
    folder = Path(output_dir)
    evaluations = [_evaluation(file) for file in sorted(folder.glob("inference/*/evaluation.json"))]
    config = _config(folder / "config.yaml")
    if not folder.is_dir() or not (evaluations or config):
        raise FileNotFoundError(
            f"'{folder}' holds neither config.yaml nor inference/*/evaluation.json: give the "
            "OUTPUT_DIR of a training or an evaluation."
        )
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            name=folder.resolve().name,
            advice=advice,
            evaluations=evaluations,
            branches=BRANCHES,
            metrics=METRICS,
            sizes=SIZES,
            steps=_number_of_steps(folder / "metrics.json"),
            curves=_curves(folder),
            level_lens=_picture(folder / "level_lens.png"),
            samples=_picture(_last(folder / "samples")),
            checks=[_check(file) for file in sorted(folder.glob("data/check_*.json"))],
            settings={
                key: _value(config, key) for key in SETTINGS if _value(config, key) is not None
            },
            config=yaml.safe_dump(config, sort_keys=True) if config else "",
        )
    )
    part, report = folder / f".{REPORT}.part", folder / REPORT
    part.write_text(page, encoding="utf-8")
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
    data = json.loads(file.read_text(encoding="utf-8"))
    data["pictures"] = {
        "precision and recall": _picture(file.parent / "pr_curves.png"),
        "confusion": _picture(file.parent / "confusion.png"),
    }
    data["galleries"] = {
        "Worst misses": (
            "Objects that were not found, with the best score of a box on them.",
            [_crop(entry, GREEN, entry.get("best_score")) for entry in data.get("misses", [])],
        ),
        "Worst false alarms": (
            "Boxes of the highest scores where no object of that class is.",
            [_crop(entry, RED, entry.get("score")) for entry in data.get("false_alarms", [])],
        ),
    }
    return data


def _crop(entry: dict, color: tuple[int, int, int], score: float | None) -> dict:
    """A box with its surroundings; without a picture where that cannot be read."""
    shown = {"title": str(entry["category"]), "file": Path(entry["file_name"]).name, "score": score}
    try:
        image = read_image(entry["file_name"], "BGR", MAX_PIXELS)
        return {**shown, "picture": _encode(crop(image, entry["bbox"], color))}
    except OSError as error:
        _logger.warning(f"Left out of the report: {error}")
        return {**shown, "picture": None}


def crop(image: np.ndarray, box: Sequence[float], color: tuple[int, int, int]) -> np.ndarray:
    """Cut a box with its surroundings out of a picture, and draw it.

    Args:
        image: (H, W, 3) uint8 BGR.
        box: (x, y, width, height) in pixels.
        color: RGB, of the box.

    Returns:
        (CROP_SIDE, CROP_SIDE, 3) uint8 BGR; what lies outside of the picture is grey.
    """
    x, y, width, height = box
    half = max((0.5 + CONTEXT) * max(width, height), 16.0)
    left, top = round(x + width / 2 - half), round(y + height / 2 - half)
    side = round(2 * half)
    scale = CROP_SIDE / side
    result = np.full((side, side, 3), 160, np.uint8)
    first_x, first_y = max(left, 0), max(top, 0)
    part = image[first_y : max(top + side, 0), first_x : max(left + side, 0)]
    row, column = first_y - top, first_x - left
    result[row : row + part.shape[0], column : column + part.shape[1]] = part
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    result = cv2.resize(result, (CROP_SIDE, CROP_SIDE), interpolation=method)
    corners = [
        (round((px - left) * scale), round((py - top) * scale))
        for px, py in ((x, y), (x + width, y + height))
    ]
    cv2.rectangle(result, *corners, (0, 0, 0), 4, cv2.LINE_AA)
    cv2.rectangle(result, *corners, color[::-1], 2, cv2.LINE_AA)
    return result


def _encode(image: np.ndarray) -> str:
    """A picture of shape (H, W, 3) uint8 BGR as an address that holds it."""
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def _picture(file: Path | None) -> str | None:
    """A picture of the run's as an address that holds it; wide ones are made smaller."""
    if file is None or not file.is_file():
        return None
    data = file.read_bytes()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        return None
    if image.shape[1] > WIDEST:
        size = WIDEST, round(image.shape[0] * WIDEST / image.shape[1])
        return _encode(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    kind = "png" if file.suffix == ".png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _last(folder: Path) -> Path | None:
    files = sorted(folder.glob("step_*.jpg"))
    return files[-1] if files else None


def _curves(folder: Path) -> str | None:
    plot = folder / "training.png"
    try:
        plot_training(folder / "metrics.json", plot)
    except (FileNotFoundError, ValueError):
        return None  # nothing was trained here
    return _picture(plot)


def _number_of_steps(metrics_file: Path) -> int:
    try:
        records = read_metrics(metrics_file)
    except FileNotFoundError:
        return 0
    return max((r["iteration"] + 1 for r in records if "total_loss" in r), default=0)


def _check(file: Path) -> dict:
    return {
        "name": file.stem.removeprefix("check_"),
        **json.loads(file.read_text(encoding="utf-8")),
    }


def _config(file: Path) -> dict:
    if not file.is_file():
        return {}
    return yaml.safe_load(file.read_text(encoding="utf-8")) or {}


def _value(config: dict, key: str) -> object:
    node: object = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node
