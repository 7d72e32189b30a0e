"""Checks and statistics of data sets; each kind of flaw is in tests/tools/test_check_data.py."""

import json
import os
import random

import pytest
from broken_data import BREAKS, sound_data, write_images, write_source
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json

from fsaf_d2.data.checking.check_source import check_source, statistics
from fsaf_d2.data.checking.findings import KINDS, summarise
from fsaf_d2.data.checking.fix import fix
from fsaf_d2.data.checking.output import as_text, to_dict
from fsaf_d2.data.reading.sources import Source
from fsaf_d2.evaluation.ground_truth import read_ground_truth

ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "400"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    write_images(folder / "images", sound_data())
    return folder


def kinds(source, **options):
    return {finding.kind for finding in check_source(source, **options).findings}


def test_every_kind_of_finding_has_a_broken_data_set():
    of_two_sets = {"leak", "same data for validation", "same name in validation"}
    assert {case.kind for case in BREAKS.values()} | of_two_sets | {"list missing"} == set(KINDS)


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_a_list_that_is_none(folder, section):
    source = write_source(folder, {**sound_data(), section: {"id": 1}})
    found = check_source(source).findings[0]
    assert found.kind == "list missing" and section in found.value
    assert fix(check_source(source)).changes == {}


def test_images_are_only_looked_at_if_asked(folder):
    data = sound_data()
    data["images"][0]["file_name"] = "nowhere.png"
    source = write_source(folder, data)
    assert kinds(source) == {"missing image"} and not kinds(source, read_images=False)


def test_limit_of_pixels(folder):
    source = write_source(folder, sound_data())
    assert kinds(source, max_pixels=64 * 48) == set()
    assert kinds(source, max_pixels=64 * 48 - 1) == {"huge image"}


def test_an_image_outside_the_folder_is_not_opened(folder, monkeypatch):
    data = sound_data()
    data["images"][0]["file_name"] = "../secret.png"
    opened = []
    monkeypatch.setattr(
        "fsaf_d2.data.checking.images.read_image_file", lambda path, *_: opened.append(path)
    )
    check_source(write_source(folder, data))
    assert len(opened) == 3 and not any("secret" in path for path in opened)


