import dataclasses
import json
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from fsaf_d2.evaluation.average_precision import BoxEvaluation
from fsaf_d2.evaluation.ground_truth import Detections, GroundTruth

ROOT = Path(__file__).parents[1]


@pytest.fixture
def speed_gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import speed_gpu

    return speed_gpu


@pytest.fixture
def accuracy(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import accuracy

    return accuracy


@pytest.fixture
def accuracy_report(accuracy):
    import accuracy_report

    return accuracy_report


@pytest.fixture
def accuracy_resampling(accuracy):
    import accuracy_resampling

    return accuracy_resampling


@pytest.fixture
def accuracy_run(accuracy):
    import accuracy_run

    return accuracy_run


def run(*args, script: str = "speed.py") -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    device = ["--device", "cpu"] if script == "speed.py" else []
    command = [sys.executable, str(ROOT / "benchmarks" / script), *device, *map(str, args)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.slow
def test_every_measurement_of_the_benchmark_runs(tmp_path):
    output = run("--quick", "--plot", tmp_path / "a.png", "--json", tmp_path / "results.json")
    tables = json.loads((tmp_path / "results.json").read_text())["tables"]
    assert [table["measurement"] for table in tables] == [
        *("step", "losses", "losses", "family", "family"),
        *("inference", "post-processing", "memory"),
        *["step by size", "inference by size"] * 2,
        *["switches"] * 4,
    ]
    assert all(row["value"] > 0 for table in tables for row in table["rows"])
    again = run("--from-json", tmp_path / "results.json", "--plot", tmp_path / "b.png")
    assert again.replace("b.png", "a.png") == output
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.slow
def test_what_a_gpu_is_asked_runs_on_the_cpu(speed_gpu, monkeypatch):
    cases = list(speed_gpu.CASES.items())
    monkeypatch.setattr(speed_gpu, "CASES", dict(cases[:6]))  # those that are not compiled
    args = types.SimpleNamespace(device="cpu", batch=2, height=64, width=96, repeats=2, quick=True)
    tables = list(speed_gpu.measure_gpu(args))
    assert [len(table.rows) for table in tables] == [6, 6]
    for row in [*tables[0].rows, *tables[1].rows]:
        assert row.more["images/s"] == pytest.approx(2e3 / row.value)
        assert row.more["TFLOP/s"] > 0
        assert row.more["host syncs"] is None


def test_flops_are_those_of_the_convolution(speed_gpu):
    layer = torch.nn.Conv2d(3, 8, 3, padding=1)
    image = torch.zeros(2, 3, 10, 12)
    flops = speed_gpu.count_flops(lambda: layer(image))
    assert flops == 2 * (2 * 10 * 12) * 8 * (3 * 3 * 3)


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("Tesla T4", 65),
        ("An Unknown Card", None),
    ],
)
def test_the_card_is_found_by_its_name(speed_gpu, monkeypatch, name, half):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    peaks = speed_gpu.card_peaks("cuda")
    assert (peaks and peaks.half) == half


