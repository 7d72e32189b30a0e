"""The demo data set of handwritten digits."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from fsaf_d2.data.reading import digits as digits_module
from fsaf_d2.data.reading.digits import compose_image, load_sources, make_digits, split_scans

SMALL = {"num_train": 6, "num_val": 3, "image_size": 128}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    make_digits(root, **SMALL)
    return root / "digits"


@pytest.fixture(scope="module")
def composed():
    """150 images with their digits and the same images before any digit was drawn."""
    source, _ = load_sources(seed=0)
    results = []
    for index in range(150):
        image, digits = compose_image(np.random.RandomState((0, 0, index)), source, 192)
        photo = digits_module._crop_photo(np.random.RandomState((0, 0, index)), source.photos, 192)
        results.append((image, digits, photo))
    return results


def test_files_are_the_documented_ones(made):
    expected = {".made_by_fsaf_d2", "settings.json"}
    expected |= {"annotations/train.json", "annotations/val.json"}
    expected |= {f"train/{index:06d}.jpg" for index in range(6)}
    expected |= {f"val/{index:06d}.jpg" for index in range(3)}
    assert set(contents(made)) == expected


def test_same_seed_gives_the_same_bytes(made, tmp_path):
    make_digits(tmp_path, **SMALL)
    assert contents(tmp_path / "digits") == contents(made)


def test_other_seed_gives_other_images(made, tmp_path):
    make_digits(tmp_path, **SMALL, seed=1)
    ours, other = contents(made), contents(tmp_path / "digits")
    assert all(ours[name] != other[name] for name in ours if name.endswith(".jpg"))


def test_an_image_does_not_depend_on_their_number(made, tmp_path):
    make_digits(tmp_path, **{**SMALL, "num_train": 2})
    name = "train/000001.jpg"
    assert (tmp_path / "digits" / name).read_bytes() == (made / name).read_bytes()


def test_split_parts_every_class_into_disjoint_scans():
    labels = np.repeat(np.arange(10), 50)
    train, val = split_scans(labels, seed=3)
    assert sorted([*train, *val]) == list(range(500))
    assert np.bincount(labels[val]).tolist() == [10] * 10


def test_split_depends_on_the_seed():
    labels = np.repeat(np.arange(10), 50)
    assert not np.array_equal(split_scans(labels, seed=0)[1], split_scans(labels, seed=1)[1])


@pytest.mark.parametrize("name, part", [("train", 0), ("val", 1)])
def test_objects_come_from_the_scans_of_their_split(made, name, part):
    source = load_sources(seed=0)[part]
    label_of = dict(zip(source.numbers.tolist(), source.labels.tolist(), strict=True))
    annotations = json.loads((made / "annotations" / f"{name}.json").read_text())["annotations"]
    assert annotations
    for annotation in annotations:
        assert label_of[annotation["scan"]] == annotation["category_id"] - 1


def test_splits_share_no_part_of_a_photo():
    train, val = load_sources(seed=0)
    widths = [(a.shape[1], b.shape[1]) for a, b in zip(train.photos, val.photos, strict=True)]
    assert widths == [(400, 240), (400, 240)]
    assert not np.array_equal(train.photos[0][:, :240], val.photos[0])


def test_boxes_lie_inside_the_image(composed):
    for _, digits, _ in composed:
        for x, y, width, height in (digit.box for digit in digits):
            assert 0 <= x < x + width <= 192
            assert 0 <= y < y + height <= 192


def test_nothing_changes_outside_the_boxes(composed):
    for image, digits, photo in composed:
        changed = (image != photo).any(axis=2)
        for x, y, width, height in (digit.box for digit in digits):
            changed[y : y + height, x : x + width] = False
        assert not changed.any()


def test_boxes_are_tight_around_the_ink(composed):
    tight = []
    for image, digits, photo in composed:
        changed = (image != photo).any(axis=2)
        for x, y, width, height in (digit.box for digit in digits):
            ink = changed[y : y + height, x : x + width]
            tight.append(ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any())
    # Not all: faint ink at the edge may have the very colour that was there before.
    assert np.mean(tight) > 0.98


@pytest.mark.parametrize("size", [16, 17, 40, 110])
def test_rendered_digit_fills_its_box(size):
    source, _ = load_sources(seed=0)
    for index in range(60):
        alpha = digits_module._render_digit(np.random.RandomState(index), source.scans[index], size)
        assert max(alpha.shape) == size
        edges = (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1])
        assert min(edge.max() for edge in edges) >= digits_module.INK_THRESHOLD
        assert alpha.max() > 0.9


def test_no_box_covers_a_tenth_of_another(composed):
    for _, digits, _ in composed:
        for i, digit in enumerate(digits):
            for other in digits[:i]:
                assert digits_module._covered_share(digit.box, other.box) <= 0.1


def test_digit_is_not_placed_over_the_ink_of_another():
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    inked = np.ones((64, 64), dtype=bool)
    inked[:, :20] = False
    alpha = np.ones((16, 16), dtype=np.float32)
    boxes = [
        digits_module._place(np.random.RandomState(i), image, inked.copy(), alpha, [])
        for i in range(40)
    ]
    found = [box for box in boxes if box is not None]
    assert found and all(x + width <= 20 for x, _, width, _ in found)


def test_ink_stands_out_from_the_background(composed):
    luma = np.array([0.299, 0.587, 0.114])
    for image, digits, photo in composed:
        difference = np.abs(image @ luma - photo @ luma)
        for x, y, width, height in (digit.box for digit in digits):
            assert difference[y : y + height, x : x + width].max() > 30


def test_sizes_are_spread_from_16_to_110_pixels(composed):
    sizes = np.array([max(digit.box[2:]) for _, digits, _ in composed for digit in digits])
    assert sizes.min() >= 16 and sizes.max() <= 110
    shares = np.histogram(sizes, bins=[16, 26, 42, 68, 111])[0] / len(sizes)
    # Log-uniform: each of these four steps by a factor 1.62 holds a quarter.
    assert shares.min() > 0.15 and shares.max() < 0.35


def test_images_show_up_to_six_digits_and_some_none(composed):
    counts = np.bincount([len(digits) for _, digits, _ in composed])
    assert len(counts) == 7 and counts.all()
    assert counts[0] < 15


def test_every_class_appears(composed):
    assert {digit.label for _, digits, _ in composed for digit in digits} == set(range(10))


@pytest.mark.parametrize("name, count", [("train", 6), ("val", 3)])
def test_annotations_load_with_pycocotools(made, name, count):
    coco = COCO(str(made / "annotations" / f"{name}.json"))
    assert len(coco.getImgIds()) == count
    assert [category["name"] for category in coco.loadCats(range(1, 11))] == list("0123456789")
    for annotation in coco.loadAnns(coco.getAnnIds()):
        assert annotation["area"] == annotation["bbox"][2] * annotation["bbox"][3]
        assert annotation["iscrowd"] == 0


def test_second_call_does_nothing(tmp_path):
    make_digits(tmp_path, **SMALL)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    make_digits(tmp_path, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_other_settings_replace_the_data_and_keep_foreign_files(made, tmp_path):
    make_digits(tmp_path, **{**SMALL, "num_train": 9})
    (tmp_path / "digits" / "notes.txt").write_text("mine")
    make_digits(tmp_path, **SMALL)
    assert contents(tmp_path / "digits") == {**contents(made), "notes.txt": b"mine"}


def test_recovers_from_an_interruption_while_drawing(made, tmp_path, monkeypatch):
    write = digits_module._write_split

    def interrupted(folder, name, *arguments):
        if name == "val":
            raise KeyboardInterrupt
        write(folder, name, *arguments)

    monkeypatch.setattr(digits_module, "_write_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_digits(tmp_path, **SMALL)
    assert set(contents(tmp_path / "digits")) == {".made_by_fsaf_d2"}
    monkeypatch.undo()
    make_digits(tmp_path, **SMALL)
    assert contents(tmp_path / "digits") == contents(made)


@pytest.mark.parametrize("moves", range(8))
def test_recovers_from_an_interruption_while_replacing(made, tmp_path, monkeypatch, moves):
    make_digits(tmp_path, **SMALL)
    left = iter(range(moves))
    replace = digits_module.os.replace

    def interrupted(source, target):
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(digits_module.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_digits(tmp_path, **{**SMALL, "num_train": 1})
    monkeypatch.undo()
    make_digits(tmp_path, **SMALL)
    assert contents(tmp_path / "digits") == contents(made)


def test_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "digits" / "train").mkdir(parents=True)
    (tmp_path / "digits" / "train" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="not made by make_digits"):
        make_digits(tmp_path, **SMALL)
    assert contents(tmp_path) == {"digits/train/mine.jpg": b"mine"}


def test_empty_folder_is_accepted(tmp_path):
    (tmp_path / "digits").mkdir()
    make_digits(tmp_path, num_train=1, num_val=1, image_size=64)
    assert (tmp_path / "digits" / "settings.json").exists()


def test_missing_scikit_learn_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "fsaf_d2\[demo\]"'):
        load_sources(seed=0)


@pytest.mark.parametrize("setting", [{"image_size": 63}, {"num_train": -1}, {"seed": -1}])
def test_settings_out_of_range_are_refused(tmp_path, setting):
    with pytest.raises(ValueError, match=str(next(iter(setting.values())))):
        make_digits(tmp_path, **setting)
    assert not contents(tmp_path)
