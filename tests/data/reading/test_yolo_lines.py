"""What YOLO's lines mean: every reading that fits is weighed, and none is taken where two do."""

import itertools
import random

import pytest
from formats import write_image
from PIL import Image

from fsaf_d2.data.reading.sources import Source, SourceError, open_source


def yolo(root, label_lines: list[str], settings: str = "") -> Source:
    """A set with an image of 200 x 100 for each line."""
    for letter, line in zip("0123456789abcdef", label_lines):
        write_image(root / f"images/train/i{letter}.png", (200, 100))
        label = root / f"labels/train/i{letter}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(f"{line}\n")
    (root / "data.yaml").write_text(f"train: images/train\nnames: [a, b]\n{settings}")
    return open_source(root)


def boxes(source: Source) -> list[list[float]]:
    return [[round(value, 3) for value in x["bbox"]] for x in source.data["annotations"]]


def ambiguous(root, label_lines: list[str], settings: str = "") -> str:
    with pytest.raises(SourceError) as error:
        yolo(root, label_lines, settings)
    return str(error.value)


BOX, PIXELS = "0.5 0.5 0.2 0.4", [80, 30, 40, 40]
INSIDE = "0.45 0.4 0.55 0.6"


@pytest.mark.parametrize(
    ("rest", "note"),
    [
        ("0.91", "a box and a score"),
        ("17", "a box and the number of a track"),
        ("0.91 17", "a box, a score and the number of a track"),
        ("17 0.91", "a box, a score and the number of a track"),
        ("0.45 0.4 2", "a box and 1 keypoints of 3 numbers"),
        ("0.45 0.4 2 0.55 0.6 1 0 0 0", "a box and 3 keypoints of 3 numbers"),
        (" ".join([INSIDE] * 17), "a box and 34 keypoints of 2 numbers"),
    ],
)
def test_what_stands_behind_a_box_is_left_out_and_said(tmp_path, rest, note):
    source = None
    try:
        source = yolo(tmp_path, [f"0 {BOX} {rest}"] * 3)
    except SourceError as error:
        # Of two numbers each they may be a polygon as well.
        assert "of 2 numbers" in note and "label_format: polygon" in str(error)
        source = yolo(tmp_path, [f"0 {BOX} {rest}"] * 3, "kpt_shape: [34, 2]\n")
        note = "a box and keypoints"
    assert boxes(source) == [PIXELS] * 3
    assert source.findings == [] and source.notes[0].startswith(f"3 lines are read as {note}:")


@pytest.mark.parametrize("shape", [(1, 2), (2, 2), (5, 2), (3, 3), (17, 3)])
def test_kpt_shape_says_what_keypoints_are(tmp_path, shape):
    count, dim = shape
    points = " ".join(["0.45", "0.45", "1"][:dim] * 1) + " "
    source = yolo(tmp_path, [f"1 {BOX} {points * count}"] * 2, f"kpt_shape: [{count}, {dim}]\n")
    assert boxes(source) == [PIXELS] * 2 and source.findings == []


def test_lines_of_another_length_than_kpt_shape_are_found(tmp_path):
    source = yolo(tmp_path, [f"0 {BOX} {INSIDE}", f"0 {BOX} {INSIDE} 0.5"], "kpt_shape: [2, 2]\n")
    (finding,) = source.findings
    assert finding.kind == "unreadable object" and "asks for 9" in finding.value
    assert boxes(source) == [PIXELS]


def test_keypoints_without_kpt_shape_are_not_taken_for_polygons(tmp_path):
    message = ambiguous(tmp_path, [f"0 {BOX} {INSIDE}"] * 4)
    for words in ("2 keypoints of 2 numbers", "a polygon", "label_format", "kpt_shape", "i0.txt:1"):
        assert words in message
    assert boxes(yolo(tmp_path, [f"0 {BOX} {INSIDE}"], "label_format: box\n"))[0] == PIXELS
    polygon = boxes(yolo(tmp_path, [f"0 {BOX} {INSIDE}"], "label_format: polygon\n"))[0]
    assert polygon == [40, 40, 70, 20]