def test_only_waits_for_the_gpu_are_counted(speed_gpu, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def program() -> None:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    assert speed_gpu.count_syncs(program, "cuda") == 3
    assert modes == ["warn", 0]


def test_tf32_is_off_only_while_a_program_without_it_runs(speed_gpu):
    seen = []
    case = speed_gpu.CASES["joint, fp32 without TF32"]
    before = torch.backends.cudnn.allow_tf32
    speed_gpu.with_precision(case, lambda: seen.append(torch.backends.cudnn.allow_tf32))()
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 == before


def accuracy_record(row: str, seed: int, **metrics) -> dict:
    return {
        **{"data": "digits", "row": row, "seed": seed, "steps": 10, "batch": 8, "minutes": 2.0},
        **{"threads": 1, "device": "cpu", "torch": "2", "commit": "abc", "date": "2026-01-01"},
        **{"metrics": {"bbox": metrics}, "late_levels": {}, "late_lens": {}},
    }


def test_interval_is_students(accuracy_report):
    # deviation 1, three values: 1 / sqrt(3) times the 97.5 % point of t with 2 degrees, 4.302653
    mean, low, high = accuracy_report.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert (low, high) == (pytest.approx(2 - 2.484138), pytest.approx(2 + 2.484138))


def test_one_run_has_no_interval(accuracy_report):
    assert accuracy_report.interval([5.0]) == (5, float("-inf"), float("inf"))


def test_differences_are_of_runs_with_the_same_seed(accuracy_report):
    records = [
        *(accuracy_record("anchors-only", seed, AP=ap) for seed, ap in ((1, 10.0), (2, 30.0))),
        # In another order, with a seed that the baseline lacks and one that has no AP.
        *(accuracy_record("both-online", s, AP=ap) for s, ap in ((3, 9.0), (2, 33.0), (1, 11.0))),
        accuracy_record("both-online", 4, AP=None),
    ]
    found = accuracy_report.paired_differences(records, "both-online", "anchors-only", "AP")
    assert found == [1.0, 3.0]
    text = accuracy_report.report(records, ["both-online", "anchors-only"], "anchors-only")
    # mean 2, deviation sqrt(2): 12.7062 (t with 1 degree) * sqrt(2) / sqrt(2)
    assert "+2.0 [-10.7, +14.7]" in text
    # all four runs, three of them with an AP: mean 17.67, deviation 13.32
    assert "| 4       | 17.7 ± 13.3 |" in text


def random_test_set() -> tuple[GroundTruth, Detections]:
    """Images of two classes and of none, a crowd, detections right, wrong and twice."""
    rng = np.random.default_rng(1)
    images, objects, found = 6, 30, 90
    boxes = np.concatenate(
        [rng.uniform(0, 60, (objects, 2)), rng.uniform(10, 40, (objects, 2))], axis=1
    )
    crowd = np.zeros(objects, dtype=bool)
    crowd[3] = True
    truth = GroundTruth(
        image_ids=list(range(images)),
        file_names=[""] * images,
        image_sizes=np.full((images, 2), 100),
        category_ids=[1, 2],
        class_names=["a", "b"],
        image_index=rng.integers(0, images - 1, objects),
        class_index=rng.integers(0, 2, objects),
        boxes=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        crowd=crowd,
        labelled=True,
    )
    of = rng.integers(0, objects, found)
    return truth, Detections(
        image_index=np.where(rng.random(found) < 0.9, truth.image_index[of], images - 1),
        category_ids=truth.class_index[of] + 1,
        boxes=boxes[of] + rng.normal(0, 2, (found, 4)),
        scores=rng.random(found),
    )


def drawn(truth: GroundTruth, found: Detections, counts: np.ndarray) -> tuple:
    """A test set in which images stand so many times, each time with an id of its own."""
    copies = np.repeat(np.arange(len(counts)), counts)
    objects = [np.flatnonzero(truth.image_index == image) for image in copies]
    detections = [np.flatnonzero(found.image_index == image) for image in copies]
    chosen, kept = np.concatenate(objects), np.concatenate(detections)
    fields = ("class_index", "boxes", "areas", "crowd")
    return dataclasses.replace(
        truth,
        image_ids=list(range(len(copies))),
        image_index=np.repeat(np.arange(len(copies)), [len(x) for x in objects]),
        **{name: getattr(truth, name)[chosen] for name in fields},
    ), dataclasses.replace(
        found[kept], image_index=np.repeat(np.arange(len(copies)), [len(x) for x in detections])
    )


def test_ap_of_resampled_images_is_that_of_images_drawn(accuracy_resampling):
    truth, found = random_test_set()
    counts = np.array(
        [[1] * 6, [2] * 6, [0, 3, 1, 0, 2, 0], [0, 0, 0, 0, 0, 6], [0, 1, 4, 0, 0, 1]]
    )
    aps = accuracy_resampling.resampled_ap(truth, found, counts, max_detections=100)
    expected = [
        BoxEvaluation(*drawn(truth, found, row), max_detections=100).metrics()["AP"]
        for row in counts
    ]
    assert np.isnan(aps[3]) and expected[3] is None
    keep = [0, 1, 2, 4]
    np.testing.assert_allclose(aps[keep], [expected[i] for i in keep], rtol=1e-9)
    assert aps[0] == pytest.approx(aps[1]) and aps[0] != pytest.approx(aps[2])


def test_interval_over_images_is_of_pairs(accuracy_resampling, accuracy_report):
    ramp = np.arange(1001) / 100
    resampled = {
        **{("both-online", 1): ramp + 1, ("anchors-only", 1): np.zeros(1001)},
        **{("both-online", 2): ramp + 2, ("anchors-only", 2): np.ones(1001)},
    }
    interval = accuracy_resampling.interval_over_images
    pair = ("both-online", "anchors-only")
    assert interval(resampled, *pair, [1, 2]) == (pytest.approx(1.25), pytest.approx(10.75))
    assert interval(resampled, *pair, [1, 3]) is None
    records = [accuracy_record(row, seed, AP=50.0) for row in pair for seed in (1, 2)]
    text = accuracy_report.report(records, pair, "anchors-only", resampled)
    assert "[+1.2, +10.8]" in text


def test_branches_alone_come_into_the_report_by_themselves(accuracy_report):
    record = accuracy_record("both-online", 1, AP=20.0)
    assert "branch" not in accuracy_report.report([record], ["both-online"], "both-online")
    record["metrics"]["point_branch"] = {"AP": 12.5}
    text = accuracy_report.report([record], ["both-online"], "both-online")
    assert "| both, online: anchor-free branch | 12.5 |" in text


def test_late_is_the_last_fifth_of_the_training(accuracy_run):
    records = [
        {"iteration": i, "num_objects_p3": 2.0, "num_objects_p4": 1.0, "level_lens/flip_rate": i}
        for i in (19, 39, 59, 79, 99)
    ]
    assert accuracy_run.late_levels(records, 100) == {"p3": 2, "p4": 1}
    assert accuracy_run.late_lens(records, 100) == {"flip_rate": 99}
    assert accuracy_run.late_levels([{"iteration": 99, "lr": 0.1}], 100) == {}


def test_a_line_cut_off_is_a_run_that_is_missing(accuracy, tmp_path):
    lines = [json.dumps(accuracy_record("both-online", seed, AP=1.0)) for seed in (1, 2)]
    (tmp_path / "results.jsonl").write_text(lines[0] + "\n" + lines[1][:-9])
    assert list(accuracy.read_results(tmp_path / "results.jsonl")) == [("both-online", 1)]


def test_results_of_other_settings_are_refused(accuracy, tmp_path):
    job = {"config": "a/digits.yaml", "overrides": [], "options": []}
    assert accuracy.finished(tmp_path, job) is None
    (tmp_path / "result.json").write_text(json.dumps({**job, "AP": 1}))
    assert accuracy.finished(tmp_path, {**job, "config": "b/digits.yaml"})["AP"] == 1
    with pytest.raises(ValueError, match=r"options \[\], not \['SEED', '2'\]: choose another"):
        accuracy.finished(tmp_path, {**job, "options": ["SEED", "2"]})


@pytest.mark.slow
def test_grid_goes_on_where_it_stopped(tmp_path):
    args = ["--quick", "--output", tmp_path, "--seeds", 1, "--jobs", 2, "--keep-checkpoints"]
    rows = ["--rows", "both-online", "nms-per-level", "anchors-only"]
    first = run(*args, *rows, script="accuracy.py")
    assert "0 of 3 runs are done." in first
    folder = tmp_path / "digits" / "both-online" / "seed1"
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    weights = torch.load(folder / "model_final.pth", weights_only=True)["model"]

    # As if it had been killed behind its first checkpoint.
    for name in ("result.json", "model_final.pth", "last_checkpoint"):
        (folder / name).unlink()
    results = tmp_path / "digits.jsonl"
    kept = [line for line in results.read_text().splitlines() if '"both-online"' not in line]
    results.write_text("\n".join(kept) + "\n")
    second = run(*args, *rows, script="accuracy.py")
    assert "2 of 3 runs are done." in second
    assert "Resuming" in (folder / "output.txt").read_text()
    assert json.loads((folder / "result.json").read_text())["metrics"] == metrics
    again = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())

    third = run(*args, *rows, script="accuracy.py")
    assert "3 of 3 runs are done." in third
    assert "started" not in third
    assert len(results.read_text().splitlines()) == 3
    assert (tmp_path / "digits.png").is_file()


