"""A few boxes without area are left out by name; more, or other errors too, refuse a run."""

import json

import pytest
from broken_data import sound_data, write_images, write_source
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from fsaf_d2 import load_config
from fsaf_d2.data.checking.check_run import require_sound_data
from fsaf_d2.data.checking.checks import AnnotationFileError
from fsaf_d2.data.checking.own_writing import write_evaluation_data, write_own_data
from fsaf_d2.evaluation import BoxEvaluator


def empty(data, *places, size=(0, 7)):
    for place in places:
        data["annotations"][place]["bbox"][2:] = size
    return data


@pytest.fixture
def config(tmp_path):
    fsaf = ["MODEL.META_ARCHITECTURE", "FSAF", "OUTPUT_DIR", str(tmp_path / "out")]
    return lambda *more: load_config("", [*fsaf, *more])


def own(folder, data):
    (folder / "images").mkdir(exist_ok=True)
    return f"{write_source(folder, data).annotation_file}:{folder}/images"


@pytest.mark.parametrize("size", [(0, 7), (7, 0), (0, 0), (7, 0.001)])
def test_own_data_are_written_without_them(tmp_path, config, size):
    data = empty(sound_data(20), 1, 30, 31, 32, size=size)
    path = own(tmp_path, data)
    before = (tmp_path / "own.json").read_bytes()
    lines = write_own_data(config(), path, path)
    said = [line for line in lines if "Left out" in line]
    assert len(said) == 2 and said[0] == said[1]
    assert "4 of 60 boxes" in said[0] and "annotation 2 (p0.png)" in said[0]
    assert "and 1 more, and 1 images without any other: 'p10.png'" in said[0]
    assert "20 images, 60 boxes" not in lines[0] and "19 images, 56 boxes" in lines[0]
    for name in ("train", "val"):
        written = json.loads((tmp_path / f"out/data/{name}.json").read_text())
        assert {x["id"] for x in written["annotations"]} == set(range(1, 61)) - {2, 31, 32, 33}
        assert 11 not in {x["id"] for x in written["images"]} and len(written["images"]) == 19
    assert (tmp_path / "own.json").read_bytes() == before
    write_evaluation_data(config(), path)
    assert len(json.loads((tmp_path / "out/data/eval.json").read_text())["annotations"]) == 56


def test_all_is_refused_that_is_not_only_a_few_of_them(tmp_path, config):
    few = own(tmp_path, empty(sound_data(20), 1))
    with pytest.raises(AnnotationFileError, match="1 x zero-sized box"):
        write_own_data(config("DATALOADER.STRICT_BOXES", "True"), few)
    more_than_a_tenth = own(tmp_path, empty(sound_data(20), *range(0, 60, 9)))
    with pytest.raises(AnnotationFileError, match="7 x zero-sized box"):
        write_own_data(config(), more_than_a_tenth)
    beside = empty(sound_data(20), 1)
    beside["annotations"][5]["category_id"] = 77
    with pytest.raises(AnnotationFileError, match="1 x zero-sized box"):
        write_own_data(config(), own(tmp_path, beside))
    negative = empty(sound_data(20), 1, size=(-3, 5))
    with pytest.raises(AnnotationFileError, match="1 x negative box size"):
        write_own_data(config(), own(tmp_path, negative))


def test_registered_data_pass_with_a_line_and_evaluation_counts_the_rest(tmp_path, caplog):
    data = empty(sound_data(20), 1, 30)
    write_images(tmp_path / "images", data)
    source = write_source(tmp_path, data)
    names = ("few_empty", "coco_2017_few_empty")
    for name in names:
        register_coco_instances(name, {}, source.annotation_file, source.image_root)
    try:
        require_sound_data(["few_empty"], ["few_empty"])
        assert "Left out: 2 of 60 boxes" in caplog.text and "annotation 31 (p10.png)" in caplog.text
        with pytest.raises(AnnotationFileError, match="2 x zero-sized box"):
            require_sound_data(["few_empty"], [], strict_boxes=True)
        counts = []
        for name in names:
            DatasetCatalog.get(name)
            counts.append(BoxEvaluator(name, distributed=False)._truth.count())
        # That which was published is compared with what others give for it.
        assert counts == [58, 60]
        # Nobody can leave an image out of what is registered.
        write_source(tmp_path, empty(sound_data(20), 30, 31, 32))
        with pytest.raises(AnnotationFileError, match="labelled image without a box"):
            require_sound_data(["few_empty"], [])
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
