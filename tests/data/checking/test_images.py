"""What is found in image files by their headers and ends is what reading them finds."""

import os
import threading

import numpy as np
import pytest
from PIL import Image, ImageFile

from fsaf_d2.data.checking.images import read_image_file
from fsaf_d2.data.loading.mapper import read_image

FORMATS = {
    "jpg": {},
    "progressive.jpg": {"progressive": True},
    "png": {},
    "webp": {},
    "bmp": {},
    "gif": {},
    "tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "ppm": {},
    "jp2": {},
}


@pytest.fixture
def image(tmp_path, request):
    """An image of 40 x 30 pixels in a format, as bytes, and a file to write it to."""
    file = tmp_path / f"a.{request.param}"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(file, **FORMATS[request.param])
    return file, file.read_bytes()


def can_be_read(file):
    try:
        return read_image(str(file), "BGR").shape == (30, 40, 3)
    except OSError:
        return False


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("image", FORMATS, indirect=True)
def test_cut_files_are_found_wherever_they_end(image):
    file, whole = image
    assert read_image_file(str(file)).kind is None
    cuts = [*range(1, len(whole), len(whole) // 40), *range(len(whole) - 8, len(whole))]
    for cut in cuts:
        file.write_bytes(whole[:cut])
        assert (read_image_file(str(file)).kind is None) == can_be_read(file), cut


@pytest.mark.parametrize("image", FORMATS, indirect=True)
def test_what_stands_behind_an_image_does_no_harm(image):
    file, whole = image
    for rest in (b"\0" * 5000, os.urandom(5000)):
        file.write_bytes(whole + rest)
        assert read_image_file(str(file)).kind is None and can_be_read(file)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_sizes_are_those_that_are_read(tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    file = str(tmp_path / f"a.{ending}")
    Image.new("RGB", (40, 30)).save(file, exif=exif)
    found = read_image_file(file)
    assert found.size == read_image(file, "BGR").shape[1::-1]
    assert found.orientation == (orientation if orientation < 9 else 1)


@pytest.mark.parametrize("image", [x for x in FORMATS if x != "gif"], indirect=True)
def test_whole_images_are_not_decoded(image, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert read_image_file(str(image[0])).kind is None


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_grey(tmp_path, mode):
    file = str(tmp_path / "a.tif")
    Image.new(mode, (40, 30)).save(file)
    assert read_image_file(file).kind == "16-bit grey image"


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA"])
def test_other_modes(tmp_path, mode):
    file = str(tmp_path / "a.png")
    Image.new(mode, (40, 30)).save(file)
    assert read_image_file(file).kind is None


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    found = []
    reader = threading.Thread(target=lambda: found.append(read_image_file(str(tmp_path / "a.png"))))
    reader.daemon = True
    reader.start()
    reader.join(timeout=20)
    assert found and found[0].kind == "not an image"
