"""Own data in one form: the same ids in both files, registered, with their number of classes."""

import copy
import json
import re

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from formats import BOXES, CLASSES, WRITERS, coco, write_coco, write_image, write_voc, write_yolo

from fsaf_d2 import load_config
from fsaf_d2.data.checking.checks import AnnotationFileError, check_annotations
from fsaf_d2.data.checking.own_writing import write_evaluation_data, write_own_data
from fsaf_d2.data.reading.canonical import canonical_coco, match_categories
from fsaf_d2.data.reading.formats.source import Source
from fsaf_d2.data.reading.own import FILES, derive_num_classes, register_own_data, set_own_data


@pytest.fixture(autouse=True)
def forget():
    yield
    for name in FILES:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def config(output, *overrides: str):
    fsaf = ["MODEL.META_ARCHITECTURE", "FSAF"]
    return load_config("", [*fsaf, "OUTPUT_DIR", str(output), *overrides])


def use(cfg, train: object, val: object = None, **options: object) -> list[str]:
    lines = write_own_data(cfg, str(train), val and str(val), **options)
    return lines + set_own_data(cfg, "own_train", "own_val" if val else None)


def written(cfg, name: str) -> dict:
    with open(f"{cfg.OUTPUT_DIR}/data/{name}.json", encoding="utf-8") as file:
        return json.load(file)


def registered(name: str) -> dict[str, list[str]]:
    """Names of the classes of every image's objects, as training sees them."""
    names = MetadataCatalog.get(name).thing_classes
    return {
        record["file_name"].rpartition("/")[2]: [
            names[annotation["category_id"]] for annotation in record["annotations"]
        ]
        for record in DatasetCatalog.get(name)
    }


def labels(split: str) -> dict[str, list[str]]:
    return {name: [label for label, *_ in objects] for name, objects in BOXES[split].items()}


@pytest.mark.parametrize("kind", WRITERS)
def test_all_formats_end_alike(tmp_path, kind):
    cfg = config(tmp_path / "not/yet/there")
    root = WRITERS[kind](tmp_path / "own")
    lines = use(cfg, root, root)
    assert registered("own_train") == labels("train")
    assert registered("own_val") == labels("val")
    assert cfg.DATASETS.TRAIN == ("own_train",) and cfg.DATASETS.TEST == ("own_val",)
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 3
    train, val = written(cfg, "train"), written(cfg, "val")
    assert train["categories"] == val["categories"]
    assert sorted(x["name"] for x in train["categories"]) == sorted(CLASSES)
    for data, name in ((train, "train"), (val, "val")):
        check_annotations(f"{cfg.OUTPUT_DIR}/data/{name}.json", data["info"]["image_root"])
        assert all(set(x) >= {"area", "iscrowd"} and x["id"] > 0 for x in data["annotations"])
    assert lines[0].startswith(f"Training data '{root}' ({kind}): 4 images, 4 boxes, 3 classes (")
    assert "MODEL.RETINANET.NUM_CLASSES: 80 -> 3, as in data set 'own_train'." in lines


def test_evaluation_knows_the_ids_and_the_order_of_the_file(tmp_path):
    root = write_yolo(tmp_path / "own")
    use(config(tmp_path), root, root)
    metadata = MetadataCatalog.get("own_val")
    assert metadata.thing_dataset_id_to_contiguous_id == {0: 0, 1: 1, 2: 2}
    assert metadata.thing_classes == CLASSES and metadata.evaluator_type == "coco"


def shuffled(split: str, ids: dict[str, int], names: dict[str, str] | None = None) -> dict:
    """The COCO file with other category ids, without classes that have no id."""
    data = coco(split)
    old = {x["id"]: x["name"] for x in data["categories"]}
    data["categories"] = [
        {"id": key, "name": (names or {}).get(name, name)} for name, key in ids.items()
    ]
    data["annotations"] = [x for x in data["annotations"] if old[x["category_id"]] in ids]
    for annotation in data["annotations"]:
        annotation["category_id"] = ids[old[annotation["category_id"]]]
    return data


