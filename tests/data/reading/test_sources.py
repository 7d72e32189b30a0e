"""Data sets of every format, by their path."""

import json
import shutil

import pytest
from formats import (
    BOXES,
    CLASSES,
    HEIGHT,
    WIDTH,
    WRITERS,
    coco,
    lines,
    write_coco,
    write_image,
    write_roboflow,
    write_voc,
    write_yolo,
    xml,
)
from PIL import Image

from fsaf_d2.data.reading.sources import Source, SourceError, open_source


def boxes(source: Source) -> dict[str, list[tuple]]:
    """(class, x, y, width, height) of each image, to a hundredth of a pixel."""
    names = {category["id"]: category["name"] for category in source.data["categories"]}
    files = {image["id"]: image["file_name"] for image in source.data["images"]}
    found = {name: [] for name in files.values()}
    for x in source.data["annotations"]:
        box = (round(value, 2) for value in x["bbox"])
        found[files[x["image_id"]]].append((names[x["category_id"]], *box))
    return {name: sorted(objects) for name, objects in found.items()}


def expected(split: str) -> dict[str, list[tuple]]:
    return {name: sorted(objects) for name, objects in BOXES[split].items()}


def refused(path, split: str = "train") -> str:
    with pytest.raises(SourceError) as error:
        open_source(path, split)
    return str(error.value)


def kinds(source: Source) -> list[tuple[str, str]]:
    return [(finding.kind, finding.severity) for finding in source.findings]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_boxes(tmp_path, kind, split):
    source = open_source(WRITERS[kind](tmp_path / "own"), split)
    assert (source.format, source.path) == (kind, str(tmp_path / "own"))
    assert boxes(source) == expected(split)
    assert source.findings == []
    for image in source.data["images"]:
        assert (image["width"], image["height"]) == (WIDTH, HEIGHT)
        assert (tmp_path / source.image_root / image["file_name"]).is_file()


@pytest.mark.parametrize("kind", WRITERS)
def test_classes_are_in_the_formats_order(tmp_path, kind):
    categories = open_source(WRITERS[kind](tmp_path / "own")).data["categories"]
    names = [category["name"] for category in sorted(categories, key=lambda x: x["id"])]
    assert names == (sorted(CLASSES) if kind == "voc" else CLASSES)
    first = {"coco": 1, "roboflow": 1, "voc": 1, "yolo": 0}[kind]
    assert min(category["id"] for category in categories) == first


def test_annotations_of_texts_say_where_they_stand(tmp_path):
    source = open_source(write_yolo(tmp_path / "yolo"))
    assert source.places[2] == str(tmp_path / "yolo/train/labels/a.txt") + ":2"
    source = open_source(write_voc(tmp_path / "voc"))
    assert source.places[2] == str(tmp_path / "voc/Annotations/a.xml") + ", object 2"


# -- paths --------------------------------------------------------------------------------------


def test_a_file_and_its_folder_may_have_colons(tmp_path):
    root = write_coco(tmp_path / "own:set")
    (root / "images").rename(root / "pic:tures")
    source = open_source(f"{root}/annotations/val.json:{root}/pic:tures/")
    assert boxes(source) == expected("val")
    assert source.image_root == f"{root}/pic:tures/"


def test_a_path_that_is_two_things(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "own")
    (tmp_path / "a.json").write_text(json.dumps(coco("val")))
    shutil.copytree(tmp_path / "own/images", tmp_path / "a.json:own")
    message = refused("a.json:own")
    assert "can be read as" in message and "the file 'a.json' with the folder 'own'" in message


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere", "'nowhere' does not exist"),
        ("own/annotations/val.json:nowhere", "no folder 'nowhere'"),
        ("nowhere.json:own/images", "no file 'nowhere.json'"),
        ("", "does not exist"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)
    write_coco(tmp_path / "own")
    assert words in refused(path)


