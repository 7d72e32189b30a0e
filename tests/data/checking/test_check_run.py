"""A run stops at errors in its data sets, and says what else was found."""

import json
import logging

import pytest
from broken_data import sound_data, write_images, write_source
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from models import tiny_cfg
from PIL import Image

from fsaf_d2.data.checking.check_run import require_sound_data
from fsaf_d2.data.checking.checks import AnnotationFileError
from fsaf_d2.data.checking.images import image_limits
from fsaf_d2.training import prepare

NAMES = ("checked_train", "checked_val", "coco_2017_checked", "own_val")


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    for name in NAMES:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def register(folder, name="checked_train", data=None, seed=0):
    """Write and register a data set, images in a folder of its own."""
    own = folder / name
    data = data or sound_data()
    write_images(own / "images", data, seed=seed)
    source = write_source(own, data)
    register_coco_instances(name, {}, source.annotation_file, source.image_root)
    return own


def with_flaw(**values):
    data = sound_data()
    data["annotations"][4].update(values)
    return data


def test_sound_data_pass_in_silence(folder, caplog):
    register(folder)
    val = sound_data()
    for annotation in val["annotations"][::3]:
        annotation["bbox"][0] += 5
    register(folder, "checked_val", val, seed=1)
    require_sound_data(["checked_train"], ["checked_val"], output_dir=folder / "out")
    assert not caplog.records
    for name in NAMES[:2]:
        content = json.loads((folder / f"out/data/check_{name}.json").read_text())
        assert content["findings"] == {} and content["statistics"]["images"] == 4


def test_one_message_says_all(folder):
    data = with_flaw(bbox=[1, 2, 0, 4])
    data["annotations"][7]["bbox"][3] = -1
    own = register(folder, data=data)
    (own / "images/p3.png").unlink()
    (own / "images/p2.png").unlink()
    with pytest.raises(AnnotationFileError) as error:
        require_sound_data(["checked_train"], [], output_dir=folder / "out")
    message = str(error.value)
    assert "'checked_train' has 4 errors: " in message
    for part in ("1 x zero-sized box", "1 x negative box size", "2 x missing image"):
        assert part in message
    assert "annotation 5 of image 2 has the bbox [1, 2, 0, 4]" in message
    assert "image 3, 'p2.png'" in message
    assert f"tools/check_data.py {own}/own.json:{own}/images" in message
    assert "by --fix OUT.json" in message
    assert not (folder / "out").exists()


def test_the_way_to_mend_is_named_where_there_is_one(folder):
    register(folder, data=with_flaw(category_id=77))
    with pytest.raises(AnnotationFileError, match="has 1 error: 1 x unknown category id") as error:
        require_sound_data(["checked_train"], [])
    assert "--fix" not in str(error.value)


def test_warnings_take_a_line_and_are_kept_for_the_report(folder, caplog):
    data = with_flaw(bbox=[-9, 3, 20, 10], area=200)
    del data["annotations"][0]["area"], data["annotations"][1]["area"]
    register(folder, data=data)
    with caplog.at_level(logging.WARNING):
        require_sound_data(["checked_train"], [], output_dir=folder / "out")
    (record,) = caplog.records
    assert record.name == "detectron2.fsaf_d2.data"
    message = record.getMessage()
    assert "1 x box partly outside" in message and "2 x missing area" in message
    found = json.loads((folder / "out/data/check_checked_train.json").read_text())["findings"]
    assert found["missing area"]["count"] == 2
    first = found["box partly outside"]["first"][0]
    assert first["annotation_id"] == 5 and first["file"] == "p1.png"


def test_leaks_between_training_and_validation(folder):
    own = register(folder)
    other = register(folder, "checked_val", seed=1)
    (other / "images/p3.png").write_bytes((own / "images/p0.png").read_bytes())
    with pytest.raises(AnnotationFileError, match=r"1 x leak[^$]*image 1, 'p0\.png'") as error:
        require_sound_data(["checked_train"], ["checked_val"])
    assert f"{own}/images --val {other}/own.json:{other}/images" in str(error.value)
    require_sound_data([], ["checked_val"])


