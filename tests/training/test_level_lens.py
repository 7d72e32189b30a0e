import importlib
import json

import pytest
import torch
from detectron2.utils.events import EventStorage
from models import HEURISTIC, JOINT, batch, instances, random_instances, tiny_model
from runs import run_cfg, run_trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fsaf_d2.training.hooks.level_lens_hook import LevelLens

# The data sets of training do.
QUICK = {"DATASETS__TEST": "()", "TEST__LEVEL_LENS": 3, "TEST__EVAL_PERIOD": 2}
# Images and levels, sizes and the heuristic's levels of their three objects.
IMAGES = [["a.jpg", 2], ["b.jpg", 1]]
SIZES, BY_SIZE = [3.0, 16.0, 5000.0], [0, 0, 4]


@pytest.fixture(autouse=True)
def plotted(monkeypatch):
    """The files that would be drawn, which takes longer than all else."""
    files = []
    module = importlib.import_module("fsaf_d2.training.hooks.level_lens_hook")
    monkeypatch.setattr(module, "plot_level_lens", lambda _, file: files.append(file))
    return files


class Trainer:
    def __init__(self, storage):
        self.storage = storage


def observed(folder, *selections, lens=None, images=IMAGES) -> tuple[LevelLens, dict]:
    """The report after evaluations in which the objects have selected these levels."""
    lens = lens or LevelLens(tiny_model(), [], str(folder))
    start = len(lens.state_dict()["evaluations"])
    with EventStorage() as storage:
        lens.trainer = Trainer(storage)
        for step, levels in enumerate(selections, start + 1):
            lens._select = lambda levels=levels: (images, levels, SIZES, BY_SIZE)
            lens.observe(10 * step)
    return lens, json.loads((folder / "level_lens.json").read_text())


def test_an_object_flips_if_it_selects_another_level_than_before(tmp_path):
    _, report = observed(tmp_path, [0, 0, 3], [1, 0, 4], [1, 0, 4])
    assert [x["step"] for x in report["evaluations"]] == [10, 20, 30]
    assert [x["flipped"] for x in report["evaluations"]] == [None, 2, 0]
    assert [x["compared"] for x in report["evaluations"]] == [0, 3, 3]
    assert [x["as_heuristic"] for x in report["evaluations"]] == [2, 2, 2]
    assert report["evaluations"][0]["num_objects"] == {"p3": 2, "p4": 0, "p5": 0, "p6": 1, "p7": 0}


def test_other_images_are_not_compared(tmp_path):
    lens, _ = observed(tmp_path, [0, 0, 3])
    _, report = observed(tmp_path, [1, 1, 1], lens=lens, images=[["a.jpg", 1], ["b.jpg", 2]])
    assert report["evaluations"][-1]["compared"] == 0


def test_objects_are_counted_by_level_and_size(tmp_path):
    """3 px lie between 2.8 and 4; 16 px begin a bin; 5000 px are beyond the last edge of 2048."""
    _, report = observed(tmp_path, [0, 1, 4])
    counts = report["objects_by_level_and_size"]
    edges = report["size_edges"]
    assert len(counts) == 5 and all(len(row) == len(edges) - 1 for row in counts)
    places = [(i, j) for i, row in enumerate(counts) for j, n in enumerate(row) if n]
    assert [(level, pytest.approx(edges[j], abs=0.01)) for level, j in places] == [
        *((0, 2.83), (1, 16.0), (4, 1448.15)),
    ]
    assert sum(map(sum, counts)) == 3


def test_no_objects_are_no_error(tmp_path):
    lens = LevelLens(tiny_model(), [batch(instances([], []))], str(tmp_path))
    for x in lens._batches[0]:
        x["file_name"] = "empty.jpg"
    with EventStorage() as storage:
        lens.trainer = Trainer(storage)
        for step in (1, 2):
            lens.observe(step)
    report = json.loads((tmp_path / "level_lens.json").read_text())
    assert report["evaluations"][-1]["num_objects"] == dict.fromkeys(report["levels"], 0)


def lens_on(folder, *ground_truths, overrides) -> LevelLens:
    inputs = batch(*ground_truths)
    for index, x in enumerate(inputs):
        x["file_name"] = f"{index}.jpg"
    model = tiny_model("MODEL.RESNETS.NORM", "FrozenBN", *overrides)
    return LevelLens(model, [[x] for x in inputs], str(folder))


