#!/usr/bin/env python
"""Compare our evaluation with detectron2's COCOEvaluator: processor time and AP.

    python benchmarks/evaluation.py                 # sets like COCO's validation set and like cells
    python benchmarks/evaluation.py --shrink 10     # a tenth of the images

Objects and detections are made up: a share of the detections lie about an object, the others
anywhere. Ours is measured with the joint detections alone, and with those of each branch beside;
every figure, table and image is made in both. COCOEvaluator gives AP alone. All run in turn,
in one process with one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.structures import Boxes, Instances
from tabulate import tabulate

from fsaf_d2.evaluation import BoxEvaluator

WIDTH, HEIGHT = 640, 480
LEVELS = ["p3", "p4", "p5", "p6", "p7"]


class Case(NamedTuple):
    """A made-up data set and detector."""

    name: str
    num_images: int
    num_classes: int
    num_objects: int  # of each image
    num_detections: int  # of each image
    share: float  # of detections that lie about an object


CASES = [
    Case("COCO, few detections near objects", 5000, 80, 7, 100, 0.15),
    Case("COCO, half of them near", 5000, 80, 7, 100, 0.5),
    Case("cells", 300, 1, 60, 375, 0.5),
]


def make(case: Case, file: Path) -> list[tuple[int, Instances]]:
    """Write the annotations; make the detections of each image."""
    rng = np.random.default_rng(0)
    annotations, found = [], []
    for image in range(1, case.num_images + 1):
        sides = np.exp(rng.uniform(2, 5.5, (case.num_objects, 2)))
        corners = rng.uniform(0, 1, sides.shape) * np.maximum((WIDTH, HEIGHT) - sides, 1)
        classes = rng.integers(case.num_classes, size=case.num_objects)
        for box, k in zip(np.hstack([corners, sides]).tolist(), classes.tolist()):
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": image, "category_id": k + 1},
                    **{"bbox": box, "area": box[2] * box[3], "iscrowd": 0},
                }
            )
        near = rng.random(case.num_detections) < case.share
        which = rng.integers(case.num_objects, size=case.num_detections)
        noise = rng.normal(0, 0.1, (case.num_detections, 4)) * np.tile(sides[which], 2)
        true_corners = np.hstack([corners, corners + sides])[which] + noise
        anywhere = rng.uniform(0, 300, (case.num_detections, 2))
        anywhere = np.hstack([anywhere, anywhere + rng.uniform(5, 150, anywhere.shape)])
        result = Instances((HEIGHT, WIDTH))
        boxes = np.where(near[:, None], true_corners, anywhere)
        result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
        result.scores = torch.tensor(rng.random(case.num_detections), dtype=torch.float32)
        right = near & (rng.random(case.num_detections) < 0.8)
        other = rng.integers(case.num_classes, size=case.num_detections)
        result.pred_classes = torch.tensor(np.where(right, classes[which], other))
        result.pred_levels = torch.tensor(rng.integers(len(LEVELS), size=case.num_detections))
        result.pred_branches = torch.tensor(rng.integers(2, size=case.num_detections))
        found.append((image, result))
    images = [
        {"id": i, "file_name": f"{i}.jpg", "width": WIDTH, "height": HEIGHT} for i, _ in found
    ]
    categories = [{"id": k + 1, "name": f"class {k}"} for k in range(case.num_classes)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(data))
    return found


def measure(
    evaluator: DatasetEvaluator, found: list[tuple[int, Instances]], keys: Iterable[str]
) -> tuple[float, float]:
    """Evaluate; seconds of processor time and AP."""
    start = time.process_time()
    evaluator.reset()
    with contextlib.redirect_stdout(io.StringIO()):
        for image, result in found:
            evaluator.process([{"image_id": image}], [dict.fromkeys(keys, result)])
        ap = evaluator.evaluate()["bbox"]["AP"]
    return time.process_time() - start, ap


def compare(case: Case, folder: Path) -> list[str]:
    """A row of the table."""
    found = make(case, folder / "truth.json")
    register_coco_instances("made_up", {}, str(folder / "truth.json"), "")
    DatasetCatalog.get("made_up")
    output, limit = folder / "output", case.num_detections
    theirs = COCOEvaluator(
        "made_up",
        tasks=("bbox",),
        output_dir=str(output),
        use_fast_impl=False,
        max_dets_per_image=limit,
    )
    ours = BoxEvaluator("made_up", output, max_detections=limit, level_names=LEVELS)
    alone, ap = measure(ours, found, ["instances"])
    everything, _ = measure(ours, found, ["instances", "anchor_branch", "point_branch"])
    theirs, expected = measure(theirs, found, ["instances"])
    DatasetCatalog.remove("made_up")
    MetadataCatalog.remove("made_up")
    seconds = [f"{x:.1f}" for x in (theirs, alone, everything)]
    ratios = [f"{x / theirs:.2f}" for x in (alone, everything)]
    count = f"{case.num_images} x {case.num_detections}, {case.num_classes}"
    return [case.name, count, *seconds, *ratios, str(abs(ap - expected))]


def main() -> None:
    """Read the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shrink", type=int, default=1, help="divides the number of images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("detectron2").setLevel("ERROR")
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            small = case._replace(num_images=max(case.num_images // args.shrink, 1))
            rows.append(compare(small, Path(folder)))
    headers = ["set", "images x detections, classes", "COCOEvaluator, s", "joint, s", "all, s"]
    headers += ["joint, ratio", "all, ratio", "AP differs by"]
    print(tabulate(rows, headers=headers, tablefmt="github"))


if __name__ == "__main__":
    main()
