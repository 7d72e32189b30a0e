"""The demo data set: scans of handwritten digits on photographs, made on the spot in COCO format.

Everything comes with scikit-learn. The digits are its copy of the test part of the UCI "Optical
Recognition of Handwritten Digits" set (E. Alpaydin and C. Kaynak, 1998): 1797 scans of 8x8 pixels.
The photographs are `china.jpg` (danielbuechele) and `flower.jpg` (vultilion), both published on
Flickr under CC BY 2.0, https://creativecommons.org/licenses/by/2.0/.

Train and validation images never share a scan or a piece of a photograph. They do share writers:
the 13 writers are not told apart in the source.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

Box = tuple[int, int, int, int]  # x, y, width, height in pixels

CLASS_NAMES = tuple("0123456789")
MIN_DIGIT_SIZE = 16
MAX_DIGIT_SIZE = 110

FORMAT_VERSION = 1
OWNER_FILE = ".made_by_fsaf_d2"
GENERATED = ("train", "val", "annotations", "settings.json")

VAL_SCAN_SHARE = 0.2
VAL_PHOTO_LEFT = 400  # px; the photographs are 640 wide
EMPTY_IMAGE_SHARE = 0.03
MAX_DIGITS = 6
PLACEMENT_ATTEMPTS = 25
MAX_COVERED_SHARE = 0.1
INK_THRESHOLD = 0.15
INK_CONTRAST = 60.0
MIN_CONTRAST = 35.0
SCAN_CANVAS = 12  # cells: an 8x8 scan turned by 10 degrees and squeezed fits into it


class Source(NamedTuple):
    """What one split is made from: photographs (H, W, 3) uint8 RGB, scans, labels, scan numbers."""

    photos: list[np.ndarray]
    scans: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray


class Digit(NamedTuple):
    """One drawn digit: its tight box, its class 0..9 and the number of its scan."""

    box: Box
    label: int
    scan: int


def make_digits(
    root: str | os.PathLike,
    *,
    num_train: int = 2000,
    num_val: int = 300,
    image_size: int = 192,
    seed: int = 0,
) -> None:
    """Write the demo data set to `root/digits`, or do nothing if it is there with these settings.

    The result is `train/*.jpg`, `val/*.jpg`, `annotations/{train,val}.json` and `settings.json`.
    An image shows one to six digits, about 3 % show none. The longer side of a digit's box is
    log-uniform between 16 and 110 pixels. Data of other settings or of an interrupted run are
    replaced; other files in the folder are left alone.

    Args:
        root: the folder that holds `digits`; it is created where needed.
        num_train: number of training images.
        num_val: number of validation images.
        image_size: width and height of every image in pixels, at least 64.
        seed: a number >= 0; with the same libraries the same seed gives the same files.

    Raises:
        FileExistsError: `root/digits` is not empty and was not made by this function.
        ImportError: scikit-learn is missing.
        ValueError: a setting is out of range.
    """
    settings = {
        "format_version": FORMAT_VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "image_size": image_size,
        "seed": seed,
    }
    if image_size < 64 or min(num_train, num_val, seed) < 0:
        raise ValueError(f"image_size must be at least 64, the others at least 0, got {settings}")
    folder = Path(root) / "digits"
    if _read_settings(folder) == settings:
        return
    _claim(folder)
    train, val = load_sources(seed)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as partial:
        _write_split(Path(partial), "train", train, num_train, image_size, (seed, 0))
        _write_split(Path(partial), "val", val, num_val, image_size, (seed, 1))
        (Path(partial) / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
        # Another process may have finished the same data meanwhile.
        if _read_settings(folder) != settings:
            _replace_contents(folder, Path(partial))


def load_sources(seed: int) -> tuple[Source, Source]:
    """Load scikit-learn's scans and photographs and part them into train and validation.

    Args:
        seed: a number >= 0 that decides which scans are for validation.

    Returns:
        The sources of train and of validation. Scans are (S, 8, 8) float32 in [0, 1]; the
        photographs are the left part of each image for train, the right part for validation.

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise ImportError('The demo data need scikit-learn: pip install "fsaf_d2[demo]"') from error
    digits, photos = load_digits(), load_sample_images().images
    scans = (digits.images / 16).astype(np.float32)
    parts = (
        [photo[:, :VAL_PHOTO_LEFT] for photo in photos],
        [photo[:, VAL_PHOTO_LEFT:] for photo in photos],
    )
    train, val = (
        Source(part, scans[numbers], digits.target[numbers], numbers)
        for part, numbers in zip(parts, split_scans(digits.target, seed), strict=True)
    )
    return train, val


