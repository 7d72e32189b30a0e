"""Annotation files that lead elsewhere or are broken are refused, and named."""

import copy
import json
import os
import random

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances

from fsaf_d2.data.checking.checks import AnnotationFileError, check_annotations, require_annotations

WHOLE = {
    "info": {"year": 2026},
    "images": [
        {"id": 5, "file_name": "a.jpg", "width": 20, "height": 10},
        {"id": 9, "file_name": "more/b.jpg", "width": 20, "height": 10},
    ],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 3, "bbox": [0, 1.5, 2, 3], "iscrowd": 0},
        {"id": 2, "image_id": 9, "category_id": 8, "bbox": [4, 5, 6, 7], "area": 42},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
}


@pytest.fixture
def folder(tmp_path):
    """An image folder with links, beside an image that is not of it."""
    images = tmp_path / "images"
    (images / "more").mkdir(parents=True)
    for path in (images / "a.jpg", images / "more/b.jpg", tmp_path / "secret.jpg"):
        path.write_bytes(b"image")
    (images / "inner_link.jpg").symlink_to(images / "a.jpg")
    (images / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (images / "two_links.jpg").symlink_to("link.jpg")
    (images / "linked").symlink_to(tmp_path)
    (tmp_path / "images2").mkdir()
    (tmp_path / "images2/c.jpg").write_bytes(b"image")
    return tmp_path


def check(folder, data: object, root: str = "images") -> None:
    file = folder / "own.json"
    file.write_text(data if isinstance(data, str) else json.dumps(data))
    check_annotations(file, folder / root)


def with_name(name: object) -> dict:
    data = copy.deepcopy(WHOLE)
    data["images"][1]["file_name"] = name
    return data


@pytest.mark.parametrize(
    "name",
    ["a.jpg", "more/b.jpg", "not_there/x.jpg", "more/../a.jpg", "inner_link.jpg", "..jpg", "é.jpg"]
    + ["../images/a.jpg"],
)
def test_what_stays_in_the_folder_passes(folder, name):
    check(folder, with_name(name))


def test_the_folder_may_be_a_link(folder):
    (folder / "elsewhere").symlink_to(folder / "images")
    check(folder, WHOLE, "elsewhere")
    with pytest.raises(AnnotationFileError, match=r"image 9 has the file name"):
        check(folder, with_name("../secret.jpg"), "elsewhere")


NAMES = {
    "one up": "../secret.jpg",
    "far up": "../" * 40 + "etc/passwd",
    "down and up": "more/../../secret.jpg",
    "neighbour with the same start": "../images2/c.jpg",
    "absolute": "/etc/passwd",
    "two slashes": "//etc/passwd",
    "link": "link.jpg",
    "link to a link": "two_links.jpg",
    "in a linked folder": "linked/secret.jpg",
    "through a linked folder and up": "linked/../secret.jpg",
    "the parent": "..",
    "address": "https://example.com/x.jpg",
    "catalogue": "detectron2://x.jpg",
    "zero": "a.jpg\0.png",
    "no text of a file system": "\ud800.jpg",
}


@pytest.mark.parametrize("kind", NAMES)
def test_what_leads_out_of_the_folder_is_refused(folder, kind):
    with pytest.raises(AnnotationFileError, match=r"own\.json': image 9 has the file name '.*'"):
        check(folder, with_name(NAMES[kind]))


@pytest.mark.parametrize("kind", ["one up", "absolute", "link", "in a linked folder"])
def test_detectron2_alone_would_read_it(folder, kind):
    file = folder / "own.json"
    file.write_text(json.dumps(with_name(NAMES[kind])))
    path = load_coco_json(str(file), str(folder / "images"))[1]["file_name"]
    assert not os.path.realpath(path).startswith(str(folder / "images") + "/")
    assert os.path.isfile(path)


def changed(path: tuple, value: object) -> dict:
    data = copy.deepcopy(WHOLE)
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


# what is changed, into what, and what the message says
BROKEN = {
    "images missing": (("images",), KeyError, "no list 'images'"),
    "images no list": (("images",), {"id": 1}, "no list 'images'"),
    "image no dict": (("images", 1), 7, "entry 1 of 'images'"),
    "image without id": (("images", 1, "id"), KeyError, "entry 1 of 'images'"),
    "id a text": (("images", 1, "id"), "9", "entry 1 of 'images'"),
    "id true": (("images", 1, "id"), True, "entry 1 of 'images'"),
    "id twice": (("images", 1, "id"), 5, "two entries of 'images' have the id 5"),
    "no name": (("images", 1, "file_name"), KeyError, "image 9 has no 'file_name'"),
    "name a list": (("images", 1, "file_name"), ["a.jpg"], "image 9 has no 'file_name'"),
    "name empty": (("images", 1, "file_name"), "", "image 9 has no 'file_name'"),
    "no width": (("images", 1, "width"), KeyError, "image 9 .* no 'width'"),
    "height 0": (("images", 1, "height"), 0, "image 9 .* no 'height'"),
    "categories missing": (("categories",), KeyError, "no list 'categories'"),
    "half a letter": (
        ("categories", 0, "name"),
        "caf\udce9",
        "category 3 has no 'name' that is a text of at most 200 whole letters, but 'caf",
    ),
    "long name": (("categories", 0, "name"), "x" * 65536, "at most 200 whole letters, but 'xxx"),
    "category without name": (("categories", 0, "name"), None, "category 3 has no 'name'"),
    "annotations no list": (("annotations",), None, "no list 'annotations'"),
    "annotation no dict": (("annotations", 0), [], "entry 0 of 'annotations'"),
    "annotation id twice": (("annotations", 1, "id"), 1, "'annotations' have the id 1"),
    "unknown image": (("annotations", 1, "image_id"), 6, "annotation 2 has the image_id 6"),
    "image a dict": (("annotations", 1, "image_id"), {}, "annotation 2 has the image_id"),
    "unknown category": (("annotations", 1, "category_id"), 0, "annotation 2 has the category_id"),
    "no box": (("annotations", 1, "bbox"), KeyError, "annotation 2 of image 9 has the bbox None"),
    "box of three": (("annotations", 1, "bbox"), [1, 2, 3], "annotation 2 of image 9"),
    "box of texts": (("annotations", 1, "bbox"), ["1", 2, 3, 4], "annotation 2 of image 9"),
    "box a text": (("annotations", 1, "bbox"), "1234", "annotation 2 of image 9"),
    "box not finite": (("annotations", 1, "bbox"), [1, 2, 3, float("nan")], "bbox .*nan"),
    "box endless": (("annotations", 1, "bbox"), [1, 2, 3, float("inf")], "bbox .*inf"),
    "box too large": (("annotations", 1, "bbox"), [1, 2, 3, 10**400], "annotation 2"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_the_first_offender_is_named(folder, kind):
    path, value, words = BROKEN[kind]
    with pytest.raises(AnnotationFileError, match=rf"own\.json': .*{words}"):
        check(folder, changed(path, value))


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "3", '"text"', "[" * 10**5, '{"images": ' + "9" * 5000 + "}", "\x00"],
)
def test_what_is_no_mapping_is_refused(folder, text):
    with pytest.raises(AnnotationFileError, match=r"own\.json'"):
        check(folder, text)


def test_bytes_that_are_no_text_are_refused(folder):
    (folder / "own.json").write_bytes(b'{"images": "\xff\xfe"}')
    with pytest.raises(AnnotationFileError, match=r"own\.json' is not JSON"):
        check_annotations(folder / "own.json", folder / "images")


def test_images_without_annotations_pass(folder):
    data = changed(("annotations",), KeyError)
    assert "annotations" not in data
    check(folder, data)


def test_repeated_ids_pass_where_detectron2_lets_them(folder):
    data = changed(("annotations", 1, "id"), 1)
    with pytest.raises(AnnotationFileError, match=r"own\.json'"):
        check(folder, data)
    (folder / "minival.json").write_text(json.dumps(data))
    check_annotations(folder / "minival.json", folder / "images")


def test_data_sets_are_checked_before_a_run(folder):
    (folder / "own.json").write_text(json.dumps(with_name("../secret.jpg")))
    register_coco_instances("strange", {}, str(folder / "own.json"), str(folder / "images"))
    try:
        with pytest.raises(AnnotationFileError, match=r"secret\.jpg"):
            require_annotations(["strange"])
    finally:
        DatasetCatalog.remove("strange")
        MetadataCatalog.remove("strange")


VALUES = [None, True, -1, 0, 5, 1e308, 10**400, "", "../a", "a.jpg", [], {}, [[]], {"id": 1}]
VALUES += [float("nan"), "\0", "\ud800", [1, 2, 3, 4]]


def mutated(rng: random.Random, data: object) -> object:
    """Change one place of nested lists and dicts."""
    if rng.random() < 0.2 or not data or not isinstance(data, (dict, list)):
        return copy.deepcopy(rng.choice(VALUES))
    key = rng.choice(list(data) if isinstance(data, dict) else range(len(data)))
    if rng.random() < 0.2:
        del data[key]
    elif isinstance(data, list) and rng.random() < 0.2:
        data.append(copy.deepcopy(data[key]))
    else:
        data[key] = mutated(rng, data[key])
    return data


ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "300"))


