"""Random changes of image files: read, or refused in one sentence, soon and in little memory.

Longer runs::

    FUZZ_ROUNDS=2000 python -m pytest -q tests/security/test_random_images.py
"""

import io
import os
import random
import struct
import time
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.data.detection_utils import SizeMismatchError
from models import tiny_cfg
from PIL import Image

from fsaf_d2.data.checking.images import read_image_file
from fsaf_d2.data.loading.mapper import build_mapper
from fsaf_d2.data.reading.image_headers import MAX_PIXELS, frames_of
from fsaf_d2.prediction.given_images import to_array

ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "8"))
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
NUMBERS = (0, 1, 2, 4, 99, 255, 256, 4000, 2**15 - 1, 2**15, 2**16 - 1, 2**20, 2**31 - 1, 2**32 - 1)
WORDS = (
    b"\xff\xda",
    b"\xff\xc2",
    b"\xff\xe1",
    b"acTL",
    b"fdAT",
    b"ANMF",
    b"!\xf9\x04",
    b"#",
    b"\0",
)


def saved(mode: str, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, file_format, **options)
    return buffer.getvalue()


def several(file_format: str) -> bytes:
    frames = [Image.fromarray(np.roll(PIXELS, i)) for i in range(3)]
    return saved("RGB", file_format, save_all=True, append_images=frames)


def exif() -> Image.Exif:
    result = Image.Exif()
    result[274], result[270] = 3, "about" * 9
    return result