def test_files_without_areas_are_those_of_other_formats(folder):
    data = sound_data()
    for annotation in data["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    source = write_source(folder, data)
    assert kinds(source) == {"missing area", "missing iscrowd"}
    source.format, source.places = "yolo", {5: "labels/p1.txt:2"}
    assert kinds(source) == set()
    # As a COCO file they have them.
    fixed = fix(check_source(source))
    assert fixed.changes == {"missing area": 12, "missing iscrowd": 12}
    assert fixed.check.source.data == sound_data()
    source.data["annotations"][4]["bbox"][2] = 0
    found = check_source(source).findings
    assert [(x.kind, x.file, x.annotation_id) for x in found] == [
        ("zero-sized box", "labels/p1.txt:2", 5)
    ]


def test_statistics_count_what_is_there(folder):
    data = sound_data()
    data["annotations"][0]["area"] = 32**2  # by its mask, and on a limit: of two sizes
    data["annotations"][1]["iscrowd"] = 1
    data["annotations"][2]["bbox"][2] = 0  # no object
    data["annotations"] = data["annotations"][:6]
    found = statistics(check_source(write_source(folder, data)))
    assert found["images"] == 4 and found["boxes"] == 4 and found["crowds"] == 1
    assert found["images_without_objects"] == 2
    assert found["classes"] == {"a": 2, "b": 1, "c": 1}
    assert found["sizes"] == {"small": 4, "medium": 1, "large": 0}
    assert found["sizes_by_class"]["a"] == {"small": 2, "medium": 1, "large": 0}
    assert found["objects_per_image"] == {"0": 2, "1": 1, "3": 1}
    assert found["image_sizes"] == {"64 x 48": 4} and found["median_image_size"] == [64, 48]
    # The roots of 120, 132, 143 and 154.
    assert found["median_box_size"] == pytest.approx((132**0.5 + 143**0.5) / 2)
    edges, counts = found["box_size_histogram"].values()
    assert len(edges) == len(counts) + 1 and sum(counts) == 4
    assert sum(n for n, edge in zip(counts, edges) if edge < 11.3) == 1


def test_statistics_of_nothing():
    source = Source("x", "coco", "x", "x", {})
    found = statistics(check_source(source))
    assert found["boxes"] == 0 and found["median_box_size"] is None
    json.dumps(found, allow_nan=False)


def test_summary_has_errors_first_and_a_few_of_each(folder):
    data = sound_data()
    for annotation in data["annotations"]:
        del annotation["area"]
    data["annotations"][4]["bbox"][2] = 0
    found = summarise(check_source(write_source(folder, data)).findings, limit=3)
    assert list(found) == ["zero-sized box", "missing area"]
    assert found["missing area"]["count"] == 12 and len(found["missing area"]["first"]) == 3
    assert found["zero-sized box"]["first"][0]["annotation_id"] == 5


def test_names_of_strangers_do_not_reach_the_terminal_as_they_are(folder):
    data = sound_data()
    data["images"][0]["file_name"] = "\x1b[2Jgone\n.png"
    data["categories"][0]["name"] = "\x1b[31mred"
    assert "\x1b" not in as_text(to_dict(check_source(write_source(folder, data))))


def test_what_has_a_broken_box_is_not_taken_for_unused(folder):
    data = sound_data()
    data["images"].append({**data["images"][0], "id": 9})
    data["categories"].append({"id": 9, "name": "a"})
    twin = {**data["annotations"][0], "id": 50, "image_id": 9, "category_id": 9, "bbox": [1, 2, 3]}
    data["annotations"].append(twin)
    fixed = fix(check_source(write_source(folder, data)))
    assert not fixed.changes and fixed.check.source.data == data
    assert fixed.check.num_errors == 4


VALUES = [None, True, -1, 0, 5, 0.5, 1e308, 10**400, "", "a", "../a", "p1.png", [], {}, [[]]]
VALUES += [float("nan"), float("inf"), "\0", "\ud800", [1, 2, 3, 4], ["1", 2, 3, 4], {"id": 1}]


def mutated(rng, data):
    """Change one place of nested lists and dicts."""
    if rng.random() < 0.2 or not data or not isinstance(data, (dict, list)):
        return rng.choice(VALUES)
    key = rng.choice(list(data) if isinstance(data, dict) else range(len(data)))
    if rng.random() < 0.2:
        del data[key]
    elif isinstance(data, list) and rng.random() < 0.2:
        data.append(data[key])
    else:
        data[key] = mutated(rng, data[key])
    return data


def test_whatever_a_file_has_is_told_or_mended(folder):
    rng = random.Random(0)
    mended = 0
    for _ in range(ROUNDS):
        data = sound_data()
        for _ in range(rng.randint(1, 3)):
            data = mutated(rng, data)
        source = write_source(folder, data)
        before = repr(source.data)
        check = check_source(source)
        as_text(to_dict(check))
        fixed = fix(check)
        assert repr(source.data) == before
        if fixed.check.num_errors or not fixed.changes or not fixed.check.source.data["images"]:
            continue
        mended += 1
        # detectron2 reads it, and no image that had objects has become background.
        out = write_source(folder, fixed.check.source.data, "mended.json")
        records = load_coco_json(out.annotation_file, out.image_root, "mended")
        MetadataCatalog.remove("mended")
        with_objects = {x["file_name"] for x in records if x["annotations"]}
        pairs = zip(check.entries.images, check.entries.is_labelled)
        labelled = {os.path.join(out.image_root, x["file_name"]) for x, is_one in pairs if is_one}
        assert labelled & {x["file_name"] for x in records} <= with_objects
    assert mended > ROUNDS // 50


def test_sizes_are_those_of_the_evaluation(folder):
    data = sound_data()
    for annotation, area in zip(data["annotations"], (0, 32**2, 5000, 96**2, 1e5, None)):
        annotation["area"] = area
    source = write_source(folder, data)
    counted = statistics(check_source(source, read_images=False))
    truth = read_ground_truth(source.annotation_file)
    assert counted["sizes"] == truth.count_by_size()
    names = truth.class_names
    of_class = {name: truth.count_by_size(k) for k, name in enumerate(names)}
    assert counted["sizes_by_class"] == of_class


@pytest.mark.parametrize(
    ("box", "is_noted"),
    [([5, 5, 1, 1], True), ([5, 5, 9, 1], True), ([5, 5, 1.0001, 8], True), ([5, 5, 2, 2], False)],
)
def test_boxes_of_a_pixel_are_noted_and_stay(folder, box, is_noted):
    data = sound_data()
    data["annotations"][0]["bbox"] = box
    check = check_source(write_source(folder, data), read_images=False)
    assert [x.kind for x in check.findings] == ["box of a pixel"] * is_noted
    assert check.num_errors == 0 and check.boxes.is_usable.all()
