#!/usr/bin/env python
"""Compare our data loading with detectron2's: time and grey levels.

    python benchmarks/data_loading.py                                  # on images that it makes
    python benchmarks/data_loading.py --json FILE --images FOLDER      # on a COCO data set
    python benchmarks/data_loading.py --config-file CONFIG INPUT.MIN_SIZE_TRAIN '(640,)'

Both do every piece of work in turn, image by image (the loaders round by round). The tables
have medians, the median and the quartiles of the ratio of ours to detectron2's, and by how many
grey levels the results differ at most. OpenCV and torch use one thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from PIL import Image
from tabulate import tabulate

from fsaf_d2 import load_config
from fsaf_d2.data.loading.mapper import build_mapper, read_image, to_planes
from fsaf_d2.data.loading.resizing import ResizeShortestEdge

CONFIG = Path(__file__).parents[1] / "configs" / "fsaf_R_50_FPN_1x.yaml"
NUM_OBJECTS = 10


def make_images(folder: Path, count: int, width: int, height: int) -> list[dict]:
    """Write JPEG files of blurred noise, as large as a photograph's, with boxes.

    Returns:
        their descriptions in detectron2's format.
    """
    rng = np.random.default_rng(0)
    dicts = []
    for index in range(count):
        noise = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        image = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        file = folder / f"{index:06d}.jpg"
        Image.fromarray(image).save(file, quality=90)
        boxes = rng.uniform(0, 0.5, (NUM_OBJECTS, 4)) * [width, height, width, height]
        annotations = [
            {"bbox": box.tolist(), "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0} for box in boxes
        ]
        size = {"width": width, "height": height, "image_id": index}
        dicts.append({"file_name": str(file), "annotations": annotations, **size})
    return dicts


def timed(function: Callable, *args: object) -> tuple[object, float]:
    """Returns: what the function returns, and the seconds that it took."""
    start = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - start


def row(
    name: str, theirs: list[float], ours: list[float], *more: object, per_second: bool = False
) -> list:
    """A row of a table from the seconds that an image took.

    Returns:
        medians in milliseconds (or images ``per_second``), ratio of times, quartiles, and more.
    """
    ratios = [b / a for a, b in zip(theirs, ours, strict=True)]
    low, middle, high = (f"{x:.2f}" for x in statistics.quantiles(ratios, n=4, method="inclusive"))
    medians = [statistics.median(times) for times in (theirs, ours)]
    shown = [f"{1 / x:.0f}" if per_second else f"{x * 1e3:.2f}" for x in medians]
    return [name, *shown, middle, f"{low} to {high}", *more]


def compare(name: str, images: list, theirs: Callable, ours: Callable) -> list:
    """Run two functions of an image in turn; both draw the same random numbers."""
    times: tuple[list[float], list[float]] = [], []
    difference = 0
    for index, image in enumerate([images[0], *images]):
        np.random.seed(index)
        a, seconds_a = timed(theirs, image)
        np.random.seed(index)
        b, seconds_b = timed(ours, image)
        if index > 0:  # the first one warms up
            times[0].append(seconds_a)
            times[1].append(seconds_b)
        difference = max(difference, int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max()))
    return row(name, *times, difference)


def measure_stages(cfg: CfgNode, dicts: list[dict]) -> Iterator[list]:
    """Decoding, resizing, flipping, and the whole mapper."""
    files = [entry["file_name"] for entry in dicts]
    image_format = cfg.INPUT.FORMAT

    def their_read(file: str) -> np.ndarray:
        return utils.read_image(file, image_format)

    def our_read(file: str) -> np.ndarray:
        return read_image(file, image_format)

    yield compare("decode", files, their_read, our_read)

    pairs = [(their_read(file), our_read(file)) for file in files]
    size = cfg.INPUT.MIN_SIZE_TRAIN[-1:], cfg.INPUT.MAX_SIZE_TRAIN, "choice"

    def their_resize(pair: tuple) -> np.ndarray:
        return T.ResizeShortestEdge(*size).get_transform(pair[0]).apply_image(pair[0])

    def our_resize(pair: tuple) -> np.ndarray:
        return ResizeShortestEdge(*size).get_transform(pair[1]).apply_image(pair[1])

    yield compare("resize", pairs, their_resize, our_resize)

    flipped = [np.flip(our_resize(pair), axis=1) for pair in pairs[:20]]
    yield compare(
        "flip and pack",
        flipped,
        lambda image: torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1))),
        to_planes,
    )

    their_mapper, our_mapper = DatasetMapper(cfg, True), build_mapper(cfg, is_train=True)
    yield compare(
        "whole mapper",
        dicts,
        lambda entry: their_mapper(entry)["image"],
        lambda entry: our_mapper(entry)["image"],
    )


def measure_resizing(cfg: CfgNode, dicts: list[dict]) -> Iterator[list]:
    """Every way of resizing beside Pillow's, of images that lie in memory without gaps."""
    images = [read_image(entry["file_name"], "BGR") for entry in dicts]
    size = cfg.INPUT.MIN_SIZE_TRAIN[-1:], cfg.INPUT.MAX_SIZE_TRAIN, "choice"

    def target(image: np.ndarray) -> T.ResizeTransform:
        return T.ResizeShortestEdge(*size).get_transform(image)

    def pillow(image: np.ndarray) -> np.ndarray:
        return target(image).apply_image(image)

    def opencv(flag: int) -> Callable[[np.ndarray], np.ndarray]:
        def function(image: np.ndarray) -> np.ndarray:
            transform = target(image)
            return cv2.resize(image, (transform.new_w, transform.new_h), interpolation=flag)

        return function

    def antialiased(image: np.ndarray) -> torch.Tensor:
        transform = target(image)
        batch = torch.from_numpy(image).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(
            batch, (transform.new_h, transform.new_w), mode="bilinear", antialias=True
        )
        return resized[0].permute(1, 2, 0)

    for name in ("INTER_LINEAR", "INTER_LINEAR_EXACT", "INTER_AREA"):
        yield compare(f"OpenCV {name}", images, pillow, opencv(getattr(cv2, name)))
    yield compare("torch antialias", images, pillow, antialiased)