def test_an_unknown_format_says_what_was_looked_for_and_what_is_there(tmp_path):
    write_image(tmp_path / "a.jpg")
    (tmp_path / "labels.csv").write_text("a.jpg,1,2,3,4,cat\n")
    message = refused(tmp_path)
    for words in ("annotations/*.json", "_annotations.coco.json", "XML", "data.yaml"):
        assert words in message
    assert "There is: a.jpg, labels.csv." in message


def test_two_formats_in_one_folder_are_not_guessed_between(tmp_path):
    write_coco(tmp_path)
    write_yolo(tmp_path)
    message = refused(tmp_path)
    assert "coco (annotations/train.json)" in message and "yolo (data.yaml: train)" in message
    assert boxes(open_source(tmp_path / "data.yaml")) == expected("train")


def test_without_validation_the_test_split_is_taken_and_said(tmp_path):
    root = write_coco(tmp_path)
    (root / "annotations/val.json").rename(root / "annotations/test.json")
    source = open_source(root, "val")
    assert boxes(source) == expected("val")
    assert "'test' is taken (annotations/test.json)" in source.notes[0]
    assert open_source(root, "train").notes == []


@pytest.mark.parametrize("kind", WRITERS)
def test_a_missing_split_is_an_error(tmp_path, kind):
    root = WRITERS[kind](tmp_path)
    names = {
        "coco": "annotations/val.json",
        "roboflow": "valid/_annotations.coco.json",
        "voc": "ImageSets/Main/val.txt",
    }
    if kind == "yolo":
        (root / "data.yaml").write_text(f"train: train/images\nnames: {CLASSES}\n")
    else:
        (root / names[kind]).unlink()
    assert "no split 'val'" in refused(root, "val")


@pytest.mark.parametrize("kind", ["roboflow", "yolo"])
def test_a_path_may_be_that_of_a_split(tmp_path, kind):
    root = WRITERS[kind](tmp_path)
    for split in ("train", "val"):
        assert boxes(open_source(root / "valid", split)) == expected("val")


# -- COCO and Roboflow --------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "images", "data", "train2017", "images/train2017"])
def test_images_of_a_single_coco_file_are_found(tmp_path, place):
    for name in BOXES["train"]:
        write_image(tmp_path / place / name)
    (tmp_path / "instances_train2017.json").write_text(json.dumps(coco("train")))
    source = open_source(tmp_path / "instances_train2017.json")
    assert boxes(source) == expected("train")
    assert source.image_root.rstrip("/") == str(tmp_path / place).rstrip("/")
    # Also as the folder, and beside JSON files of others.
    (tmp_path / "package.json").write_text('{"name": "mine"}')
    assert boxes(open_source(tmp_path)) == expected("train")


def test_images_in_two_places_are_not_guessed_between(tmp_path):
    root = write_coco(tmp_path)
    write_image(root / "images/train/a.jpg")
    message = refused(root / "annotations/train.json")
    assert f"'{root}/images' and '{root}/images/train'" in message
    assert "train.json:FOLDER'" in message


def test_images_in_no_place(tmp_path):
    shutil.rmtree(write_coco(tmp_path) / "images")
    message = refused(tmp_path / "annotations/train.json")
    assert "None of the 4 images, such as 'a.jpg'" in message and str(tmp_path) in message


def test_of_cocos_own_files_the_instances_are_meant(tmp_path):
    root = write_coco(tmp_path)
    for split in ("train", "val"):
        own = root / f"annotations/{split}.json"
        (root / f"annotations/captions_{split}2017.json").write_text(own.read_text())
        own.rename(root / f"annotations/instances_{split}2017.json")
    assert boxes(open_source(root, "val")) == expected("val")


def test_two_files_for_one_split_are_not_guessed_between(tmp_path):
    root = write_coco(tmp_path)
    shutil.copy(root / "annotations/val.json", root / "annotations/val_new.json")
    message = refused(root, "val")
    assert "annotations/val.json and annotations/val_new.json" in message


