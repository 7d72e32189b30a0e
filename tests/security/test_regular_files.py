"""What is no file, such as a pipe that nobody writes to, is refused where a file is read."""

import os
import re

import pytest
from formats import write_coco, write_image, write_voc, write_yolo

from fsaf_d2 import load_config
from fsaf_d2.data.checking.check_source import check_source
from fsaf_d2.data.checking.images import read_image_file
from fsaf_d2.data.loading.mapper import LimitedMapper, read_image
from fsaf_d2.data.reading.image_headers import frames_of
from fsaf_d2.data.reading.sources import open_source
from fsaf_d2.evaluation.ground_truth import read_ground_truth
from fsaf_d2.prediction.shots import count_frames
from fsaf_d2.regular_files import open_regular

pytestmark = pytest.mark.usefixtures("soon")
KINDS = {"pipe": "a named pipe", "socket": "a socket", "folder": "a folder", "device": "a device"}


def make(kind, path):
    """Put something that is no file at a path, in place of what is there."""
    if os.path.lexists(path):
        os.unlink(path)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        os.mkdir(path)
    elif kind == "device":
        os.symlink("/dev/zero", path)
    else:
        # A socket's path may have 107 letters.
        folder = os.open(os.path.dirname(path), os.O_RDONLY)
        os.mknod(os.path.basename(path), 0o140644, dir_fd=folder)
        os.close(folder)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_only_files_are_opened(tmp_path, kind):
    path = make(kind, tmp_path / "file")
    with pytest.raises(OSError, match=f"file' is {KINDS[kind]}, not a file"):
        open_regular(path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match=f"link' is {KINDS[kind]}"):
        open_regular(tmp_path / "link")


def test_links_to_files_are_opened(tmp_path):
    (tmp_path / "file").write_text("á\r\n", encoding="utf-8")
    (tmp_path / "link").symlink_to("file")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == "á\r\n".encode()
    with open_regular(tmp_path / "link", "r", encoding="utf-8") as file:
        assert file.read() == "á\n"
    with pytest.raises(FileNotFoundError, match="none"):
        open_regular(tmp_path / "none")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", ["", "_BASE_: base.yaml\n", "_BASE_: [base.yaml]\n"])
def test_configs(tmp_path, kind, base):
    make(kind, tmp_path / ("base.yaml" if base else "config.yaml"))
    if base:
        (tmp_path / "config.yaml").write_text(base)
    with pytest.raises(ValueError, match=rf"config\.yaml'.*\.yaml' is {KINDS[kind]}, not a file"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("kind", KINDS)
def test_annotation_files(tmp_path, kind):
    path = make(kind, tmp_path / "a.json")
    with pytest.raises(OSError, match="not a file"):
        read_ground_truth(path)


# Files of a data set; what is not read at once for an image is its own finding.
PLACES = {
    "coco": (write_coco, "annotations/train.json"),
    "coco image": (write_coco, "images/a.jpg"),
    "voc": (write_voc, "Annotations/a.xml"),
    "voc list": (write_voc, "ImageSets/Main/train.txt"),
    "voc image": (write_voc, "JPEGImages/a.jpg"),
    "yolo": (write_yolo, "train/labels/a.txt"),
    "yolo image": (write_yolo, "train/images/a.jpg"),
    "yolo settings": (write_yolo, "data.yaml"),
}


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("place", PLACES)
def test_data_sets(tmp_path, place, kind):
    write, name = PLACES[place]
    root = write(tmp_path / "own")
    make(kind, root / name)
    try:
        found = check_source(open_source(root)).findings
    except (ValueError, OSError) as error:
        assert str(root) in str(error)
    else:
        assert any(name.rpartition("/")[2] in f"{x.file} {x.value}" for x in found)


@pytest.mark.parametrize("kind", KINDS)
def test_images(tmp_path, kind):
    path = str(make(kind, tmp_path / "a.jpg"))
    for read in (
        lambda: read_image(path, "BGR"),
        lambda: LimitedMapper(False, augmentations=[], image_format="BGR")({"file_name": path}),
    ):
        with pytest.raises(OSError, match=f"a.jpg' is {KINDS[kind]}"):
            read()
    assert frames_of(path) == 1 and count_frames(path) == 0
    assert re.search("not a file", read_image_file(path).value)


def test_a_list_of_names_is_a_file(tmp_path):
    write_image(tmp_path / "images/a.jpg")
    make("pipe", tmp_path / "train.txt")
    (tmp_path / "data.yaml").write_text("train: train.txt\nnames: [cat]\n")
    with pytest.raises(ValueError, match=r"train\.txt"):
        open_source(tmp_path / "data.yaml")


def test_names_of_classes_are_in_a_file(tmp_path):
    root = write_yolo(tmp_path)
    os.unlink(root / "data.yaml")
    make("pipe", root / "train/classes.txt")
    with pytest.raises(ValueError):
        open_source(root / "train")