def text_ppm(kind: int, most: int) -> bytes:
    values = PIXELS if kind == 3 else PIXELS[..., 0]
    words = " ".join(str(value * most // 255) for value in values.ravel().tolist())
    most_text = f"{most}\n" if kind > 1 else ""
    return f"P{kind}\n# a comment\n8 6\n{most_text}{words}\n".encode()


SEEDS = {
    "JPEG": [
        *(lambda: saved("RGB", "JPEG", exif=exif()), lambda: saved("L", "JPEG")),
        lambda: saved("RGB", "JPEG", progressive=True, comment=b"a" * 9),
        *(lambda: saved("CMYK", "JPEG"), lambda: several("MPO")),
    ],
    "PNG": [
        *(lambda mode=mode: saved(mode, "PNG") for mode in ("RGB", "L", "P", "1", "RGBA", "I;16")),
        *(lambda: saved("RGB", "PNG", exif=exif()), lambda: several("PNG")),
    ],
    "WEBP": [
        *(lambda: saved("RGB", "WEBP", exif=exif()), lambda: saved("RGBA", "WEBP", lossless=True)),
        lambda: several("WEBP"),
    ],
    "BMP": [*(lambda mode=mode: saved(mode, "BMP") for mode in ("RGB", "L", "P", "1", "RGBA"))],
    "GIF": [lambda: saved("P", "GIF", comment=b"a" * 9), lambda: several("GIF")],
    "TIFF": [
        *(
            lambda how=how: saved("RGB", "TIFF", compression=how)
            for how in (None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits")
        ),
        *(lambda: saved("1", "TIFF", compression="group4"), lambda: saved("F", "TIFF")),
        *(lambda: saved("L", "TIFF", big_tiff=True), lambda: several("TIFF")),
    ],
    "PPM": [
        *(lambda mode=mode: saved(mode, "PPM") for mode in ("RGB", "L", "1")),
        *(lambda kind=kind: text_ppm(kind, 1 if kind == 1 else 99) for kind in (1, 2, 3)),
        lambda: text_ppm(3, 255).replace(b"P3", b"P6"),
        lambda: b"Pf\n8 6\n-1.0\n" + PIXELS.tobytes() * 2,
    ],
    "JPEG2000": [lambda: saved("RGB", "JPEG2000"), lambda: saved("L", "JPEG2000", no_jp2=True)],
}


def parts_of(content: bytes) -> list[bytes]:
    """A PNG in its chunks, a JPEG in its segments, any other in pieces."""
    if content.startswith(b"\x89PNG"):
        places = [8]
        while places[-1] < len(content):
            places.append(places[-1] + 12 + int.from_bytes(content[places[-1] :][:4], "big"))
    elif content.startswith(b"\xff\xd8"):
        places = [i for i in range(2, len(content) - 1) if content[i] == 255 and content[i + 1]]
    else:
        places = [*range(4, len(content), 12)]
    return [content[a:b] for a, b in zip([0, *places], [*places, len(content)])]


def with_sums(content: bytes) -> bytes:
    """A PNG whose chunks have the sums that they should."""
    result, place = content[:8], 8
    while place + 12 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        body = content[place + 4 : end]
        result += content[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place = end + 4
    return result + content[place:]


def changed(rng: random.Random, content: bytes) -> bytes:
    result = bytearray(content)
    if rng.random() < 0.3:
        parts = parts_of(content)
        one, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        match rng.randrange(3):
            case 0:
                parts[one], parts[other] = parts[other], parts[one]
            case 1:
                parts[one:one] = [parts[other]] * rng.choice((1, 2, 200, 3000))
            case 2:
                del parts[one : one + rng.randrange(1, 4)]
        result = bytearray(b"".join(parts))
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        # Heads matter more than pixels.
        place = rng.randrange(max(1, rng.choice((len(result), min(len(result), 64)))))
        match rng.randrange(6):
            case 0:
                result[place : place + 1] = rng.randbytes(1)
            case 1 | 2:
                size, order = rng.choice((1, 2, 4)), rng.choice(("big", "little"))
                number = rng.choice(NUMBERS) % 256**size
                result[place : place + size] = number.to_bytes(size, order)
            case 3:
                del result[place : place + rng.choice((1, 4, 12, 10**6))]
            case 4:
                start = rng.randrange(max(1, len(result)))
                result[place:place] = result[start : start + rng.choice((2, 12, 200))]
            case 5:
                result[place:place] = rng.choice(WORDS) * rng.choice((1, 9, 5000))
    is_summed = result.startswith(b"\x89PNG") and rng.random() < 0.8
    return with_sums(bytes(result)) if is_summed else bytes(result)


@pytest.fixture(scope="module")
def readers():
    """Training's mapper, by two ways, and prediction's reader."""
    cfg = tiny_cfg("INPUT.MIN_SIZE_TRAIN", "(16,)", "INPUT.MAX_SIZE_TRAIN", "64")
    mapper = build_mapper(cfg, is_train=True)
    cfg.INPUT.FORMAT = "L"
    grey = build_mapper(cfg, is_train=True)
    box = {"bbox": [1, 1, 4, 4], "bbox_mode": 0, "category_id": 0, "iscrowd": 0}
    entry = {"height": 6, "width": 8, "annotations": [box]}
    return SimpleNamespace(
        training=lambda file: mapper({"file_name": file, **entry}),
        grey=lambda file: grey({"file_name": file, **entry}),
        prediction=lambda file: to_array(file, "BGR", MAX_PIXELS),
    )


def try_all(file: str, readers) -> int:
    """Have a file looked at, trained with and predicted on; how often it was refused."""
    refused = 0
    for decode in (False, True):
        found = read_image_file(file, decode=decode)
        refused += bool(found.kind)
        assert len(found.value) < 600 and "\n" not in found.value
    assert frames_of(file) >= 1
    for read in vars(readers).values():
        try:
            read(file)
        except (OSError, SizeMismatchError) as error:
            refused += 1
            assert os.path.basename(file) in str(error), repr(error)
            assert isinstance(error, SizeMismatchError) or "\n" not in str(error)
    return refused


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SEEDS)
def test_changed_images_are_read_or_refused(tmp_path, little_memory, readers, kind):
    seeds, refused = [make() for make in SEEDS[kind]], 0
    for number in range(ROUNDS):
        for which, seed in enumerate(seeds):
            rng = random.Random(f"{kind} {which} {number}")
            (file := tmp_path / "changed.img").write_bytes(changed(rng, seed))
            started = time.process_time()
            refused += try_all(str(file), readers)
            took = time.process_time() - started
            assert took < 10, f"{kind} {which} {number} took {took:.1f} s"
    assert refused


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SEEDS)
def test_images_as_they_are_can_be_read(tmp_path, readers, kind):
    for make in SEEDS[kind]:
        (file := tmp_path / "whole.img").write_bytes(make())
        assert read_image_file(str(file), decode=True).size == (8, 6)
        if read_image_file(str(file)).kind is None:
            assert try_all(str(file), readers) == 0