def test_roboflows_category_above_the_others_is_left_out_and_said(tmp_path):
    source = open_source(write_roboflow(tmp_path))
    assert [x["name"] for x in source.data["categories"]] == CLASSES
    assert "category 0 ('animals') is left out" in source.notes[0]


def test_roboflows_category_0_stays_where_it_is_used(tmp_path):
    file = write_roboflow(tmp_path) / "train/_annotations.coco.json"
    data = json.loads(file.read_text())
    data["annotations"][0]["category_id"] = 0
    file.write_text(json.dumps(data))
    source = open_source(tmp_path)
    assert [x["name"] for x in source.data["categories"]] == ["animals", *CLASSES]
    assert not any("category 0" in note for note in source.notes)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"images": [], "annotations": {}}', "[" * 9999])
def test_what_is_not_coco_is_named(tmp_path, text):
    (tmp_path / "own.json").write_text(text)
    assert "own.json' is not" in refused(f"{tmp_path}/own.json:{tmp_path}")


# -- Pascal VOC ---------------------------------------------------------------------------------


def voc_box(tmp_path, *corners: object) -> list[float]:
    """The box of a single object with these corners."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    inner = "".join(f"<{side}>{value}</{side}>" for side, value in zip(sides, corners))
    text = xml("a.jpg", []).replace(
        "</annotation>", f"<object><name>cat</name><bndbox>{inner}</bndbox></object></annotation>"
    )
    (tmp_path / "a.xml").write_text(text)
    write_image(tmp_path / "a.jpg")
    source = open_source(tmp_path)
    assert source.findings == []
    return source.data["annotations"][0]["bbox"]


@pytest.mark.parametrize(
    ("corners", "box"),
    [
        # Pixels 1 to 128 are the whole width.
        ((1, 1, 128, 96), [0, 0, 128, 96]),
        # One pixel, the first.
        ((1, 1, 1, 1), [0, 0, 1, 1]),
        (("48.0", 240, 195, 371), [47, 239, 148, 132]),
        # No pixel has the number 0: the program counts from 0, and nothing lies outside.
        ((0, 5, 10, 20), [0, 4, 10, 16]),
        # No pixel has a fraction: coordinates.
        ((10.5, 20, 30, 40), [10.5, 20, 19.5, 20]),
        # What is outside stays so, and is found by the checks.
        ((-3, 1, 10, 10), [-3, 0, 13, 10]),
    ],
)
def test_corners_of_voc(tmp_path, corners, box):
    assert voc_box(tmp_path, *corners) == box


def test_difficult_objects_are_ordinary_and_counted(tmp_path):
    root = write_voc(tmp_path)
    file = root / "Annotations/a.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1", 1))
    source = open_source(root)
    assert boxes(source) == expected("train")
    assert source.notes == ["1 objects marked as difficult are objects as all others."]


def test_boxes_that_begin_at_0_are_counted(tmp_path):
    voc_box(tmp_path, 0, 5, 10, 20)
    assert "1 boxes begin at 0" in open_source(tmp_path).notes[0]


def test_images_without_an_xml_file_are_left_out_and_counted(tmp_path):
    root = write_voc(tmp_path)
    shutil.rmtree(root / "ImageSets")
    write_image(root / "JPEGImages/unlabelled.jpg")
    source = open_source(root)
    assert boxes(source) == {**expected("train"), **expected("val")}
    assert "1 images without an XML file are left out" in source.notes[0]


def test_listed_files_that_are_missing_are_found(tmp_path):
    root = write_voc(tmp_path)
    (root / "Annotations/b.xml").unlink()
    source = open_source(root)
    assert kinds(source) == [("listed file is missing", "error")]
    assert source.findings[0].value == "b.xml"


def test_a_file_name_that_is_not_there_gives_way_to_the_xml_files_own(tmp_path):
    root = write_voc(tmp_path)
    for name in ("old.jpg", "a", "C:\\photos\\old.jpg", ""):
        (root / "Annotations/a.xml").write_text(xml(name, BOXES["train"]["a.jpg"]))
        source = open_source(root)
        assert boxes(source) == expected("train")
        is_wrong = name not in ("", "a")
        assert kinds(source) == [("filename mismatch", "warning")] * is_wrong


def test_a_file_name_of_another_image_is_an_error(tmp_path):
    root = write_voc(tmp_path)
    (root / "Annotations/a.xml").write_text(xml("b.jpg", BOXES["train"]["a.jpg"]))
    assert ("filename mismatch", "error") in kinds(open_source(root))
    assert ("image with two annotation files", "error") in kinds(open_source(root))


def test_two_images_of_one_name_are_told_apart_by_the_file_name(tmp_path):
    root = write_voc(tmp_path)
    write_image(root / "JPEGImages/a.png")
    assert boxes(open_source(root)) == expected("train")
    (root / "Annotations/a.xml").write_text(xml("a", []))
    assert kinds(open_source(root)) == [("filename mismatch", "error")]


def test_a_size_that_is_missing_is_read_from_the_image(tmp_path):
    root = write_voc(tmp_path)
    for size in (None, (0, 0)):
        (root / "Annotations/a.xml").write_text(xml("a.jpg", [], size=size))
        image = open_source(root).data["images"][0]
        assert (image["width"], image["height"]) == (WIDTH, HEIGHT)


OBJECTS = {
    "no name": "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>",
    "no box": "<name>cat</name>",
    "turned box": "<name>cat</name><robndbox><cx>5</cx></robndbox>",
    "no number": "<name>cat</name><bndbox><xmin>left</xmin><ymin>1</ymin><xmax>2</xmax>"
    "<ymax>2</ymax></bndbox>",
    "a corner is missing": "<name>cat</name><bndbox><xmin>1</xmin></bndbox>",
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_that_cannot_be_read_are_found(tmp_path, kind):
    root = write_voc(tmp_path)
    text = xml("a.jpg", []).replace(
        "</annotation>", f"<object>{OBJECTS[kind]}</object></annotation>"
    )
    (root / "Annotations/a.xml").write_text(text)
    source = open_source(root)
    assert kinds(source) == [("unreadable object", "error")]
    assert source.findings[0].file == f"{root}/Annotations/a.xml, object 1"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "windows-1252"])
def test_encodings(tmp_path, encoding):
    write_image(tmp_path / "a.jpg")
    text = xml("a.jpg", [("bär", 1, 2, 3, 4)])
    declared = encoding.removesuffix("-sig")
    (tmp_path / "a.xml").write_text(
        f'<?xml version="1.0" encoding="{declared}"?>\n{text}', encoding=encoding
    )
    assert boxes(open_source(tmp_path)) == {"a.jpg": [("bär", 1, 2, 3, 4)]}


def test_xml_beside_images_in_folders_of_splits(tmp_path):
    for split, folder in (("train", "train"), ("val", "valid")):
        for name, objects in BOXES[split].items():
            write_image(tmp_path / folder / name)
            (tmp_path / folder / f"{name[0]}.xml").write_text(xml(name, objects))
    for split in ("train", "val"):
        assert boxes(open_source(tmp_path, split)) == expected(split)


# -- YOLO ---------------------------------------------------------------------------------------

LAYOUTS = {
    "path of the yaml": ("path: .\ntrain: train/images\nval: valid/images\n", ""),
    "a path of another machine": ("path: /content/x\ntrain: train/images\nval: valid/images\n", ""),
    "the folder of images and labels": ("train: train\nval: valid\n", ""),
    "backslashes": ("path: C:\\Users\\me\ntrain: train\\images\nval: .\\valid\\images\n", ""),
    "lists": ("train: [train/images]\nval: [valid/images]\n", ""),
    "a folder up": ("path: ..\ntrain: {name}/train/images\nval: {name}/valid/images\n", ""),
}


@pytest.mark.parametrize("names", ["list", "mapping"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_yaml_files(tmp_path, layout, names):
    root = write_yolo(tmp_path / "own")
    text = LAYOUTS[layout][0].format(name="own")
    shown = CLASSES if names == "list" else dict(enumerate(CLASSES))
    (root / "data.yaml").write_text(f"{text}names: {shown}\n")
    for path in (root, root / "data.yaml"):
        for split in ("train", "val"):
            assert boxes(open_source(path, split)) == expected(split)


def flat_yolo(root, *, nested: bool) -> None:
    """images/ and labels/ with or without folders of splits."""
    for split, images in BOXES.items():
        for name, objects in images.items():
            inner = split if nested else ""
            write_image(root / "images" / inner / name)
            label = root / "labels" / inner / f"{name[0]}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(lines(objects))


@pytest.mark.parametrize("place", ["classes.txt", "labels/classes.txt", "obj.names"])
@pytest.mark.parametrize("nested", [False, True])
def test_images_and_labels_without_a_yaml_file(tmp_path, nested, place):
    flat_yolo(tmp_path, nested=nested)
    (tmp_path / place).write_text("\n".join(CLASSES) + "\n\n")
    for split in ("train", "val"):
        everything = {**expected("train"), **expected("val")}
        assert boxes(open_source(tmp_path, split)) == (expected(split) if nested else everything)
    if nested:
        assert boxes(open_source(tmp_path / "images/val")) == expected("val")


def test_texts_beside_their_images(tmp_path):
    for name, objects in BOXES["train"].items():
        write_image(tmp_path / name)
        (tmp_path / f"{name[0]}.txt").write_text(lines(objects))
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    assert boxes(open_source(tmp_path)) == expected("train")


def test_images_in_several_folders_of_one_split(tmp_path):
    root = write_yolo(tmp_path)
    (root / "data.yaml").write_text(f"train: [train/images, valid/images]\nnames: {CLASSES}\n")
    found = boxes(open_source(root))
    assert found.keys() == {
        *(f"train/images/{name}" for name in BOXES["train"]),
        *(f"valid/images/{name}" for name in BOXES["val"]),
    }
    assert found["valid/images/e.jpg"] == expected("val")["e.jpg"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("train: train/images\n", "not recognised"),
        ("train: nowhere\nnames: [a]\n", "'train: nowhere' leads to no folder. Looked for: "),
        (
            "train: Train/images\nnames: [a]\n",
            "is: data.yaml, gone.txt, images, train, valid",
        ),
        ("train: train/images\nnames: {0: a, 2: b}\n", "must be 0, 1, 2"),
        ("train: train/images\nnames: {a: b}\n", "must be 0, 1, 2"),
        ("train: train/images\nnames: a\n", "'names' must be a list"),
        ("train: train/images\nnames: [[a]]\n", "'names' must be a list"),
        ("train: train/images\nnc: 2\nnames: [a]\n", "'nc' says 2 classes, but 'names' has 1"),
        ("train: {a: b}\nnames: [a]\n", "'train' must be a folder"),
        ("train: gone.txt\nnames: [a]\n", "lists no image that is there"),
        ("kpt_shape: [4]\ntrain: train/images\nnames: [a]\n", "must be [number of keypoints"),
        ("kpt_shape: [4, 5]\ntrain: train/images\nnames: [a]\n", "is not [keypoints, 2 or 3]"),
        ("label_format: obb\ntrain: train/images\nnames: [a]\n", "'label_format' is 'obb'"),
        ("path: valid\ntrain: images\nnames: [a]\n", "may be"),
        ("names: [a\n", "data.yaml' is not YAML"),
        ("- a\n", "data.yaml' must be a mapping"),
    ],
)
def test_wrong_yaml_files_are_named(tmp_path, settings, words):
    root = write_yolo(tmp_path)
    write_image(root / "images/x.jpg")
    (root / "gone.txt").write_text("train/images/gone.jpg\n")
    (root / "data.yaml").write_text(settings)
    if words == "not recognised":
        shutil.rmtree(root / "train")
        shutil.rmtree(root / "valid")
    assert words in refused(root)


def test_names_of_classes_stay_as_they_are_written(tmp_path):
    """YAML takes some words for other things."""
    root = write_yolo(tmp_path)
    (root / "data.yaml").write_text("train: train/images\nnames: [yes, 007, null]\n")
    names = [x["name"] for x in open_source(root).data["categories"]]
    assert names == ["yes", "007", "null"]


def test_classes_without_names(tmp_path):
    flat_yolo(tmp_path, nested=False)
    message = refused(tmp_path)
    assert "have no names" in message and "classes.txt" in message
    (tmp_path / "classes.txt").write_text("a\n\nb\n")
    assert "in every line" in refused(tmp_path)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "labels/classes.txt").write_text("b\na\n")
    assert "different names" in refused(tmp_path)


def test_polygons_are_their_bounding_boxes(tmp_path):
    root = write_yolo(tmp_path)
    (root / "train/labels/a.txt").write_text("1 0.25 0.5 0.75 0.25 0.5 1.0\n")
    source = open_source(root)
    assert boxes(source)["a.jpg"] == [("cat", 32, 24, 64, 72)]
    assert source.notes == ["1 polygons are taken as their bounding boxes."]


@pytest.mark.parametrize(
    "line",
    [
        "1 0.5 0.5 0.5",
        "1 0.5 0.5 0.5 0.5 1.9",
        "1 0.5 0.5 0.5 0.5 0.9 0.1 0.2",
        "1 0.5 0.5 60 50",
        "cat 0.5 0.5 0.5 0.5",
        "1.5 0.5 0.5 0.5 0.5",
        "nan 0.5 0.5 0.5 0.5",
        "inf 0.5 0.5 0.5 0.5",
        "1 64 48 20 30",
        "1,0.5,0.5,0.5,0.5",
        "\0",
    ],
)
def test_lines_that_cannot_be_read_are_found(tmp_path, line):
    root = write_yolo(tmp_path)
    good = lines(BOXES["train"]["a.jpg"])
    (root / "train/labels/a.txt").write_text(f"{good}\n{line}\n")
    source = open_source(root)
    assert kinds(source) == [("unreadable object", "error")]
    assert source.findings[0].file == f"{root}/train/labels/a.txt:4"
    assert boxes(source) == expected("train")


def test_values_that_the_checks_judge_stay(tmp_path):
    root = write_yolo(tmp_path)
    (root / "train/labels/a.txt").write_text("7 0.5 0.5 0 0.5\n1 0.5 0.5 -0.5 0.5\n")
    first, second = open_source(root).data["annotations"][:2]
    assert (first["category_id"], first["bbox"]) == (7, [64, 24, 0, 48])
    assert second["bbox"][2] < 0


def test_a_turned_image_has_the_size_that_training_sees(tmp_path):
    root = write_yolo(tmp_path)
    exif = Image.Exif()
    exif[274] = 6
    write_image(root / "train/images/a.jpg", (HEIGHT, WIDTH), exif=exif.tobytes())
    assert boxes(open_source(root)) == expected("train")


def test_images_that_cannot_be_read_are_found_labelled_or_not(tmp_path):
    root = write_yolo(tmp_path)
    for name in ("a.jpg", "c.png"):
        (root / "train/images" / name).write_bytes(b"no image")
    source = open_source(root)
    assert kinds(source) == [("unreadable image", "error")] * 2
    assert boxes(source).keys() == {"b.jpg", "d.jpg"}


def test_labels_without_an_image_are_found(tmp_path):
    root = write_yolo(tmp_path)
    (root / "train/images/a.jpg").unlink()
    source = open_source(root)
    assert kinds(source) == [("labels of a missing image", "error")]
    assert source.findings[0].file == str(root / "train/labels/a.txt")


def test_images_none_of_which_has_labels_are_no_data_set(tmp_path):
    root = write_yolo(tmp_path)
    shutil.rmtree(root / "train/labels")
    message = refused(root)
    assert "None of the 4 images" in message and "has a text file of labels" in message