def split_scans(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose, class by class, the scans for train and for validation.

    Args:
        labels: (S,) classes of all scans.
        seed: a number >= 0.

    Returns:
        The sorted numbers of the train scans and of the validation scans (a fifth of each class).
    """
    rng = np.random.RandomState(seed)
    train, val = [], []
    for label in np.unique(labels):
        numbers = rng.permutation(np.flatnonzero(labels == label))
        num_val = round(VAL_SCAN_SHARE * len(numbers))
        val.append(numbers[:num_val])
        train.append(numbers[num_val:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(val))


def compose_image(
    rng: np.random.RandomState, source: Source, image_size: int
) -> tuple[np.ndarray, list[Digit]]:
    """Make one image: a piece of a photograph with digits that do not hide one another.

    Args:
        rng: the random numbers of this image.
        source: the scans and photographs to use.
        image_size: width and height in pixels.

    Returns:
        The image (image_size, image_size, 3) uint8 RGB, and its digits, the largest first.
    """
    image = _crop_photo(rng, source.photos, image_size)
    if rng.uniform() < EMPTY_IMAGE_SHARE:
        return image, []
    largest = min(MAX_DIGIT_SIZE, int(0.9 * image_size))
    exponents = rng.uniform(size=rng.randint(1, MAX_DIGITS + 1))
    sizes = np.rint(MIN_DIGIT_SIZE * (largest / MIN_DIGIT_SIZE) ** exponents).astype(int)
    digits, inked = [], np.zeros((image_size, image_size), dtype=bool)
    # The largest first: placed last, the large ones would seldom find room.
    for size in np.sort(sizes)[::-1]:
        label = rng.randint(len(CLASS_NAMES))
        index = rng.choice(np.flatnonzero(source.labels == label))
        alpha = _render_digit(rng, source.scans[index], int(size))
        box = _place(rng, image, inked, alpha, [digit.box for digit in digits])
        if box is not None:
            digits.append(Digit(box, label, int(source.numbers[index])))
    return image, digits


def _crop_photo(rng: np.random.RandomState, photos: list[np.ndarray], size: int) -> np.ndarray:
    """Cut a random square out of a random photograph, with random zoom, flip and brightness."""
    photo = photos[rng.randint(len(photos))]
    side = rng.randint(120, min(photo.shape[:2]) + 1)
    top = rng.randint(photo.shape[0] - side + 1)
    left = rng.randint(photo.shape[1] - side + 1)
    piece = photo[top : top + side, left : left + side, :]
    if rng.uniform() < 0.5:
        piece = piece[:, ::-1]
    piece = piece.astype(np.float32) * np.float32(rng.uniform(0.7, 1.1))
    interpolation = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    piece = cv2.resize(piece, (size, size), interpolation=interpolation)
    return np.clip(np.rint(piece), 0, 255).astype(np.uint8)


def _render_digit(rng: np.random.RandomState, scan: np.ndarray, size: int) -> np.ndarray:
    """Return an enlarged scan, slightly turned and squeezed, as opacity in [0, 1] cut to its ink.

    `size` is the longer side of the result in pixels.
    """
    angle = np.deg2rad(rng.uniform(-10, 10))
    squeeze = np.exp(rng.uniform(-0.15, 0.15))
    cell = max(6, -(-size // 7))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = cell * turn @ np.diag([squeeze, 1 / squeeze])
    shift = (SCAN_CANVAS * cell - 1) / 2 - linear @ np.array([3.5, 3.5])
    canvas = cv2.warpAffine(
        scan,
        np.column_stack([linear, shift]),
        (SCAN_CANVAS * cell, SCAN_CANVAS * cell),
        flags=cv2.INTER_CUBIC,
    )
    ink = _cut_to_ink(np.clip((canvas - 0.2) / 0.4, 0, 1))
    side = size
    # Shrinking can fade the outermost row or column below the threshold: enlarge until it stays.
    while True:
        width, height = np.rint(np.array(ink.shape[::-1]) * side / max(ink.shape)).astype(int)
        shrunk = cv2.resize(ink, (max(width, 1), max(height, 1)), interpolation=cv2.INTER_AREA)
        result = _cut_to_ink(shrunk)
        if max(result.shape) >= size:
            # Enlarging may overshoot by a faint row or column.
            return _cut_to_ink(result[:size, :size])
        side += 1


def _cut_to_ink(alpha: np.ndarray) -> np.ndarray:
    """Clear opacity below the threshold and cut the array to what is left."""
    alpha = np.where(alpha >= INK_THRESHOLD, alpha, np.float32(0))
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    return alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _place(
    rng: np.random.RandomState,
    image: np.ndarray,
    inked: np.ndarray,
    alpha: np.ndarray,
    boxes: list[Box],
) -> Box | None:
    """Draw a digit where it hides no other and can be read; None if no such place was found."""
    height, width = alpha.shape
    for _ in range(PLACEMENT_ATTEMPTS):
        x = int(rng.randint(image.shape[1] - width + 1))
        y = int(rng.randint(image.shape[0] - height + 1))
        box = (x, y, width, height)
        area = np.s_[y : y + height, x : x + width]
        if any(_covered_share(box, other) > MAX_COVERED_SHARE for other in boxes):
            continue
        if inked[area][alpha > 0].any():
            continue
        color = _readable_color(rng, image[area][alpha >= 0.5 * alpha.max()])
        if color is None:
            continue
        blended = image[area] + alpha[..., None] * (color - image[area])
        image[area] = np.clip(np.rint(blended), 0, 255).astype(np.uint8)
        inked[area] |= alpha > 0
        return box
    return None


def _covered_share(box: Box, other: Box) -> float:
    """Return the intersection of two [x, y, w, h] boxes divided by the smaller one's area."""
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    return max(width, 0) * max(height, 0) / min(box[2] * box[3], other[2] * other[3])


def _readable_color(rng: np.random.RandomState, background: np.ndarray) -> np.ndarray | None:
    """Choose a colour darker or lighter than nearly all the (P, 3) pixels under the ink."""
    luma = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    dark, light = np.percentile(background @ luma, [10, 90])
    colors = rng.randint(0, 256, size=(12, 3)).astype(np.float32)
    tones = colors @ luma
    contrast = np.maximum(dark - tones, tones - light)
    best = np.argmax(contrast >= INK_CONTRAST)
    if contrast[best] < INK_CONTRAST:
        best = np.argmax(contrast)
    return colors[best] if contrast[best] >= MIN_CONTRAST else None


def _write_split(
    folder: Path, name: str, source: Source, count: int, image_size: int, key: tuple[int, int]
) -> None:
    """Write the images and the annotation file of one split."""
    (folder / name).mkdir()
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        # RandomState, because NumPy guarantees its streams across versions; one per image, so
        # that an image does not depend on how many there are.
        rng = np.random.RandomState((*key, index))
        image, digits = compose_image(rng, source, image_size)
        file_name = f"{index:06d}.jpg"
        # Not imwrite: it returns False where a disk is full and fails on some paths on Windows.
        _, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        (folder / name / file_name).write_bytes(data.tobytes())
        images.append(
            {"id": index + 1, "file_name": file_name, "width": image_size, "height": image_size}
        )
        for digit in digits:
            annotation = {"id": len(annotations) + 1, "image_id": index + 1, "iscrowd": 0}
            annotation |= {"bbox": digit.box, "area": digit.box[2] * digit.box[3]}
            annotation |= {"category_id": digit.label + 1, "scan": digit.scan}
            annotations.append(annotation)
    categories = [{"id": label + 1, "name": digit} for label, digit in enumerate(CLASS_NAMES)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"{name}.json").write_text(json.dumps(data))


def _read_settings(folder: Path) -> dict | None:
    """Return what `settings.json` says, None if there is none or it is not readable."""
    try:
        return json.loads((folder / "settings.json").read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _claim(folder: Path) -> None:
    """Create the folder, or make sure that an existing one is ours or empty, and mark it."""
    foreign = folder.exists() and not (folder / OWNER_FILE).exists()
    if foreign and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(
            f"{folder} was not made by make_digits: move it away or choose another root"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OWNER_FILE).touch()


def _replace_contents(folder: Path, partial: Path) -> None:
    """Exchange the generated contents of `folder` for those in `partial`."""
    old = partial / "old"
    old.mkdir()
    # settings.json goes first and comes last: whoever finds it, finds the data complete.
    for name in reversed(GENERATED):
        if (folder / name).exists():
            os.replace(folder / name, old / name)
    for name in GENERATED:
        os.replace(partial / name, folder / name)