def test_turned_boxes_are_the_boxes_around_them_and_said(tmp_path):
    source = yolo(
        tmp_path, ["0 0.8 0.7 0.9 0.8 0.8 0.9 0.7 0.8", "1 0.5 0.6 0.7 0.6 0.7 0.9 0.5 0.9"]
    )
    assert boxes(source) == [[140, 70, 40, 20], [100, 60, 40, 30]]
    assert source.notes == ["2 turned boxes (OBB) are taken as their bounding boxes."]


def test_turned_boxes_and_other_polygons_may_be_mixed(tmp_path):
    turned, other = "0 0.8 0.7 0.9 0.8 0.8 0.9 0.7 0.8", "0 0.8 0.7 0.9 0.8 0.8 0.9 0.75 0.9"
    source = yolo(tmp_path, [turned, other, turned, other, "0 0.1 0.1 0.3 0.1 0.2 0.5"])
    assert boxes(source) == [[140, 70, 40, 20], [150, 70, 30, 20]] * 2 + [[20, 10, 40, 40]]
    assert source.findings == [] and source.notes[0].startswith("5 ")


def test_the_number_of_a_track_may_stand_before_the_box(tmp_path):
    source = yolo(tmp_path, [f"0 {track} {BOX}" for track in (3, 4, -1, 12)])
    assert boxes(source) == [PIXELS] * 4 and "number of a track and a box" in source.notes[0]


def test_polygons_among_boxes_and_lines_of_many_lengths(tmp_path):
    source = yolo(tmp_path, [f"0 {BOX}", "1 0.1 0.1 0.3 0.1 0.2 0.5", f"0 {BOX} {INSIDE}"])
    assert boxes(source) == [PIXELS, [20, 10, 40, 40], [40, 40, 70, 20]]


def test_lines_of_two_kinds_are_not_guessed(tmp_path):
    pose = f"0 {BOX} 0.45 0.45 2 0.55 0.55 2"
    message = ambiguous(tmp_path, [pose] * 3 + ["0 0.1 0.1 0.9 0.1 0.9 0.9"] * 3)
    assert "not all of one kind" in message and "polygon" in message and "keypoints" in message


# -- layouts in the format's own numbers --------------------------------------------------------


