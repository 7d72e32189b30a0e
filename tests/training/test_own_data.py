"""Own data in a run: from Python, of several processes, and what a checkpoint says of them."""

import importlib

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from formats import CLASSES, WRITERS, write_coco, write_image, write_voc, write_yolo
from runs import run_cfg, run_trainer

from fsaf_d2.data.reading.own import FILES
from fsaf_d2.training import SafeCheckpointer, prepare, saved_classes, use_own_data

LAUNCH = importlib.import_module("fsaf_d2.training.launch")
FREE = {"DATASETS__TRAIN": "()", "DATASETS__TEST": "()", "MODEL__RETINANET__NUM_CLASSES": 3}


@pytest.fixture(autouse=True)
def forget():
    yield
    for name in FILES:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def own_cfg(output, **overrides: object):
    """The config of a small run on no data set in particular."""
    cfg = run_cfg(output, **{**FREE, "SOLVER__MAX_ITER": 2, **overrides})
    # Else what is set below counts as given on the command line.
    given = cfg.__dict__["__fsaf_d2_given__"]["given"]
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        del given[key]
    return cfg


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_trains_and_the_checkpoint_says_its_classes(tmp_path, kind):
    root = WRITERS[kind](tmp_path / "own")
    cfg = own_cfg(tmp_path / "run", INPUT__FORMAT="RGB")
    use_own_data(cfg, root, root)
    prepare(cfg, eval_only=False)
    run_trainer(cfg).train()
    saved = torch.load(tmp_path / "run/model_final.pth", weights_only=True)
    classes = sorted(CLASSES) if kind == "voc" else CLASSES
    assert saved["class_names"] == classes
    assert saved["category_ids"] == ([0, 1, 2] if kind == "yolo" else [1, 2, 3])
    assert saved["input_format"] == "RGB"
    expected = [{"id": i, "name": x} for i, x in zip(saved["category_ids"], classes)]
    assert saved_classes(str(tmp_path / "run/model_final.pth")) == expected


def test_what_is_done_is_printed(tmp_path, capsys):
    root = write_yolo(tmp_path / "own")
    write_image(root / "train/images/c.jpg")
    use_own_data(own_cfg(tmp_path / "run"), root, root)
    out = capsys.readouterr().out
    assert "Training data" in out and "5 images, 4 boxes, 3 classes (zebra, cat" in out
    assert "Validation data" in out and "2 images, 2 boxes" in out


@pytest.mark.parametrize(
    ("max_iter", "given", "period"),
    [
        (100, {}, 10),
        (40, {}, 10),
        (10, {}, 0),
        (10, {"TEST__PATIENCE": 2}, 2),
        (10, {"TEST__EVAL_PERIOD": 0}, 0),
        (10, {"TEST__EVAL_PERIOD": 5}, 5),
    ],
)
def test_it_is_evaluated_up_to_ten_times_for_a_tenth_of_its_time(
    tmp_path, capsys, max_iter, given, period
):
    root = write_coco(tmp_path / "own")
    cfg = own_cfg(tmp_path / "run", SOLVER__MAX_ITER=max_iter, SOLVER__IMS_PER_BATCH=2, **given)
    use_own_data(cfg, root, root)
    prepare(cfg, eval_only=False)
    assert period == cfg.TEST.EVAL_PERIOD
    is_derived = "TEST__EVAL_PERIOD" not in given
    assert ("TEST.EVAL_PERIOD: 0 -> " in capsys.readouterr().out) == is_derived


def test_a_run_goes_on_with_its_files(tmp_path, capsys):
    root = write_voc(tmp_path / "own")
    cfg = own_cfg(tmp_path / "run")
    use_own_data(cfg, root, root)
    (tmp_path / "run/config.yaml").write_text(cfg.dump())
    before = (tmp_path / "run/data/train.json").read_bytes()
    for data in ((root, root), ()):
        cfg = own_cfg(tmp_path / "run")
        capsys.readouterr()
        use_own_data(cfg, *data, resume=True)
        assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("own_train",), ("own_val",))
        assert (tmp_path / "run/data/train.json").read_bytes() == before
    assert "Going on with the data in " in capsys.readouterr().out