@pytest.mark.parametrize("overrides", [JOINT, HEURISTIC])
def test_objects_select_as_in_training(tmp_path, overrides):
    """Without batch norm a training step with these images counts the same."""
    lens = lens_on(tmp_path, random_instances(12), random_instances(5), overrides=overrides)
    _, levels, sizes, by_size = lens._select()
    lens._model.train()([x for (x,) in lens._batches])
    counts = torch.bincount(torch.tensor(levels).long(), minlength=5).tolist()
    logged = [lens._model.counts()[f"num_objects_p{i}"].item() for i in range(3, 8)]
    assert counts == logged and len(sizes) == 17
    if overrides == HEURISTIC:
        assert levels == by_size


def test_borders_are_those_of_the_heuristic(tmp_path):
    """A box at a border selects the coarser level, one a little smaller the finer one."""
    lens = lens_on(tmp_path, overrides=JOINT)
    borders = lens._heuristic_borders()
    assert borders == [112.0, 224.0, 448.0, 896.0]
    for level, border in enumerate(borders):
        for size, expected in ((border, level + 1), (border * 0.999, level)):
            assert lens._select_by_size(torch.tensor([[0, 0, size, size]])).item() == expected


def without_log(report: str) -> dict:
    return {key: value for key, value in json.loads(report).items() if key != "training"}


@pytest.mark.slow
def test_it_survives_a_kill(digits, tmp_path, plotted):
    run_trainer(run_cfg(tmp_path / "whole", **QUICK)).train()
    cut = run_trainer(run_cfg(tmp_path / "cut", **QUICK))
    step = cut.run_step

    def run_step():
        step()
        if cut.iter == 4:
            raise SystemExit

    cut.run_step = run_step
    with pytest.raises(SystemExit):
        cut.train()
    (tmp_path / "cut" / "level_lens.json").unlink()
    run_trainer(run_cfg(tmp_path / "cut", **QUICK), resume=True).train()
    whole, rest = ((tmp_path / name / "level_lens.json").read_text() for name in ("whole", "cut"))
    assert without_log(rest) == without_log(whole)
    assert [x["step"] for x in json.loads(rest)["evaluations"]] == [2, 4, 6]
    assert json.loads(rest)["evaluations"][-1]["compared"] > 0
    assert plotted[-1] == tmp_path / "cut" / "level_lens.png"


@pytest.mark.parametrize(
    "off", [{"TEST__LEVEL_LENS": 0}, {"MODEL__FSAF__ANCHOR_FREE_BRANCH": False}]
)
def test_it_can_be_off(digits, tmp_path, off):
    trainer = run_trainer(run_cfg(tmp_path, **{**QUICK, **off}, SOLVER__MAX_ITER=1))
    assert not any(isinstance(hook, LevelLens) for hook in trainer._hooks)
    trainer.train()
    assert not list(tmp_path.glob("level_lens*"))


def test_tensorboard_has_the_levels_and_all_of_every_evaluation(digits, tmp_path):
    options = {**QUICK, "DATASETS__TEST": "('runs_val',)", "SOLVER__MAX_ITER": 5}
    trainer = run_trainer(run_cfg(tmp_path, **options, TEST__SAMPLES=1))
    trainer.test = lambda *_: {"bbox": {"AP": 1.5}}
    trainer.train()
    (file,) = tmp_path.glob("events.out.tfevents*")
    # All of them.
    events = EventAccumulator(str(file), {"images": 0, "histograms": 0})
    events.Reload()
    names = ("bbox/AP", "validation/total_loss", "level_lens/as_heuristic")
    for name in names:
        assert [x.step for x in events.Scalars(name)] == [1, 3, 5]
    assert [x.step for x in events.Scalars("level_lens/flip_rate")] == [3, 5]
    assert [x.step for x in events.Images("samples")] == [1, 3, 5]
    assert [x.step for x in events.Histograms("level_lens/selected_level")] == [1, 3, 5]
    selected = events.Histograms("level_lens/selected_level")[0].histogram_value
    assert 3 <= selected.min <= selected.max <= 7
    lines = [json.loads(x) for x in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [x["iteration"] for x in lines if "bbox/AP" in x] == [1, 3, 5]