def test_changed_values_pass_or_are_refused(folder):
    rng = random.Random(0)
    passed = refused = 0
    for _ in range(ROUNDS):
        data = copy.deepcopy(WHOLE)
        for _ in range(rng.randint(1, 3)):
            data = mutated(rng, data)
        (folder / "own.json").write_text(json.dumps(data))
        try:
            check_annotations(folder / "own.json", folder / "images")
        except AnnotationFileError as error:
            refused += 1
            assert "own.json" in str(error)
            continue
        passed += 1
        # What passes is what detectron2 can read.
        if data["images"] and data["categories"]:
            load_coco_json(str(folder / "own.json"), str(folder / "images"), "fuzzed")
            MetadataCatalog.remove("fuzzed")
    assert passed > ROUNDS // 20 and refused > ROUNDS // 4


def test_changed_bytes_pass_or_are_refused(folder):
    rng = random.Random(1)
    whole = json.dumps(WHOLE).encode()
    for _ in range(ROUNDS):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(content))
            content[place : place + rng.choice((0, 1, 20))] = rng.choice(
                (b"", b"\xff", b"[", b"}", b"1e999", b"NaN", b"\\u0000", rng.randbytes(2))
            )
        (folder / "own.json").write_bytes(content)
        try:
            check_annotations(folder / "own.json", folder / "images")
        except AnnotationFileError as error:
            assert "own.json" in str(error)
