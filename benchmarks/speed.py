#!/usr/bin/env python
"""Compare our detectors with detectron2's RetinaNet and FCOS: time, memory, cost of many objects.

    python benchmarks/speed.py                      # all: about 18 minutes on 2 idle CPU cores
    python benchmarks/speed.py step losses          # some of it
    python benchmarks/speed.py gpu                  # only what a GPU is asked, about 8 minutes
    python benchmarks/speed.py --plot FILE.png --json FILE.json
    python benchmarks/speed.py --from-json FILE.json --plot FILE.png
    python benchmarks/speed.py --quick              # a smoke run with a small network

Programs are measured in turn in one run and compared pair by pair: what is printed is the median
time of each and the median and the quartiles of its ratio to detectron2's RetinaNet. Weights are
random, images noise, and scores dense; only the time is of interest.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import detectron2
import torch
from detectron2.utils.events import EventStorage
from speed_gpu import BF16, COMPILE, NOT_CHANNELS_LAST, measure_gpu
from speed_losses import Head, measure_family, measure_losses
from speed_models import (
    BASELINE,
    MODELS,
    Row,
    Table,
    build,
    config,
    detecting,
    make_batch,
    paired,
    size_of,
    training,
)
from speed_plot import draw

from fsaf_d2.training import Trainer

# Batch, height and width of the measurement `sizes`.
SIZES = {
    "cpu": ((1, 320, 320), (2, 320, 320), (4, 320, 320), (1, 512, 640), (1, 800, 1344)),
    "cuda": ((1, 800, 1344), (4, 800, 1344), (16, 800, 1344), (16, 512, 640), (16, 320, 320)),
}
SWITCHES = {
    "joint": [],
    "not channels_last": NOT_CHANNELS_LAST,
    "optimizer not fused": ["SOLVER.FUSED", "False"],
    "compiled backbone and head": COMPILE,
    "bfloat16": BF16,
    "compiled, bfloat16": COMPILE + BF16,
}
STEP_TITLE = "training step, 20 objects an image"
INFERENCE_TITLE = "inference with post-processing, dense scores"


def measure_step(args: argparse.Namespace) -> Iterator[Table]:
    """A training step: forward, backward, optimizer."""
    batch = make_batch(20, args)
    steps = {name: training(name, args, batch)[0] for name in MODELS}
    yield Table("step", STEP_TITLE, paired(steps, args), size_of(args, objects=20))


def measure_inference(args: argparse.Namespace) -> Iterator[Table]:
    """Inference whole, and its post-processing alone, on dense scores."""
    batch = make_batch(1, args)
    whole, post = {}, {}
    for name in MODELS:
        model = build(name, args).eval()

        def detect(model=model) -> None:
            with torch.no_grad():
                model(batch)

        whole[name], post[name] = detect, Head(model, batch).post_process
    yield Table("inference", INFERENCE_TITLE, paired(whole, args), size_of(args))
    title = "post-processing alone, dense scores"
    yield Table("post-processing", title, paired(post, args), size_of(args))


def measure_sizes(args: argparse.Namespace) -> Iterator[Table]:
    """Training step and inference against batch and size of the images."""
    for batch, height, width in ((1, 64, 96), (2, 64, 96)) if args.quick else SIZES[args.device]:
        here = copy.copy(args)
        here.batch, here.height, here.width = batch, height, width
        here.repeats = min(args.repeats, 3)
        size = f"{batch} x {height} x {width}"
        for table in (measure_step(here), measure_inference(here)):
            table = next(table)
            yield dataclasses.replace(
                table, measurement=f"{table.measurement} by size", title=f"{size}: {table.title}"
            )


def measure_memory(args: argparse.Namespace) -> Iterator[Table]:
    """Peak memory of a training step, each model in a process of its own."""
    peaks = {}
    for name in MODELS:
        command = [sys.executable, __file__, "--one-step", name, *["--quick"] * args.quick]
        for option in ("device", "batch", "height", "width"):
            command += [f"--{option}", str(getattr(args, option))]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[name] = float(result.stdout.split()[-1])
    yield Table(
        "memory",
        "peak memory of a training step, 20 objects an image",
        [Row(name, peak, peak / peaks[BASELINE]) for name, peak in peaks.items()],
        size_of(args, objects=20),
        unit="MiB",
    )


def print_one_step(name: str, args: argparse.Namespace) -> None:
    """Train one step, and print the peak memory in MiB above that of the model alone."""
    model = build(name, args).train()
    batch = make_batch(20, args)
    before = 0.0 if args.device == "cuda" else resident_memory("VmRSS")
    with EventStorage():
        sum(model(batch).values()).backward()
    if args.device == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print(resident_memory("VmHWM") - before)


def resident_memory(field: str) -> float:
    """Memory of this process in MiB: VmRSS now, VmHWM at its peak."""
    # Not getrusage: its peak is inherited from the process that started this one.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure_switches(args: argparse.Namespace) -> Iterator[Table]:
    """The joint model with each switch that changes only the speed, beside it without."""
    batch = make_batch(20, args)
    steps = {title: training("joint", args, batch, keys)[0] for title, keys in SWITCHES.items()}
    yield Table("switches", f"joint: {STEP_TITLE}", paired(steps, args), size_of(args, objects=20))
    del steps

    # The other two are switches of the training alone.
    detections = {
        title: detecting("joint", args, batch, SWITCHES[title])
        for title in ("joint", "not channels_last", "compiled backbone and head")
    }
    yield Table("switches", f"joint: {INFERENCE_TITLE}", paired(detections, args), size_of(args))

    optimizers = {}
    model = build("joint", args).train()
    with EventStorage():
        sum(model(batch).values()).backward()
    for name in ("SGD", "ADAMW"):
        for fused in ("False", "True"):
            cfg = config(args, ["SOLVER.OPTIMIZER", name, "SOLVER.FUSED", fused])
            title = f"{name}, fused" if fused == "True" else name
            optimizers[title] = Trainer.build_optimizer(cfg, model).step
        title = f"joint: the optimizer's step alone, {name}"
        yield Table("switches", title, paired(optimizers, args), size_of(args))
        optimizers.clear()


MEASUREMENTS = {
    "step": measure_step,
    "losses": measure_losses,
    "family": measure_family,
    "inference": measure_inference,
    "memory": measure_memory,
    "sizes": measure_sizes,
    "switches": measure_switches,
    "gpu": measure_gpu,
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line; defaults depend on the device."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what",
        nargs="*",
        help=f"some of {', '.join(MEASUREMENTS)}; by default all, without a GPU all but gpu",
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default)
    parser.add_argument("--batch", type=int, help="images; by default 1, on a GPU 16")
    parser.add_argument("--height", type=int, help="pixels; by default 512, on a GPU 800")
    parser.add_argument("--width", type=int, help="pixels; by default 640, on a GPU 1344")
    parser.add_argument(
        "--repeats", type=int, help="paired runs after a warm-up, 2 at least; by default 5"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the results into this image")
    parser.add_argument("--json", metavar="FILE", help="write the results into this file")
    parser.add_argument("--from-json", metavar="FILE", help="measure nothing, read the results")
    parser.add_argument("--quick", action="store_true", help="a smoke run of 1 to 2 minutes")
    parser.add_argument("--one-step", metavar="MODEL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = set(args.what) - set(MEASUREMENTS)
    if unknown:
        parser.error(f"unknown measurement {', '.join(sorted(unknown))}")
    if not args.what:
        args.what = [name for name in MEASUREMENTS if name != "gpu" or args.device == "cuda"]
    if args.quick:
        defaults = {"batch": 1, "height": 64, "width": 96, "repeats": 2}
    elif args.device == "cuda":
        defaults = {"batch": 16, "height": 800, "width": 1344, "repeats": 5}
    else:
        defaults = {"batch": 1, "height": 512, "width": 640, "repeats": 5}
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def describe(args: argparse.Namespace) -> dict[str, str]:
    """Say where and of what is measured."""
    cores = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    return {
        "machine": torch.cuda.get_device_name() if args.device == "cuda" else cores,
        "software": f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"detectron2 {detectron2.__version__}, Python {platform.python_version()}",
        "date": datetime.date.today().isoformat(),
        "network": "a small network, a smoke run" if args.quick else "R-50, 80 classes, fp32",
    }


def main() -> None:
    """Measure or read; print a table for each measurement, write and draw what is asked for."""
    args = parse_arguments()
    torch.manual_seed(0)
    if args.one_step:
        print_one_step(args.one_step, args)
        return
    if args.from_json:
        found = json.loads(Path(args.from_json).read_text())
        about, known = found["about"], found["tables"]
        results = (Table(**{**t, "rows": [Row(**row) for row in t["rows"]]}) for t in known)
    else:
        about = describe(args)
        results = (table for name in args.what for table in MEASUREMENTS[name](args))
    print(f"{', '.join(about.values())}.\n")
    tables = []
    for table in results:
        tables.append(table)
        print(table, "\n", flush=True)
        if args.json:  # after each, as a run is long
            values = {"about": about, "tables": [dataclasses.asdict(one) for one in tables]}
            Path(args.json).parent.mkdir(parents=True, exist_ok=True)
            Path(args.json).write_text(json.dumps(values, indent=1))
    if args.plot and draw(tables, about, args.plot):
        print(f"{args.plot} shows the results.")


if __name__ == "__main__":
    main()
