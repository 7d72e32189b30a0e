import json
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "speed.py"


@pytest.fixture
def speed_gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import speed_gpu

    return speed_gpu


def run(*args) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--device", "cpu", *map(str, args)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.slow
def test_every_measurement_of_the_benchmark_runs(tmp_path):
    output = run("--quick", "--plot", tmp_path / "a.png", "--json", tmp_path / "results.json")
    tables = json.loads((tmp_path / "results.json").read_text())["tables"]
    assert [table["measurement"] for table in tables] == [
        *("step", "losses", "losses", "inference", "post-processing", "memory"),
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