def test_a_run_on_registered_data_goes_on_with_them(tmp_path):
    root = write_voc(tmp_path / "own")
    use_own_data(own_cfg(tmp_path / "run"), root)
    cfg = own_cfg(tmp_path / "run")
    # The folder's last run was another one.
    (tmp_path / "run/config.yaml").write_text(cfg.dump())
    use_own_data(cfg, resume=True)
    assert cfg.DATASETS.TRAIN == ()


def test_data_sets_and_own_data_exclude_each_other_on_the_command_line(tmp_path):
    cfg = run_cfg(tmp_path)
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN was given by the command line"):
        use_own_data(cfg, write_coco(tmp_path / "own"))


def test_the_config_of_a_run_is_enough_to_evaluate_it(tmp_path):
    root = write_coco(tmp_path / "own")
    cfg = own_cfg(tmp_path / "run")
    use_own_data(cfg, root, root)
    other = own_cfg(tmp_path / "run", DATASETS__TEST="('own_val',)")
    DatasetCatalog.remove("own_val")
    MetadataCatalog.remove("own_val")
    prepare(other, eval_only=True)
    assert MetadataCatalog.get("own_val").thing_classes == CLASSES


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ({}, None),
        ({"class_names": []}, None),
        ({"class_names": "ab", "category_ids": [1, 2]}, None),
        ({"class_names": ["a", 3], "category_ids": [1, 2]}, None),
        ({"class_names": ["a", "b"], "category_ids": [4, 7]}, [(4, "a"), (7, "b")]),
        ({"class_names": ["a", "b"]}, [(1, "a"), (2, "b")]),
        ({"class_names": ["a", "b"], "category_ids": [7, 4]}, [(1, "a"), (2, "b")]),
        ({"class_names": ["a", "b"], "category_ids": [7, 7]}, [(1, "a"), (2, "b")]),
        ({"class_names": ["a", "b"], "category_ids": [True, 7]}, [(1, "a"), (2, "b")]),
        ({"class_names": ["a", "b"], "category_ids": [7]}, [(1, "a"), (2, "b")]),
    ],
)
def test_classes_of_a_checkpoint(tmp_path, description, expected):
    SafeCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).save("model", **description)
    found = saved_classes(str(tmp_path / "model.pth"))
    assert (found and [(x["id"], x["name"]) for x in found]) == expected
    assert saved_classes("https://example.com/model.pth") is None


class TestSeveralProcesses:
    @pytest.fixture
    def torchrun(self, monkeypatch):
        """Makes this process one of torchrun's, with a store in memory."""
        store = torch.distributed.HashStore()
        monkeypatch.setattr(LAUNCH, "_store", lambda: store)

        def be(rank: int) -> None:
            values = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}
            for name, value in {**values, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}.items():
                monkeypatch.setenv(name, str(value))
            monkeypatch.setattr(LAUNCH, "_turns", iter(range(9)))

        return be

    def test_the_first_writes_and_speaks_and_all_register(self, tmp_path, torchrun, capsys):
        root = write_coco(tmp_path / "own")
        torchrun(0)
        use_own_data(own_cfg(tmp_path / "run"), root, root)
        assert "Training data" in capsys.readouterr().out
        written = (tmp_path / "run/data/train.json").stat()
        for name in ("own_train", "own_val"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        torchrun(1)
        cfg = own_cfg(tmp_path / "run")
        use_own_data(cfg, root, root)
        assert capsys.readouterr().out == ""
        assert (tmp_path / "run/data/train.json").stat().st_mtime_ns == written.st_mtime_ns
        assert {"own_train", "own_val"} <= set(DatasetCatalog.list())
        assert cfg.DATASETS.TEST == ("own_val",)

    def test_the_others_end_where_the_first_fails(self, tmp_path, torchrun):
        torchrun(0)
        with pytest.raises(ValueError, match="does not exist"):
            use_own_data(own_cfg(tmp_path / "run"), tmp_path / "nowhere")
        torchrun(1)
        with pytest.raises(SystemExit):
            use_own_data(own_cfg(tmp_path / "run"), tmp_path / "nowhere")
