"""Small data sets in COCO's form, and predictions for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fsaf_d2.evaluation.ground_truth import Detections, GroundTruth, read_ground_truth


def coco_set(
    objects: list[tuple], *, num_images: int = 2, category_ids: tuple[int, ...] = (1, 2)
) -> dict:
    """Images of 200 x 100 pixels with objects (image, category id, box[, more keys])."""
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 200, "height": 100}
            for i in range(1, num_images + 1)
        ],
        "categories": [{"id": i, "name": f"class {i}"} for i in category_ids],
        "annotations": [
            {
                **{"id": n, "image_id": image, "category_id": category, "bbox": list(box)},
                **{"area": box[2] * box[3], "iscrowd": 0},
                **(more[0] if more else {}),
            }
            for n, (image, category, box, *more) in enumerate(objects, start=1)
        ],
    }


def random_set(
    seed: int = 0,
    *,
    num_images: int = 12,
    category_ids: tuple[int, ...] = (3, 5, 9),
    most: int = 14,
    crowds: float = 0.1,
) -> tuple[dict, list[dict]]:
    """Objects of all sizes, some of them crowds, and what a poor detector finds.

    Scores have two digits, so that many are equal; areas are those of masks, less than the boxes'.
    Image ids are not in order.
    """
    rng = np.random.default_rng(seed)
    objects, found = [], []
    for image in range(1, num_images + 1):
        boxes = []
        for _ in range(rng.integers(0, most + 1)):
            width, height = np.exp(rng.uniform(1.5, 5, 2)).round(1)
            box = [float(x) for x in (rng.uniform(0, 90), rng.uniform(0, 60), width, height)]
            category = int(rng.choice(category_ids))
            area = float(width * height * rng.uniform(0.5, 1))
            more = {
                # Now and then on the limit of small and medium.
                "area": 1024.0 if rng.random() < 0.2 else area,
                "iscrowd": int(rng.random() < crowds),
            }
            # Now and then an object twice, which overlaps just as much.
            objects += [(image, category, box, more)] * (1 + (rng.random() < 0.2))
            boxes.append((category, box))
        for _ in range(3 * most):
            category, box = int(rng.choice(category_ids)), rng.uniform(2, 60, 4)
            if boxes and rng.random() < 0.7:
                category, true_box = boxes[rng.integers(len(boxes))]
                box = np.array(true_box) * rng.normal(1, 0.1, 4).clip(0.5)
            # float32, as detectors give them
            found.append(prediction(image, category, np.float32(box), rng.random().__round__(2)))
    data = coco_set(objects, num_images=num_images, category_ids=category_ids)
    rng.shuffle(data["images"])
    return data, found


def prediction(image: int, category: int, box, score: float) -> dict:
    """An entry of COCO's results."""
    return {
        "image_id": image,
        "category_id": category,
        "bbox": [float(x) for x in box],
        "score": float(np.float32(score)),
    }


def perfect(data: dict) -> list[dict]:
    """Every object, with different scores."""
    count = len(data["annotations"])
    return [
        prediction(x["image_id"], x["category_id"], x["bbox"], 1 - i / (2 * count))
        for i, x in enumerate(data["annotations"])
        if not x["iscrowd"]
    ]


def truth_of(data: dict, folder: Path) -> GroundTruth:
    """Through a file, as everywhere."""
    file = folder / "annotations.json"
    file.write_text(json.dumps(data))
    return read_ground_truth(file)


def detections_of(predictions: list[dict], truth: GroundTruth) -> Detections:
    """Predictions as arrays."""
    return Detections(
        np.array([truth.image_ids.index(x["image_id"]) for x in predictions], dtype=int),
        np.array([x["category_id"] for x in predictions], dtype=int),
        np.array([x["bbox"] for x in predictions], dtype=float).reshape(-1, 4),
        np.array([x["score"] for x in predictions], dtype=float),
    )
