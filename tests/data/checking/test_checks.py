import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from fsaf_d2.data.checking.checks import require_datasets, require_num_classes
from fsaf_d2.data.reading.builtin import DATASETS, register_builtin_datasets


@pytest.fixture
def own_set(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "own.json").write_text("{}")
    register_coco_instances("own", {}, str(tmp_path / "own.json"), str(tmp_path / "images"))
    yield tmp_path
    DatasetCatalog.remove("own")
    MetadataCatalog.remove("own")


def test_what_is_there_passes(own_set):
    assert require_datasets(["own"]) is None
    # It looks: without the folder it does not pass.
    (own_set / "images").rmdir()
    with pytest.raises(FileNotFoundError):
        require_datasets(["own"])


@pytest.mark.parametrize(("missing", "kind"), [("own.json", "annotation"), ("images", "image")])
def test_what_is_missing_is_named(own_set, missing, kind):
    path = own_set / missing
    path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        require_datasets(["own"])
    assert (
        "'own'" in str(error.value) and str(path) in str(error.value) and kind in str(error.value)
    )


def test_number_of_classes(own_set):
    categories = '[{"id": 9, "name": "b"}, {"id": 4, "name": "a"}]'
    (own_set / "own.json").write_text(f'{{"categories": {categories}}}')
    require_num_classes(["own"], 2)
    for number in (1, 3, 80):
        with pytest.raises(
            ValueError, match=rf"NUM_CLASSES is {number}.*'own'.* 2 classes \(a, b\)"
        ):
            require_num_classes(["own"], number)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"categories": [{"id": 1}]}', "{"])
def test_what_is_not_coco_is_named(own_set, text):
    (own_set / "own.json").write_text(text)
    with pytest.raises(ValueError, match=r"own\.json.*'own'.*COCO"):
        require_num_classes(["own"], 2)


def test_near_names_are_offered():
    with pytest.raises(ValueError, match="bloodcells_train"):
        require_datasets(["bloodcell_train"])


def test_registering_twice_is_harmless():
    register_builtin_datasets()
    assert set(DATASETS) <= set(DatasetCatalog.list())