def test_ap_by_side_is_of_the_objects_of_that_size(tmp_path, accuracy):
    import accuracy_sizes

    sides = {1: 20, 2: 60, 3: 50}
    truth = {"images": [{"id": i, "width": 99, "height": 99} for i in sides]}
    truth["categories"] = [{"id": 1, "name": "one"}]
    truth["annotations"] = [
        {
            **{"id": i, "image_id": i, "category_id": 1, "iscrowd": 0},
            **{"bbox": [0, 0, side, side], "area": side * side},
        }
        for i, side in sides.items()
    ]
    found = [
        {"image_id": i, "category_id": 1, "bbox": [0, 0, *size], "score": 0.9}
        for i, size in ((1, (20, 20)), (2, (60, 30)))
    ]
    for name, content in (("truth", truth), ("found", found)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = tmp_path / "truth.json", tmp_path / "found.json"
    small, medium, large = accuracy_sizes.ap_by_side(*files, [32, 96])
    # One of two, at the lowest threshold of ten alone: recall 0.5 is reached at 51 of 101 places.
    assert (small, medium) == (pytest.approx(100), pytest.approx(100 * 51 / 101 / 10))
    assert np.isnan(large)
    table = accuracy_sizes.table_by_side(
        {("both-online", 1): [1.0, 2.0, 3.0]}, ["both-online"], [32, 96]
    )
    assert "< 32" in table and "32 to 96" in table and "| both, online | 1.0" in table