def measure_loader(cfg: CfgNode, dicts: list[dict], rounds: int) -> Iterator[list]:
    """The loader of training, with batches as the config says."""
    mappers = DatasetMapper(cfg, True), build_mapper(cfg, is_train=True)
    for workers in (0, 1, 2):
        cfg.DATALOADER.NUM_WORKERS = workers
        times: tuple[list[float], list[float]] = [], []
        for _ in range(rounds):
            for mapper, seconds in zip(mappers, times, strict=True):
                seed_all_rng(0)
                batches = iter(build_detection_train_loader(cfg, mapper=mapper, dataset=dicts))
                next(batches)  # starts the workers
                count, start = 0, time.perf_counter()
                while count < len(dicts):
                    count += len(next(batches))
                seconds.append((time.perf_counter() - start) / count)
                del batches
        yield row(f"loader, {workers} workers", *times, per_second=True)


def main() -> None:
    """Read the command line, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="COCO annotations; made images without")
    parser.add_argument("--images", metavar="FOLDER", help="the images of --json")
    parser.add_argument("--count", type=int, default=100, help="images (default: 100)")
    parser.add_argument("--rounds", type=int, default=5, help="of the loaders (default: 5)")
    parser.add_argument("--config-file", default=CONFIG, metavar="FILE")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs over the config")
    args = parser.parse_args()
    if (args.json is None) != (args.images is None):
        parser.error("--json and --images belong together.")
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    cfg = load_config(args.config_file, args.opts)
    with tempfile.TemporaryDirectory() as folder:
        if args.json:
            dicts = load_coco_json(args.json, args.images)[: args.count]
        else:
            dicts = make_images(Path(folder), args.count, width=640, height=480)
        resizing = list(measure_resizing(cfg, dicts))
        stages = list(measure_stages(cfg, dicts))
        loaders = list(measure_loader(cfg, dicts, args.rounds))
    ratio = ["ratio of time", "quartiles"]
    difference = [*ratio, "max difference"]
    for headers, rows in (
        (["resizing, ms an image", "Pillow", "other", *difference], resizing),
        (["ms an image", "detectron2", "ours", *difference], stages),
        (["images a second", "detectron2", "ours", *ratio], loaders),
    ):
        print(f"\n{tabulate(rows, headers, tablefmt='github', disable_numparse=True)}")


if __name__ == "__main__":
    main()
