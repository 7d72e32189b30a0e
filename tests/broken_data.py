"""Small data sets with one thing wrong."""

from __future__ import annotations

import copy
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask

from fsaf_d2.data.reading.sources import Source

WIDTH, HEIGHT = 64, 48


def sound_data(num_images: int = 4) -> dict:
    """Annotations without a flaw: in every image one box of each of three categories."""
    images, annotations = [], []
    for i in range(num_images):
        images.append({"id": i + 1, "file_name": f"p{i}.png", "width": WIDTH, "height": HEIGHT})
        for k in range(3):
            box = [2 + 20 * k + i, 3 + 10 * k, 12 + k, 10 + i]
            annotation = {"id": 3 * i + k + 1, "image_id": i + 1, "category_id": k + 1}
            area = box[2] * box[3]
            annotations.append({**annotation, "bbox": box, "area": area, "iscrowd": 0})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate("abc")]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_images(folder: Path, data: dict, *, seed: int = 0) -> None:
    """An image of noise for each image."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for image in data["images"]:
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / image["file_name"])


def write_source(folder: Path, data: dict, name: str = "own.json") -> Source:
    """Write annotations beside the images in ``images``; they are read as they stand."""
    file = folder / name
    file.write_text(json.dumps(data))
    root = str(folder / "images")
    return Source(f"{file}:{root}", "coco", str(file), root, copy.deepcopy(data))


class Break(NamedTuple):
    """A way to break sound data."""

    kind: str  # of the finding
    severity: str
    value: str  # regular expression of what is said
    apply: Callable[[dict, Path], None]  # changes data and the images in a folder
    mended: Callable[[dict], dict] | None  # sound data -> what --fix makes; None: it cannot
    others: frozenset[str]  # kinds that are found as well


BREAKS: dict[str, Break] = {}


def _same(data: dict) -> dict:
    return data


def _without(*, image: int | None = None, annotation: int | None = None) -> Callable[[dict], dict]:
    """Sound data without an image or an annotation, by id."""

    def leave_out(data: dict) -> dict:
        return {
            **data,
            "images": [x for x in data["images"] if x["id"] != image],
            "annotations": [
                x for x in data["annotations"] if image != x["image_id"] and x["id"] != annotation
            ],
        }

    return leave_out


def _with(index: int, **values: object) -> Callable[[dict], dict]:
    """Sound data with other values in an annotation."""

    def change(data: dict) -> dict:
        data["annotations"][index].update(values)
        return data

    return change


def breaks(
    kind: str,
    value: str,
    mended: Callable[[dict], dict] | None = None,
    *,
    severity: str = "error",
    others: Sequence[str] = (),
) -> Callable:
    """Make a function a :class:`Break`, under its name."""

    def add(apply: Callable[[dict, Path], None]) -> Callable[[dict, Path], None]:
        BREAKS[apply.__name__] = Break(kind, severity, value, apply, mended, frozenset(others))
        return apply

    return add


def _png(size: tuple[int, int], bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG file; its sizes and its rows need not fit."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def _turned(file: Path, size: tuple[int, int]) -> None:
    """An image whose EXIF data ask for a quarter turn."""
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", size, "gray").save(file, exif=exif)


# Entries, ids and references


@breaks("entry without id", "entry 4 of 'annotations' has no 'id'", _with(4, id=13))
def annotation_without_id(data, images):
    del data["annotations"][4]["id"]


@breaks(
    "entry without id", "entry 1 of 'images' has no 'id'", others=["annotation of a missing image"]
)
def image_id_of_text(data, images):
    data["images"][1]["id"] = "2"


@breaks("duplicate image id", "two entries of 'images' have the id 2", _same)
def image_entry_twice(data, images):
    data["images"].append(dict(data["images"][1]))


@breaks("duplicate image id", "have the id 2", others=["annotation of a missing image"])
def two_images_with_an_id(data, images):
    data["images"][2]["id"] = 2


@breaks("duplicate annotation id", "'annotations' have the id 5", _with(5, id=13))
def annotation_id_twice(data, images):
    data["annotations"][5]["id"] = 5


@breaks("annotation id 0", "id 0", _with(4, id=13), severity="warning")
def annotation_id_0(data, images):
    data["annotations"][4]["id"] = 0


@breaks("duplicate category id", "'categories' have the id 2", _same)
def category_entry_twice(data, images):
    data["categories"].append(dict(data["categories"][1]))


@breaks("category without name", "category 2 has no 'name'")
def category_without_name(data, images):
    del data["categories"][1]["name"]


@breaks(
    "duplicate category name",
    "category 9 has the name 'a', as category 1 has",
    _same,
    others=["category without objects"],
)
def category_name_twice(data, images):
    data["categories"].append({"id": 9, "name": "a"})


@breaks("duplicate category name", "category 3 has the name 'a', as category 1 has")
def two_categories_with_a_name(data, images):
    data["categories"][2]["name"] = "a"


@breaks("no objects", "none of the 4 images has objects", severity="warning")
def no_objects(data, images):
    data["annotations"] = []


@breaks("category without objects", r"category 9 \('d'\)", severity="warning")
def category_without_objects(data, images):
    data["categories"].append({"id": 9, "name": "d"})


@breaks("annotation of a missing image", "image_id 99", _same)
def annotation_of_a_missing_image(data, images):
    data["annotations"].append({**data["annotations"][4], "id": 50, "image_id": 99})


@breaks("unknown category id", "category_id 7")
def unknown_category_id(data, images):
    data["annotations"][4]["category_id"] = 7


@breaks(
    "shifted category ids",
    r"category_id 0 \(annotations use 0 to 2, the categories are 1 to 3\)",
    _same,
)
def category_ids_from_zero(data, images):
    for annotation in data["annotations"]:
        annotation["category_id"] -= 1


@breaks("shifted category ids", "annotations use 2 to 4, the categories are 1 to 3", _same)
def category_ids_from_two(data, images):
    for annotation in data["annotations"]:
        annotation["category_id"] += 1


# Images


@breaks("image without file name", "image 2 has no 'file_name'")
def image_without_file_name(data, images):
    del data["images"][1]["file_name"]


@breaks("path leaves the image folder", r"image 2 has the file name '\.\./secret\.png'")
def path_leaves_the_folder(data, images):
    (images / "p1.png").rename(images.parent / "secret.png")
    data["images"][1]["file_name"] = "../secret.png"


@breaks("image size missing", r"image 2 \('p1\.png'\) has no 'width'", _same)
def image_size_missing(data, images):
    del data["images"][1]["width"]


@breaks("image size missing", "has no 'height'", _same)
def image_height_of_text(data, images):
    data["images"][1]["height"] = str(HEIGHT)


@breaks("duplicate file name", r"image 9 has the file_name 'p1\.png', as image 2 has", _same)
def file_name_twice(data, images):
    data["images"].append({**data["images"][1], "id": 9})


@breaks("duplicate file name", r"image 9 has the file_name '\./p1\.png', as image 2 has")
def file_name_twice_with_other_boxes(data, images):
    data["images"].append({**data["images"][1], "id": 9, "file_name": "./p1.png"})
    data["annotations"].append({**data["annotations"][0], "id": 50, "image_id": 9})


@breaks(
    "labelled image without a box",
    "image 2 has objects, but no box that can be used",
    _without(image=2),
    others=["zero-sized box"],
)
def labelled_image_without_a_box(data, images):
    for annotation in data["annotations"][3:6]:
        annotation["bbox"][3] = 0


@breaks("crowd-only image", "image 2 has crowds and no other objects", severity="warning")
def crowd_only_image(data, images):
    for annotation in data["annotations"][3:6]:
        annotation["iscrowd"] = 1


# Image files


@breaks("missing image", r"images/p1\.png", _without(image=2))
def missing_image(data, images):
    (images / "p1.png").unlink()


def _renamed(data: dict) -> dict:
    data["images"][1]["file_name"] = "P1.PNG"
    return data


@breaks("missing image", r"'P1\.PNG' lies in '.*images': capitals differ", _renamed)
def name_of_other_case(data, images):
    (images / "p1.png").rename(images / "P1.PNG")


@breaks("not an image", r"the file begins with b'no image", _without(image=2))
def no_image(data, images):
    (images / "p1.png").write_text("no image at all")


@breaks("not an image", "the file is empty", _without(image=2))
def empty_file(data, images):
    (images / "p1.png").write_bytes(b"")


@breaks("not an image", "is a folder, not a file", _without(image=2))
def folder_for_an_image(data, images):
    (images / "p1.png").unlink()
    (images / "p1.png").mkdir()


@breaks("truncated image", "5000 bytes: ", _without(image=2))
def truncated_image(data, images):
    file = images / "p1.png"
    file.write_bytes(file.read_bytes()[:5000])


@breaks("damaged image", "12 bytes: ", _without(image=2))
def damaged_image(data, images):
    (images / "p1.png").write_bytes(b"\x89PNG\r\n\x1a\n....")


@breaks("huge image", "20000 x 20000 pixels, more than the 134217728")
def huge_image(data, images):
    (images / "p1.png").write_bytes(_png((20000, 20000), 8, 0, b""))
    data["images"][1].update(width=20000, height=20000)


@breaks("16-bit grey image", "Pillow's mode I;16")
def grey_of_16_bits(data, images):
    pixels = np.full((HEIGHT, WIDTH), 3000, np.uint16)
    Image.fromarray(pixels).save(images / "p1.png")


@breaks("16-bit colour image", "Pillow's mode RGB", severity="warning")
def colour_of_16_bits(data, images):
    rows = (b"\0" + bytes(6 * WIDTH)) * HEIGHT
    (images / "p1.png").write_bytes(_png((WIDTH, HEIGHT), 16, 2, rows))


@breaks("wrong image size", "94 x 48 declared, the file has 64 x 48", _same)
def wrong_image_size(data, images):
    data["images"][1]["width"] = WIDTH + 30


@breaks(
    "wrong image size",
    "32 x 24 declared, the file has 64 x 48",
    others=["box outside the image", "box partly outside"],
)
def size_of_a_smaller_copy(data, images):
    data["images"][1].update(width=WIDTH // 2, height=HEIGHT // 2)


@breaks("size before EXIF rotation", "64 x 48 declared, the file has 48 x 64 once turned")
def size_before_rotation(data, images):
    _turned(images / "p1.png", (WIDTH, HEIGHT))


@breaks("EXIF-rotated image", "EXIF orientation 6", severity="warning")
def size_after_rotation(data, images):
    _turned(images / "p1.png", (HEIGHT, WIDTH))


def _saved(data: dict, file: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "gray").save(file)
    data["images"][1].update(width=size[0], height=size[1])
    data["annotations"] = [x for x in data["annotations"] if x["image_id"] != 2]


@breaks("thin image", "1 x 1000 pixels, 1 of 1333 once resized", severity="warning")
def thin_image(data, images):
    _saved(data, images / "p1.png", (1, 1000))


@breaks("image too thin", "4000 x 1 pixels, 0 of 1333 once resized")
def image_too_thin(data, images):
    _saved(data, images / "p1.png", (4000, 1))


@breaks("further frames", "3 frames or pages", severity="warning")
def further_frames(data, images):
    file = images / "p1.png"
    pages = [Image.new("RGB", (WIDTH, HEIGHT), (x, 0, 0)) for x in (0, 100, 200)]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])


# Boxes


def _spanned(data: dict) -> dict:
    data["annotations"][4].update(
        bbox=[20, 10, 15, 8.5], segmentation=[[20, 10, 35, 12, 30, 18.5], [21, 11, 22, 11, 22, 12]]
    )
    return data


@breaks("annotation without box", r"its segmentation spans \[20, 10, 15, 8\.5\]", _spanned)
def segmentation_alone(data, images):
    _spanned(data)
    del data["annotations"][4]["bbox"]


MASK_SPANS = r"its segmentation spans \[20\.0, 10\.0, 15\.0, 8\.0\]"


def _masked(packed: bool):
    """A mask of columns 20 to 34 and rows 10 to 17, run by run."""
    runs, gap = [20 * HEIGHT + 10, 8], HEIGHT - 8
    for _ in range(14):
        runs += [gap, 8]
    runs.append(WIDTH * HEIGHT - sum(runs))
    size = [HEIGHT, WIDTH]
    counts = mask.frPyObjects({"counts": runs, "size": size}, *size)["counts"].decode()

    def mended(data: dict) -> dict:
        data["annotations"][4].update(
            bbox=[20, 10, 15, 8],
            segmentation={"counts": counts if packed else runs, "size": size},
        )
        return data

    return mended


@breaks("annotation without box", MASK_SPANS, _masked(True))
def packed_mask_alone(data, images):
    _masked(True)(data)
    del data["annotations"][4]["bbox"]


@breaks(
    "annotation without box",
    r"its segmentation spans \[20\.0, 10\.0, 15\.0, 8\.0\]",
    _masked(False),
)
def mask_alone(data, images):
    _masked(False)(data)
    del data["annotations"][4]["bbox"]


@breaks("annotation without box", "bbox None")
def annotation_without_box(data, images):
    del data["annotations"][4]["bbox"]


@breaks("box of wrong length", r"bbox \[23, 13, 13\]")
def box_of_wrong_length(data, images):
    data["annotations"][4]["bbox"].pop()


@breaks("box of strings", r"bbox \['23', '13', '13', '11'\]", _same)
def box_of_strings(data, images):
    data["annotations"][4]["bbox"] = [str(x) for x in data["annotations"][4]["bbox"]]


@breaks("box of strings", r"bbox \['left', 13, 13, 11\]")
def box_of_words(data, images):
    data["annotations"][4]["bbox"][0] = "left"


@breaks("box of no numbers", r"bbox \[None, 13, 13, 11\]")
def box_of_no_numbers(data, images):
    data["annotations"][4]["bbox"][0] = None


@breaks("box not finite", r"bbox \[nan, 13, 13, 11\]", _without(annotation=5))
def box_not_a_number(data, images):
    data["annotations"][4]["bbox"][0] = float("nan")


@breaks("box not finite", r"bbox \[23, 13, inf, 11\]", _without(annotation=5))
def box_endless(data, images):
    data["annotations"][4]["bbox"][2] = float("inf")


@breaks("zero-sized box", r"bbox \[23, 13, 0, 11\] in 64 x 48 pixels", _without(annotation=5))
def zero_sized_box(data, images):
    data["annotations"][4]["bbox"][2] = 0


@breaks("negative box size", r"bbox \[23, 13, -13, 11\]")
def negative_box_size(data, images):
    data["annotations"][4]["bbox"][2] = -13


@breaks("box outside the image", r"bbox \[123, 13, 13, 11\] in 64 x 48 pixels")
def box_outside(data, images):
    data["annotations"][4]["bbox"][0] = 123


@breaks(
    "box partly outside",
    r"bbox \[-5, 13, 13, 11\] in 64 x 48 pixels",
    _with(4, bbox=[0, 13, 8, 11], area=88),
    severity="warning",
)
def box_partly_outside(data, images):
    data["annotations"][4]["bbox"][0] = -5


@breaks("normalised box", r"bbox \[0\.03125, 0\.0625, .* in 64 x 48 pixels, as are 12 of 12", _same)
def normalised_boxes(data, images):
    for annotation in data["annotations"]:
        box = annotation["bbox"]
        annotation["bbox"] = [box[i] / (WIDTH, HEIGHT)[i % 2] for i in range(4)]


@breaks("normalised box", r"as are 12 of 12 boxes \(as centre, width and height\)", _same)
def normalised_centres(data, images):
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [(x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT]


@breaks("normalised box", r"bbox \[0\.3, 0\.2, 0\.2, 0\.2\] in 64 x 48 pixels")
def one_normalised_box(data, images):
    data["annotations"][4]["bbox"] = [0.3, 0.2, 0.2, 0.2]


@breaks(
    "xyxy given as xywh",
    r"bbox \[42, 23, 56, 33\] in 64 x 48 pixels; 12 boxes fit better as two corners",
    _same,
)
def corners(data, images):
    for annotation in data["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"] = [x, y, x + w, y + h]


@breaks("box of a pixel", r"bbox \[23, 13, 1, 1\]", severity="warning")
def box_of_a_pixel(data, images):
    data["annotations"][4].update(bbox=[23, 13, 1, 1], area=1)


@breaks("duplicate box", r"bbox \[23, 13, 13, 11\], as annotation 5", _same, severity="warning")
def duplicate_box(data, images):
    data["annotations"].append({**data["annotations"][4], "id": 50})


# Other fields


@breaks("missing area", "area None", _same, severity="warning")
def missing_area(data, images):
    del data["annotations"][4]["area"]


@breaks("missing area", "area 'large'", _same, severity="warning")
def area_of_text(data, images):
    data["annotations"][4]["area"] = "large"


@breaks("missing iscrowd", "iscrowd None", _same, severity="warning")
def missing_iscrowd(data, images):
    del data["annotations"][4]["iscrowd"]


@breaks("iscrowd neither 0 nor 1", "iscrowd '0'", _same)
def crowd_of_text(data, images):
    data["annotations"][4]["iscrowd"] = "0"


@breaks("ignore flag", "ignore 1")
def ignore_flag(data, images):
    data["annotations"][4]["ignore"] = 1


@breaks("broken segmentation", r"segmentation \[\[1, 2, 3, 4\]\]", _same)
def broken_segmentation(data, images):
    data["annotations"][4]["segmentation"] = [[1, 2, 3, 4]]
