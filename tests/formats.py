"""The same small data set in every format that is read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 128, 96
CLASSES = ["zebra", "cat", "white dog"]
# Split: image: (class, x, y, width, height) in pixels; some touch the borders.
BOXES = {
    "train": {
        "a.jpg": [("cat", 2, 3, 40, 50), ("white dog", 60, 10, 30, 20)],
        "b.jpg": [("zebra", 0, 0, 128, 96)],
        "c.png": [],
        "d.jpg": [("cat", 100, 80, 28, 16)],
    },
    "val": {"e.jpg": [("cat", 5, 6, 70, 8)], "f.jpg": [("zebra", 30, 30, 9, 60)]},
}


def write_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **options: object) -> None:
    """An image of noise, the same for the same name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(sum(path.name.encode()))
    Image.fromarray(rng.randint(0, 255, (size[1], size[0], 3), np.uint8)).save(path, **options)


def coco(split: str, *, first_id: int = 1) -> dict:
    """The JSON file of a split."""
    images, annotations = [], []
    for name, objects in BOXES[split].items():
        image_id = len(images) + 1
        images.append({"id": image_id, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for label, *box in objects:
            key, category = first_id + len(annotations), CLASSES.index(label) + 1
            entry = {"id": key, "image_id": image_id, "category_id": category, "bbox": box}
            annotations.append({**entry, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(root: Path) -> Path:
    """annotations/train.json and val.json beside images/."""
    (root / "annotations").mkdir(parents=True)
    for split, images in BOXES.items():
        (root / f"annotations/{split}.json").write_text(json.dumps(coco(split)))
        for name in images:
            write_image(root / "images" / name)
    return root


def write_roboflow(root: Path) -> Path:
    """As Roboflow exports: ids from 0 on, and a category 0 above the others."""
    for split, folder in (("train", "train"), ("val", "valid")):
        data = coco(split, first_id=0)
        for category in data["categories"]:
            category["supercategory"] = "animals"
        data["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
        for name in BOXES[split]:
            write_image(root / folder / name)
        (root / folder / "_annotations.coco.json").write_text(json.dumps(data))
    (root / "README.roboflow.txt").write_text("exported\n")
    return root


def xml(name: str, objects: list[tuple], *, size: tuple[int, int] | None = (WIDTH, HEIGHT)) -> str:
    """A VOC file: pixels are counted from 1, and the last one belongs to the object."""
    text = f"<annotation>\n<filename>{name}</filename>\n"
    if size:
        text += f"<size><width>{size[0]}</width><height>{size[1]}</height></size>\n"
    for label, x, y, width, height in objects:
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
        inner = "".join(f"<{side}>{value}</{side}>" for side, value in corners.items())
        text += f"<object><name>{label}</name><difficult>0</difficult>\n"
        text += f"<bndbox>{inner}</bndbox></object>\n"
    return text + "</annotation>\n"


def write_voc(root: Path) -> Path:
    """Annotations/, JPEGImages/ and ImageSets/Main/ as in Pascal VOC."""
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, images in BOXES.items():
        for name, objects in images.items():
            write_image(root / "JPEGImages" / name)
            stem = os.path.splitext(name)[0]
            (root / f"Annotations/{stem}.xml").write_text(xml(name, objects))
        lines = [os.path.splitext(name)[0] for name in images]
        (root / f"ImageSets/Main/{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def lines(objects: list[tuple], names: list[str] = CLASSES) -> str:
    """A text file of YOLO."""
    text = ""
    for label, x, y, width, height in objects:
        shares = (x + width / 2, WIDTH), (y + height / 2, HEIGHT), (width, WIDTH), (height, HEIGHT)
        numbers = " ".join(f"{value / whole:.8f}" for value, whole in shares)
        text += f"{names.index(label)} {numbers}\n"
    return text


def write_yolo(root: Path) -> Path:
    """As Roboflow exports it: data.yaml, train/ and valid/; no text file without objects."""
    for split, folder in (("train", "train"), ("val", "valid")):
        (root / folder / "labels").mkdir(parents=True)
        for name, objects in BOXES[split].items():
            write_image(root / folder / "images" / name)
            if objects:
                stem = os.path.splitext(name)[0]
                (root / folder / f"labels/{stem}.txt").write_text(lines(objects))
    settings = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    (root / "data.yaml").write_text(f"{settings}nc: {len(CLASSES)}\nnames: {CLASSES}\n")
    return root


WRITERS = {"coco": write_coco, "roboflow": write_roboflow, "voc": write_voc, "yolo": write_yolo}
