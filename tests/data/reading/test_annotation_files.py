"""An annotation file is parsed once while a run is set up."""

import collections
import json
import logging
import os
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from formats import WRITERS, write_coco
from models import ROOT
from runs import OVERRIDES, run_trainer

from fsaf_d2 import load_config
from fsaf_d2.data.checking.own_writing import write_own_data
from fsaf_d2.data.reading import annotation_files
from fsaf_d2.data.reading.annotation_files import hold, let_go, read_head, read_json
from fsaf_d2.data.reading.own import FILES, own_file, register_own_data, set_own_data


@pytest.fixture(autouse=True)
def nothing_is_held():
    annotation_files._held.clear()
    yield
    annotation_files._held.clear()
    for name in FILES:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.fixture
def parsed(monkeypatch):
    """How often each file was parsed, by its name and its folder's."""
    counts = collections.Counter()
    load = json.load

    def counted(file, *args, **kwargs):
        counts["/".join(Path(file.name).parts[-2:])] += 1
        return load(file, *args, **kwargs)

    monkeypatch.setattr(json, "load", counted)
    return counts


def written(file: Path, data: object) -> Path:
    file.write_text(json.dumps(data))
    return file


def test_what_is_unchanged_is_parsed_once(tmp_path, parsed):
    file = written(tmp_path / "a.json", {"info": 1, "categories": [2], "images": [3]})
    link = tmp_path / "b.json"
    link.symlink_to(file)
    assert read_json(file) is read_json(link) is read_json(str(file))
    assert read_head(file) == {"info": 1, "categories": [2]}
    assert parsed.total() == 1


@pytest.mark.parametrize("how", ["size", "time", "replaced"])
def test_what_has_changed_is_parsed_anew(tmp_path, how):
    file = written(tmp_path / "a.json", {"info": 1})
    time = os.stat(file).st_mtime_ns
    read_json(file)
    if how == "replaced":
        other = written(tmp_path / "b.json", {"info": 2})
        os.utime(other, ns=(time, time))
        other.replace(file)
    else:
        written(file, {"info": 2 if how == "time" else 20})
        os.utime(file, ns=(time, time + 1000 * (how == "time")))
    assert read_head(file) == read_json(file) == {"info": 20 if how == "size" else 2}


def test_what_was_written_need_not_be_parsed(tmp_path, parsed):
    data = {"info": {}, "images": []}
    hold(written(tmp_path / "a.json", data), data)
    assert read_json(tmp_path / "a.json") is data and not parsed


def test_what_was_let_go_has_its_head_still(tmp_path, parsed):
    file = written(tmp_path / "a.json", {"info": 1, "images": [3]})
    read_json(file)
    let_go()
    assert read_head(file) == {"info": 1} and parsed.total() == 1
    assert read_json(file)["images"] == [3] and parsed.total() == 2


def test_so_many_bytes_are_held(tmp_path, parsed, monkeypatch):
    files = [written(tmp_path / f"{i}.json", {"info": i, "images": [9] * 100}) for i in range(3)]
    monkeypatch.setattr(annotation_files, "MAX_BYTES", 2 * os.path.getsize(files[0]))
    for file in (*files[:2], files[0], files[2], files[0], files[2]):
        read_json(file)
    assert list(parsed.values()) == [1, 1, 1]
    read_json(files[1])
    assert list(parsed.values()) == [1, 2, 1] and read_head(files[0]) == {"info": 0}
    monkeypatch.setattr(annotation_files, "MAX_BYTES", 10)
    assert read_json(files[2])["images"] == [9] * 100


def test_other_contents_have_no_head(tmp_path):
    assert read_head(written(tmp_path / "a.json", [1])) is None
    (tmp_path / "b.json").write_text("{")
    for _ in range(2):
        with pytest.raises(ValueError):
            read_head(tmp_path / "b.json")


@pytest.mark.parametrize("kind", WRITERS)
def test_own_data_are_as_if_they_had_been_parsed(tmp_path, kind):
    cfg = load_config(ROOT / "configs/Base-FSAF-small.yaml", ["OUTPUT_DIR", str(tmp_path)])
    root = WRITERS[kind](tmp_path / "own")
    write_own_data(cfg, str(root), str(root))
    set_own_data(cfg, "own_train", "own_val")
    for name in ("own_train", "own_val"):
        file = own_file(cfg, name)
        assert read_json(file) == json.loads(Path(file).read_text())
        metadata = MetadataCatalog.get(name)
        expected = load_coco_json(file, metadata.image_root)
        ids = metadata.thing_dataset_id_to_contiguous_id
        for record in expected:
            for annotation in record["annotations"]:
                annotation["category_id"] = ids[annotation["category_id"]]
        assert DatasetCatalog.get(name) == expected and len(expected) > 1


@pytest.fixture
def loggers_as_they_were():
    """A trainer gives detectron2's logger a handler that renames what others catch."""
    logger = logging.getLogger("detectron2")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


def test_a_run_parses_its_data_once_before_the_first_step(tmp_path, parsed, loggers_as_they_were):
    """It was six times for training data and four times for validation data."""
    from fsaf_d2.commands.train_command import argument_parser, read_config

    root = write_coco(tmp_path / "own")
    of_data = ("DATASETS.TRAIN", "DATASETS.TEST", "MODEL.RETINANET.NUM_CLASSES")
    values = {key: value for key, value in OVERRIDES.items() if key not in of_data}
    words = [str(word) for pair in values.items() for word in pair]
    command = ["--config-file", str(ROOT / "configs/Base-FSAF-small.yaml")]
    command += ["--train-data", str(root), "--val-data", str(root)]
    command += [*words, "OUTPUT_DIR", str(tmp_path / "out")]
    cfg = read_config(argument_parser().parse_args(command))
    register_own_data(cfg)
    trainer = run_trainer(cfg)
    assert len(next(trainer.data_loader)) == cfg.SOLVER.IMS_PER_BATCH
    assert parsed["annotations/train.json"] == parsed["annotations/val.json"] == 1
    # What the run has written itself is known.
    assert parsed["data/train.json"] <= 1 and parsed["data/val.json"] == 0
    assert all(held.data is None for held in annotation_files._held.values())
