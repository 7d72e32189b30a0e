"""What CVAT, Label Studio and Roboflow export is read; of labelme and others it is said what to do.

Each sample is laid out as the tool does it, with the names that it writes.
"""

import json

import pytest
from formats import HEIGHT, WIDTH, lines, write_image, xml

from fsaf_d2.data.reading.sources import SourceError, open_source

CLASSES = ["cat", "dog"]
OBJECTS = {"0001": [("cat", 10, 20, 30, 40)], "0002": [("dog", 0, 0, 64, 48)]}


def read(path, split: str = "train") -> dict[str, list[tuple]]:
    """Class and box of each image, by the image's base name."""
    source = open_source(path, split)
    assert source.findings == []
    names = {x["id"]: x["name"] for x in source.data["categories"]}
    files = {x["id"]: x["file_name"].rpartition("/")[2] for x in source.data["images"]}
    found = {name: [] for name in files.values()}
    for x in source.data["annotations"]:
        box = tuple(round(value, 2) for value in x["bbox"])
        found[files[x["image_id"]]].append((names[x["category_id"]], *box))
    return found


def expected(pattern: str = "{}.jpg") -> dict[str, list[tuple]]:
    return {pattern.format(name): objects for name, objects in OBJECTS.items()}


def put(path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def coco_of(pattern: str, **more: object) -> dict:
    """COCO json whose images have names of a pattern."""
    images, annotations = [], []
    for index, (name, objects) in enumerate(OBJECTS.items(), 1):
        size = {"width": WIDTH, "height": HEIGHT}
        images.append({"id": index, "file_name": pattern.format(name), **size, **more})
        for label, *box in objects:
            entry = {"id": len(annotations) + 1, "image_id": index, "bbox": box, "iscrowd": 0}
            category = CLASSES.index(label) + 1
            annotations.append({**entry, "category_id": category, "area": box[2] * box[3]})
    categories = [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(CLASSES, 1)]
    return {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": {},
        "categories": categories,
        "images": images,
        "annotations": annotations,
    }


# -- CVAT ---------------------------------------------------------------------------------------


def cvat_yolo(root, prefix: str) -> None:
    """Ultralytics YOLO Detection 1.0: data.yaml names train.txt, whose paths begin with data/."""
    put(root / "data.yaml", "names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\n")
    for name, objects in OBJECTS.items():
        write_image(root / f"images/train/{name}.jpg")
        put(root / f"labels/train/{name}.txt", lines(objects, CLASSES))
    paths = [f"{prefix}images/train/{name}.jpg" for name in OBJECTS]
    put(root / "train.txt", "\n".join(paths) + "\n")


@pytest.mark.parametrize("prefix", ["data/", "", "./", "/home/me/set/", "D:\\set\\"])
def test_cvat_ultralytics(tmp_path, prefix):
    cvat_yolo(tmp_path, prefix)
    assert read(tmp_path) == read(tmp_path / "data.yaml") == expected()
    source = open_source(tmp_path)
    assert source.left_out == []
    is_there = prefix in ("", "./")
    assert [note.count("have folders before them") for note in source.notes] == [1] * (not is_there)


def share(x: float, y: float) -> str:
    return f"{x / WIDTH:.6f} {y / HEIGHT:.6f}"


def around(x: float, y: float, width: float, height: float) -> str:
    """The four points of a box."""
    right, bottom = x + width, y + height
    return " ".join(share(*point) for point in ((x, y), (right, y), (right, bottom), (x, bottom)))


TASKS = {
    "Detection": ("", lambda box, line: line),
    "Pose": ("kpt_shape: [2, 3]\n", lambda box, line: f"{line} {share(*box[:2])} 2 0 0 0"),
    "Pose of 2": ("kpt_shape: [1, 2]\n", lambda box, line: f"{line} {share(*box[:2])}"),
    "Oriented Bounding Boxes": ("", lambda box, line: f"{line[0]} {around(*box)}"),
    "Segmentation": ("", lambda box, line: f"{line[0]} {around(*box)} {share(*box[:2])}"),
    "Tracking": ("", lambda box, line: f"{line} 7"),
}


@pytest.mark.parametrize("task", TASKS)
def test_cvat_ultralytics_of_all_tasks(tmp_path, task):
    settings, write = TASKS[task]
    cvat_yolo(tmp_path, "data/")
    objects = {**OBJECTS, "0003": [("cat", 90, 70, 30, 20)]}
    put(tmp_path / "data.yaml", f"names: {CLASSES}\npath: .\ntrain: train.txt\n{settings}")
    put(tmp_path / "train.txt", "".join(f"data/images/train/{x}.jpg\n" for x in objects))
    for name, ((label, *box),) in objects.items():
        write_image(tmp_path / f"images/train/{name}.jpg")
        line = lines([(label, *box)], CLASSES).strip()
        put(tmp_path / f"labels/train/{name}.txt", f"{write(box, line)}\n")
    assert read(tmp_path) == {f"{name}.jpg": found for name, found in objects.items()}


def test_a_list_names_some_images_of_a_folder(tmp_path):
    cvat_yolo(tmp_path, "")
    write_image(tmp_path / "images/train/0003.jpg")
    put(tmp_path / "train.txt", "images/train/0001.jpg\nimages/train/0004.jpg\n")
    source = open_source(tmp_path)
    assert [x["file_name"] for x in source.data["images"]] == ["images/train/0001.jpg"]
    assert [(x.kind, x.value) for x in source.findings] == [
        ("listed image is missing", "images/train/0004.jpg")
    ]
    assert "2 images are left out" in source.notes[0] and "0002.txt" in source.notes[1]


def test_lists_do_not_lead_out(tmp_path):
    write_image(tmp_path / "private/0001.jpg")
    cvat_yolo(tmp_path / "own", "")
    put(tmp_path / "own/train.txt", f"../private/0001.jpg\n{tmp_path}/private/0001.jpg\n")
    with pytest.raises(SourceError, match="lists no image that is there"):
        open_source(tmp_path / "own")


def test_cvat_yolo_1_1(tmp_path):
    """Darknet's form: obj.data, obj.names, train.txt and obj_train_data/."""
    put(tmp_path / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    put(tmp_path / "obj.names", "cat\ndog\n")
    for name, objects in OBJECTS.items():
        write_image(tmp_path / f"obj_train_data/{name}.jpg")
        put(tmp_path / f"obj_train_data/{name}.txt", lines(objects, CLASSES))
    put(tmp_path / "train.txt", "".join(f"data/obj_train_data/{x}.jpg\n" for x in OBJECTS))
    assert read(tmp_path) == expected()


def test_cvat_coco(tmp_path):
    put(tmp_path / "annotations/instances_default.json", json.dumps(coco_of("{}.jpg", license=0)))
    for name in OBJECTS:
        write_image(tmp_path / f"images/default/{name}.jpg")
    file = tmp_path / "annotations/instances_default.json"
    assert read(f"{file}:{tmp_path}/images/default") == expected()


def test_cvat_voc(tmp_path):
    """Sub folders stay, and ImageSets/Main/default.txt lists all."""
    for name, objects in OBJECTS.items():
        write_image(tmp_path / f"JPEGImages/day 1/{name}.jpg")
        put(tmp_path / f"Annotations/day 1/{name}.xml", xml(f"day 1/{name}.jpg", objects))
    put(tmp_path / "ImageSets/Main/default.txt", "".join(f"day 1/{x}\n" for x in OBJECTS))
    put(tmp_path / "labelmap.txt", "# label:color_rgb:parts:actions\ncat:128,0,0::\n")
    assert read(tmp_path) == expected()


# -- Label Studio -------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["images/0a1b2c3d-{}.jpg", "images\\0a1b2c3d-{}.jpg"])
def test_label_studio_coco(tmp_path, pattern):
    """result.json beside images/; on Windows with backslashes, of which the file there is told."""
    put(tmp_path / "result.json", json.dumps(coco_of(pattern)))
    for name in OBJECTS:
        write_image(tmp_path / f"images/0a1b2c3d-{name}.jpg")
    found = open_source(tmp_path)
    names = [pattern.format(name) for name in OBJECTS]
    assert [x["file_name"] for x in found.data["images"]] == names
    if "\\" not in pattern:
        assert read(tmp_path) == expected("0a1b2c3d-{}.jpg")


def test_label_studio_yolo(tmp_path):
    put(tmp_path / "classes.txt", "cat\ndog")
    put(tmp_path / "notes.json", '{"categories": [], "info": {}}')
    for name, objects in OBJECTS.items():
        write_image(tmp_path / f"images/0a1b2c3d-{name}.jpg")
        put(tmp_path / f"labels/0a1b2c3d-{name}.txt", lines(objects, CLASSES))
    assert read(tmp_path) == expected("0a1b2c3d-{}.jpg")


def test_label_studio_voc(tmp_path):
    for name, objects in OBJECTS.items():
        write_image(tmp_path / f"images/0a1b2c3d-{name}.jpg")
        put(tmp_path / f"Annotations/0a1b2c3d-{name}.xml", xml(f"0a1b2c3d-{name}", objects))
    assert read(tmp_path) == expected("0a1b2c3d-{}.jpg")


# -- Roboflow -----------------------------------------------------------------------------------

RF = "{}_jpg.rf.0123456789abcdef.jpg"


def test_roboflow_coco(tmp_path):
    data = coco_of(RF, extra={"name": "x"})
    data["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
    for category in data["categories"][1:]:
        category["supercategory"] = "animals"
    put(tmp_path / "train/_annotations.coco.json", json.dumps(data))
    for name in OBJECTS:
        write_image(tmp_path / "train" / RF.format(name))
    put(tmp_path / "README.dataset.txt", "exported\n")
    assert read(tmp_path) == expected(RF)


def test_roboflow_voc(tmp_path):
    for name, objects in OBJECTS.items():
        write_image(tmp_path / "train" / RF.format(name))
        put(tmp_path / f"train/{RF.format(name)[:-4]}.xml", xml(RF.format(name), objects))
    assert read(tmp_path) == expected(RF)


@pytest.mark.parametrize("task", ["boxes", "keypoints"])
def test_roboflow_yolo(tmp_path, task):
    more = "" if task == "boxes" else " 0.2 0.4 2 0.2 0.4 0"
    shape = "" if task == "boxes" else "kpt_shape: [2, 3]\nflip_idx: [0, 1]\n"
    paths = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\n"
    put(tmp_path / "data.yaml", f"{paths}{shape}nc: 2\nnames: ['cat', 'dog']\n")
    for name, objects in OBJECTS.items():
        write_image(tmp_path / "train/images" / RF.format(name))
        text = lines(objects, CLASSES).replace("\n", f"{more}\n")
        put(tmp_path / f"train/labels/{RF.format(name)[:-4]}.txt", text)
    assert read(tmp_path) == expected(RF)


# -- what is not read ---------------------------------------------------------------------------

FOREIGN = {
    "labelme": ({"version": "5", "shapes": [], "imagePath": "a.jpg"}, "labelme2coco"),
    "via": ({"_via_settings": {}, "_via_img_metadata": {}}, "(VIA)"),
    "datumaro": ({"info": {}, "categories": {}, "items": [], "infos": {}}, "Datumaro"),
    "label studio": ([{"id": 1, "data": {}, "annotations": []}], "Label Studio"),
    "createml": ([{"image": "a.jpg", "annotations": []}], "CreateML"),
    "vott": ({"asset": {"name": "a.jpg"}, "regions": []}, "VoTT"),
    "supervisely": ({"description": "", "objects": [], "size": {}}, "Supervisely"),
    "results": ([{"image_id": 1, "category_id": 1, "score": 0.5}], "a detector's results"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("as_file", [False, True])
def test_other_formats_are_refused_with_what_to_do(tmp_path, kind, as_file):
    content, words = FOREIGN[kind]
    write_image(tmp_path / "a.jpg")
    put(tmp_path / "a.json", json.dumps(content))
    with pytest.raises(SourceError) as error:
        open_source(tmp_path / "a.json" if as_file else tmp_path)
    assert words in str(error.value) and "own format is not read" in str(error.value)


def test_labelme_in_a_folder_of_annotations(tmp_path):
    write_image(tmp_path / "images/a.jpg")
    for name in "ab":
        put(tmp_path / f"annotations/{name}.json", json.dumps(FOREIGN["labelme"][0]))
    with pytest.raises(SourceError, match="labelme2coco"):
        open_source(tmp_path)


@pytest.mark.parametrize("name", ["labels.csv", "train.tfrecord"])
def test_tables_and_records(tmp_path, name):
    write_image(tmp_path / "images/a.jpg")
    put(tmp_path / name, "filename,width,height,class,xmin,ymin,xmax,ymax\n")
    with pytest.raises(SourceError, match=r"Tables and records \('"):
        open_source(tmp_path)


def test_cvats_own_xml(tmp_path):
    write_image(tmp_path / "images/a.jpg")
    put(tmp_path / "annotations.xml", "<annotations><version>1.1</version></annotations>")
    (finding,) = open_source(tmp_path).findings
    assert "CVAT's own format: export as" in finding.value