@pytest.mark.parametrize(
    "ids", [{"white dog": 1, "cat": 2, "zebra": 3}, {"cat": 90, "zebra": 7}, {"zebra": 0, "cat": 1}]
)
def test_validation_is_matched_by_name_not_by_id(tmp_path, ids):
    root = write_coco(tmp_path / "own")
    (root / "annotations/val.json").write_text(json.dumps(shuffled("val", ids)))
    cfg = config(tmp_path)
    use(cfg, root, root)
    assert registered("own_val") == labels("val")
    assert MetadataCatalog.get("own_val").thing_classes == CLASSES


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"cat": "Cat"}, ["a class", "'Cat' (did you mean 'cat'?)"]),
        ({"cat": " cat"}, ["' cat' (did you mean 'cat'?)"]),
        ({"white dog": "white_dog"}, ["'white_dog' (did you mean 'white dog'?)"]),
        ({"zebra": "zerba"}, ["'zerba' (did you mean 'zebra'?)"]),
        ({"zebra": "horse"}, ["'horse'.", "have 'zebra', 'cat', 'white dog'"]),
    ],
)
def test_classes_that_training_lacks_are_named(tmp_path, names, words):
    root = write_coco(tmp_path / "own")
    ids = {name: i for i, name in enumerate(CLASSES, 1)}
    (root / "annotations/val.json").write_text(json.dumps(shuffled("val", ids, names)))
    with pytest.raises(ValueError) as error:
        use(config(tmp_path), root, root)
    for word in [*words, str(root)]:
        assert word in str(error.value)
    assert not (tmp_path / "data").exists()


def test_a_name_that_stands_twice():
    train = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    assert match_categories(train, [{"id": 9, "name": "b"}], "val") == {9: 2}
    with pytest.raises(ValueError, match="Two categories of 'val' have the name 'b'"):
        match_categories(train, [{"id": 1, "name": "b"}, {"id": 2, "name": "b"}], "val")
    train[1]["name"] = "a"
    with pytest.raises(ValueError, match="of the training data have the name 'a'"):
        match_categories(train, train, "train")
    # Letters are different classes.
    train[1]["name"] = "A"
    assert match_categories(train, train, "train") == {1: 1, 2: 2}


# -- number of classes --------------------------------------------------------------------------


def test_a_number_on_the_command_line_must_be_the_datas(tmp_path):
    root = write_coco(tmp_path / "own")
    for number in (2, 80):
        cfg = config(tmp_path, "MODEL.RETINANET.NUM_CLASSES", str(number))
        with pytest.raises(
            ValueError,
            match=rf"NUM_CLASSES is {number}, given by the command line, but .*own' has 3 classes "
            r"\(zebra, cat, white dog\): leave it out, or set it to 3",
        ):
            use(cfg, root)
    use(config(tmp_path, "MODEL.RETINANET.NUM_CLASSES", "3"), root)


@pytest.mark.parametrize("in_base", [False, True])
def test_a_number_in_a_file_must_be_the_datas(tmp_path, in_base):
    base = "MODEL:\n  RETINANET:\n    NUM_CLASSES: 80\n  META_ARCHITECTURE: FSAF\n"
    (tmp_path / "base.yaml").write_text(base)
    (tmp_path / "leaf.yaml").write_text("_BASE_: base.yaml\nSEED: 1\n")
    file = tmp_path / ("leaf.yaml" if in_base else "base.yaml")
    cfg = load_config(file, ["OUTPUT_DIR", str(tmp_path)])
    with pytest.raises(ValueError, match=r"NUM_CLASSES is 80, given by '.*base\.yaml', .* 3 class"):
        use(cfg, write_coco(tmp_path / "own"))


def test_a_number_in_python_must_be_the_datas(tmp_path):
    cfg = config(tmp_path)
    cfg.MODEL.RETINANET.NUM_CLASSES = 5
    with pytest.raises(ValueError, match=r"NUM_CLASSES is 5, given by Python code, .* 3 classes"):
        use(cfg, write_coco(tmp_path / "own"))


def test_other_data_later_have_their_own_number(tmp_path):
    cfg = config(tmp_path)
    use(cfg, write_coco(tmp_path / "own"))
    data = shuffled("train", {"zebra": 1})
    write_image(tmp_path / "other/b.jpg")
    (tmp_path / "other/train.json").write_text(json.dumps(data))
    use(cfg, tmp_path / "other")
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 1
    assert MetadataCatalog.get("own_train").thing_classes == ["zebra"]