def test_one_set_for_both_is_a_warning(folder, caplog):
    register(folder)
    require_sound_data(["checked_train"], ["checked_train"])
    assert "same data for validation" in caplog.text


def test_a_run_that_goes_on_does_not_look_at_images(folder):
    own = register(folder)
    require_sound_data(["checked_train"], [], output_dir=folder)
    (own / "images/p3.png").unlink()
    before = (folder / "data/check_checked_train.json").read_bytes()
    require_sound_data(["checked_train"], [], output_dir=folder, read_images=False)
    assert (folder / "data/check_checked_train.json").read_bytes() == before
    with pytest.raises(AnnotationFileError, match="missing image"):
        require_sound_data(["checked_train"], [], output_dir=folder)


def test_published_data_sets_are_as_they_are(folder):
    register(folder, "coco_2017_checked", with_flaw(bbox=[1, 2, 0, 4]))
    require_sound_data(["coco_2017_checked"], [], output_dir=folder / "out")
    assert not (folder / "out").exists()
    broken = json.dumps(with_flaw(bbox=[1, 2, 3]))
    (folder / "coco_2017_checked/own.json").write_text(broken)
    with pytest.raises(AnnotationFileError, match="annotation 5 of image 2"):
        require_sound_data(["coco_2017_checked"], [])


def test_other_formats_are_left_alone(folder):
    DatasetCatalog.register("checked_train", list)
    require_sound_data(["checked_train"], [], output_dir=folder / "out")
    assert not (folder / "out").exists()


def test_data_of_ones_own_are_named_as_they_were_given(folder):
    data = {**with_flaw(bbox=[1, 2, -3, 4]), "info": {"source": "my data"}}
    own = register(folder, "own_val", data)
    with pytest.raises(AnnotationFileError, match=r"check_data\.py 'my data' --split val"):
        require_sound_data([], ["own_val"])
    with pytest.raises(AnnotationFileError, match=rf"'{own}/own\.json': annotation 5"):
        require_sound_data(["own_val"], [])


def test_preparing_a_run_checks_its_data(folder):
    own = register(folder)
    overrides = ("DATASETS.TRAIN", "('checked_train',)", "DATASETS.TEST", "()")
    cfg = tiny_cfg(*overrides, "OUTPUT_DIR", str(folder / "out"))
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    prepare(cfg, eval_only=False)
    assert (folder / "out/data/check_checked_train.json").is_file()
    (own / "images/p3.png").unlink()
    prepare(cfg, eval_only=False, resume=True)
    prepare(cfg, eval_only=True)
    with pytest.raises(ValueError, match="1 x missing image"):
        prepare(cfg, eval_only=False)
    cfg.INPUT.MAX_PIXELS = 100
    with pytest.raises(ValueError, match="3 x huge image"):
        prepare(cfg, eval_only=False)


@pytest.mark.parametrize("part", ["TRAIN", "TEST"])
def test_images_of_which_the_configs_sizes_leave_nothing(folder, part):
    own = folder / "checked_train"
    register(folder)
    Image.new("RGB", (300, 1)).save(own / "images/p1.png")
    data = sound_data()
    data["images"][1].update(width=300, height=1)
    data["annotations"] = [x for x in data["annotations"] if x["image_id"] != 2]
    write_source(own, data)
    cfg = tiny_cfg("OUTPUT_DIR", str(folder / "out"), f"DATASETS.{part}", "('checked_train',)")
    cfg.defrost()
    cfg.INPUT[f"MAX_SIZE_{part}"] = 100
    with pytest.raises(AnnotationFileError, match=r"1 x image too thin(.|\n)*'p1\.png': 300 x 1"):
        require_sound_data(["checked_train"], [], **image_limits(cfg))