def random_boxes(count: int, seed: int) -> list[tuple[float, float, float, float]]:
    """Corners of boxes in an image, as shares."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        x0, x1 = sorted(rng.uniform(0, 1) for _ in range(2))
        y0, y1 = sorted(rng.uniform(0, 1) for _ in range(2))
        made.append((x0, y0, x1 + 1e-3, y1 + 1e-3) if x1 < 0.99 and y1 < 0.99 else (0, 0, 0.5, 1))
    return made


WRITTEN = {
    "corners": lambda x0, y0, x1, y1: (x0, y0, x1, y1),
    "top-left": lambda x0, y0, x1, y1: (x0, y0, x1 - x0, y1 - y0),
    "box": lambda x0, y0, x1, y1: ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0),
}


@pytest.mark.parametrize(("name", "seed"), list(itertools.product(WRITTEN, (1, 2))))
def test_boxes_that_are_no_centres_are_an_error_that_names_the_better_reading(tmp_path, name, seed):
    made = random_boxes(12, seed)
    written = [" ".join(f"{x:.6f}" for x in WRITTEN[name](*box)) for box in made]
    source = yolo(tmp_path, [f"0 {line}" for line in written])
    kinds = [x.kind for x in source.findings]
    assert kinds == ([] if name == "box" else ["boxes are no centres"])
    if name != "box":
        assert f"label_format: {name}" in source.findings[0].value
        source = yolo(tmp_path, [f"0 {line}" for line in written], f"label_format: {name}\n")
        assert source.findings == []
    for (x0, y0, x1, y1), found in zip(made, boxes(source)):
        expected = [200 * x0, 100 * y0, 200 * (x1 - x0), 100 * (y1 - y0)]
        assert found == pytest.approx(expected, abs=0.01)


def test_sizes_in_pixels_are_no_shares(tmp_path):
    (finding,) = yolo(tmp_path, [f"0 {BOX}", "0 0.5 0.5 40 40"]).findings
    assert finding.kind == "unreadable object" and "not shares" in finding.value


# -- files --------------------------------------------------------------------------------------


def test_images_that_share_a_label_file_are_an_error(tmp_path):
    yolo(tmp_path, [f"0 {BOX}"] * 2)
    write_image(tmp_path / "images/train/i1.webp", (200, 100))
    (finding,) = open_source(tmp_path).findings
    assert (finding.kind, finding.severity) == ("two images share labels", "error")
    assert "i1.png and " in finding.value and "i1.webp" in finding.value


@pytest.mark.parametrize("label", ["i0.TXT", "i0.Txt"])
def test_endings_of_labels_may_be_capitals(tmp_path, label):
    yolo(tmp_path, [f"0 {BOX}"])
    (tmp_path / "labels/train/i0.txt").rename(tmp_path / "labels/train" / label)
    assert boxes(open_source(tmp_path)) == [PIXELS]
    (tmp_path / "labels/train/i0.txt").write_text("")
    assert [x.kind for x in open_source(tmp_path).findings] == ["two label files of an image"]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("I1.txt", "'i1.png' lies in"),
        ("i1.png.txt", "'i1.png' lies in"),
        ("photo.txt", "'photo.avif' lies in"),
        ("0a1b2c3d-i1.txt", "'i1.png' lies in"),
        ("nothing.txt", ""),
    ],
)
def test_labels_of_an_image_of_nearly_that_name(tmp_path, label, words):
    yolo(tmp_path, [f"0 {BOX}"])
    write_image(tmp_path / "images/train/i1.png", (200, 100))
    (tmp_path / "images/train/photo.avif").write_bytes(b"an image")
    (tmp_path / "labels/train" / label).write_text(f"0 {BOX}\n")
    source = open_source(tmp_path)
    (finding,) = source.findings
    assert finding.kind == "labels of a missing image"
    assert finding.value.startswith(words) if words else finding.value == ""
    assert ".avif is not read" in source.notes[-1] and "photo.avif" in source.notes[-1]


@pytest.mark.parametrize("text", [f"\ufeff0 {BOX}\r\n", f"0 {BOX}\r0 {BOX}"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_encodings_and_line_ends(tmp_path, text, encoding):
    yolo(tmp_path, [f"0 {BOX}"])
    (tmp_path / "labels/train/i0.txt").write_bytes(text.lstrip("\ufeff").encode(encoding))
    assert boxes(open_source(tmp_path)) == [PIXELS] * text.count("0 0.5")


def test_a_file_of_names_in_another_encoding_says_so(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(f"0 {BOX}\n")
    (tmp_path / "classes.txt").write_bytes("Größe\n".encode("cp1252"))
    with pytest.raises(SourceError, match=r"classes\.txt'.* save the file in UTF-8"):
        open_source(tmp_path)


@pytest.mark.parametrize("names", [("Images", "Labels"), ("IMAGES", "labels")])
def test_folders_may_be_capitals(tmp_path, names):
    yolo(tmp_path, [f"0 {BOX}"] * 2)
    for old, new in zip(("images", "labels"), names):
        (tmp_path / old).rename(tmp_path / new)
    (tmp_path / "data.yaml").write_text(f"train: {names[0]}/train\nnames: [a]\n")
    assert boxes(open_source(tmp_path)) == [PIXELS] * 2
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_text("a\n")
    assert boxes(open_source(tmp_path)) == [PIXELS] * 2