def test_the_number_is_derived_for_registered_data_too(tmp_path):
    root = write_coco(tmp_path / "own")
    use(config(tmp_path), root)
    cfg = config(tmp_path)
    assert derive_num_classes(cfg, ["own_train"]) == [
        "MODEL.RETINANET.NUM_CLASSES: 80 -> 3, as in data set 'own_train'."
    ]
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 3
    assert derive_num_classes(cfg, ["own_train"]) == derive_num_classes(cfg, []) == []


# -- registration -------------------------------------------------------------------------------


def test_registering_twice_is_harmless_also_with_other_paths(tmp_path):
    root = write_coco(tmp_path / "own")
    for folder in ("one", "one", "two"):
        cfg = config(tmp_path / folder)
        use(cfg, root, root)
        register_own_data(cfg)
        assert registered("own_train") == labels("train")
        assert MetadataCatalog.get("own_train").json_file == f"{cfg.OUTPUT_DIR}/data/train.json"


def test_a_process_that_knows_of_nothing_registers_by_the_config(tmp_path):
    root = write_coco(tmp_path / "own")
    cfg = config(tmp_path)
    use(cfg, root, root)
    for name in ("own_train", "own_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    cfg.freeze()
    register_own_data(cfg)
    assert registered("own_val") == labels("val")


def test_without_validation_nothing_is_evaluated_and_that_is_said(tmp_path):
    root = write_coco(tmp_path / "own")
    use(config(tmp_path), root, root)
    cfg = config(tmp_path)
    lines = use(cfg, root)
    assert cfg.DATASETS.TEST == ()
    assert any("without evaluation" in line for line in lines)
    # That of the earlier run is not this one's.
    assert not (tmp_path / "data/val.json").exists()


def test_a_file_that_another_machine_has_written_elsewhere(tmp_path):
    with pytest.raises(FileNotFoundError, match="OUTPUT_DIR must be a folder that all machines"):
        set_own_data(config(tmp_path), "own_train", None)


# -- evaluation alone ---------------------------------------------------------------------------


def test_evaluation_alone_takes_the_classes_of_the_model(tmp_path):
    root = write_coco(tmp_path / "own")
    classes = [{"id": i, "name": name} for i, name in enumerate(["x", *reversed(CLASSES)])]
    cfg = config(tmp_path)
    write_evaluation_data(cfg, str(root), classes)
    set_own_data(cfg, None, "own_eval")
    assert MetadataCatalog.get("own_eval").thing_classes == ["x", *reversed(CLASSES)]
    assert registered("own_eval") == labels("val")
    assert cfg.DATASETS.TRAIN == () and cfg.DATASETS.TEST == ("own_eval",)


def test_evaluation_alone_without_known_classes_says_so(tmp_path):
    root = write_coco(tmp_path / "own")
    lines = write_evaluation_data(config(tmp_path), str(root))
    assert "do not say their classes" in lines[-1]


# -- going on -----------------------------------------------------------------------------------


def test_a_run_that_goes_on_keeps_its_classes(tmp_path):
    root = write_coco(tmp_path / "own")
    use(config(tmp_path), root)
    before = (tmp_path / "data/train.json").read_bytes()
    assert not any("Unlike" in line for line in use(config(tmp_path), root, resume=True))
    assert (tmp_path / "data/train.json").read_bytes() == before

    data = coco("train")
    del data["annotations"][0]
    (root / "annotations/train.json").write_text(json.dumps(data))
    lines = use(config(tmp_path), root, resume=True)
    assert "Unlike the saved run: the training data (4 -> 3 annotations)." in lines

    data["categories"][0]["name"] = "horse"
    (root / "annotations/train.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="zebra, cat, white dog before, horse, cat, white dog now"):
        use(config(tmp_path), root, resume=True)


# -- what stands in the files -------------------------------------------------------------------


def canonical(annotation: dict) -> dict:
    data = {**coco("train"), "annotations": [{**coco("train")["annotations"][0], **annotation}]}
    source = Source("own", "coco", "own.json", "images", copy.deepcopy(data))
    return canonical_coco(source, data["categories"], {})["annotations"][0]


def test_what_is_missing_is_filled_in():
    bare = {"area": None, "iscrowd": None, "bbox": [1, 2, 3, 4]}
    assert canonical(bare) == {
        **{"id": 1, "image_id": 1, "category_id": 2},
        **{"bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
    }
    # That of a mask is less than that of its box, and stays.
    assert canonical({"area": 7.5, "iscrowd": True}) | {"area": 7.5, "iscrowd": 1} == canonical(
        {"area": 7.5, "iscrowd": 1, "segmentation": [[1, 2]]}
    )


def test_no_annotation_has_the_id_0():
    """pycocotools takes the object of id 0 for one that was not found."""
    assert canonical({"id": 0})["id"] == 1
    assert canonical({"id": -5})["id"] == -5


@pytest.mark.parametrize(
    ("entry", "words"), [({"ignore": 1}, "'ignore'"), ({"iscrowd": 2}, "'iscrowd' 2, not 0 or 1")]
)
def test_what_has_no_meaning_here_is_named(entry, words):
    with pytest.raises(ValueError, match=rf"own\.json, annotation 1 has {words}"):
        canonical(entry)


def test_what_could_not_be_read_stops_the_run(tmp_path):
    root = write_yolo(tmp_path / "own")
    (root / "train/labels/a.txt").write_text("1 0.5 0.5\n")
    with pytest.raises(ValueError, match=r"has 1 error:.*\n.*a\.txt:1': unreadable object: 1 0\.5"):
        use(config(tmp_path), root)
    assert not (tmp_path / "data").exists()


def test_broken_coco_files_stop_the_run(tmp_path):
    root = write_coco(tmp_path / "own")
    file = root / "annotations/train.json"
    file.write_text(file.read_text().replace('"category_id": 1', '"category_id": 17'))
    with pytest.raises(AnnotationFileError, match="category_id 17"):
        use(config(tmp_path), root)


def test_all_kinds_of_errors_are_named_at_once(tmp_path):
    root = write_voc(tmp_path / "own")
    file = root / "Annotations/a.xml"
    text = file.read_text()
    xmax = re.search("<xmax>.*?</xmax>", text)[0]
    file.write_text(text.replace(xmax, "<xmax>-500</xmax>", 1))
    (root / "Annotations/b.xml").write_text("<annotation>")
    with pytest.raises(AnnotationFileError) as error:
        use(config(tmp_path), root)
    assert "has 2 errors: 1 x " in str(error.value) and "check_data.py" in str(error.value)
    assert "a.xml" in str(error.value) and "b.xml" in str(error.value)


def test_data_without_boxes_are_nothing_to_learn(tmp_path):
    root = write_coco(tmp_path / "own")
    data = {**coco("train"), "annotations": []}
    (root / "annotations/train.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="nothing to learn"):
        use(config(tmp_path), root)


def rcnn_config(output, *overrides: str):
    return load_config("", ["OUTPUT_DIR", str(output), *overrides])


def test_every_detector_has_the_number_in_its_own_key(tmp_path):
    """GeneralizedRCNN is detectron2's default."""
    cfg = rcnn_config(tmp_path)
    lines = use(cfg, write_coco(tmp_path / "own"))
    assert "MODEL.ROI_HEADS.NUM_CLASSES: 80 -> 3, as in data set 'own_train'." in lines
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CLASSES) == (3, 80)
    with pytest.raises(ValueError, match=r"MODEL\.ROI_HEADS\.NUM_CLASSES is 80.*has 3 classes"):
        use(rcnn_config(tmp_path, "MODEL.ROI_HEADS.NUM_CLASSES", "80"), tmp_path / "own")


def test_a_detector_that_does_not_tell_its_key_is_refused(tmp_path):
    cfg = rcnn_config(tmp_path, "MODEL.META_ARCHITECTURE", "SemanticSegmentor")
    with pytest.raises(ValueError, match=r"'SemanticSegmentor' does not say which key"):
        use(cfg, write_coco(tmp_path / "own"))
