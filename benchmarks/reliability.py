#!/usr/bin/env python
"""What runs that survive cost: memory that stays, and time beside another commit.

    python benchmarks/reliability.py memory                   # about 2 minutes on 2 CPU cores
    python benchmarks/reliability.py time --before 84f04c6    # steps beside those of a commit
    python benchmarks/reliability.py deterministic            # steps with DETERMINISTIC and without

``memory`` is the resident memory of a training and its loader processes together. The other two
train the demo's detector in turn, each time in a process of its own, without evaluation and with
one thread; they count the processor's seconds, on which other programs have less influence.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tabulate import tabulate

from fsaf_d2.data.reading.digits import make_digits

ROOT = Path(__file__).parents[1]
NUM_IMAGES = 40
SMALL = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.RETINANET.NUM_CONVS", "1", "SOLVER.IMS_PER_BATCH", "4"),
    *("SOLVER.CHECKPOINT_PERIOD", "100", "DATALOADER.NUM_WORKERS", "2"),
]
# In a process of its own, whose first argument is the checkout that it imports.
TRAIN = """
import sys, time
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from detectron2.utils.env import seed_all_rng
from fsaf_d2 import load_config
from fsaf_d2.training import Trainer
import fsaf_d2
assert fsaf_d2.__file__.startswith(sys.argv[1]), fsaf_d2.__file__
cfg = load_config(sys.argv[1] + "/configs/demo/digits.yaml", sys.argv[2:])
seed_all_rng(cfg.SEED)
trainer = Trainer(cfg)
trainer.resume_or_load(resume=False)
step, seconds = trainer.run_step, []
def run_step():
    step()
    if (trainer.iter + 1) % 10 == 0:
        print("step", trainer.iter + 1, flush=True)
        sys.stdin.readline()
trainer.run_step = run_step
begin = time.process_time()
trainer.train()
print("seconds", time.process_time() - begin, flush=True)
"""


def start(checkout: Path, folder: Path, *overrides: object) -> subprocess.Popen:
    """Train on digits in ``folder``; the process waits for a line every 10 steps."""
    words = ["MODEL.DEVICE", "cpu", "DATASETS.TEST", "()", "OUTPUT_DIR", folder, *overrides]
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(checkout), *map(str, words)],
        env={**os.environ, "DETECTRON2_DATASETS": str(folder), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def lines_of(process: subprocess.Popen) -> Iterator[tuple[str, float]]:
    """Words of the lines that a training prints, which goes on after each."""
    for line in process.stdout:
        first, _, value = line.partition(" ")
        if first in ("step", "seconds"):
            yield first, float(value)
            process.stdin.write("\n")
            process.stdin.flush()
    if process.wait():
        raise RuntimeError("The training failed; run it by train_net.py to see why.")


def resident_mib(pid: int) -> float:
    """Resident memory of a process and its children, in MiB."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            status = (folder / "status").read_text()
        except OSError:
            continue  # it has ended
        if str(pid) in (parent, folder.name) and "VmRSS:" in status:
            total += int(status.partition("VmRSS:")[2].split()[0])
    return total / 1024


def measure_memory(folder: Path) -> None:
    """Print the memory after 3, 10 and 30 epochs."""
    steps_of_epoch = NUM_IMAGES // 4
    epochs = {steps_of_epoch * n: n for n in (3, 10, 30)}
    overrides = [*SMALL, "SOLVER.MAX_ITER", max(epochs) + 1]
    process, rows = start(ROOT, folder, *overrides), []
    for kind, value in lines_of(process):
        if kind == "step" and value in epochs:
            mib = resident_mib(process.pid)
            rows.append([epochs[value], mib, 100 * (mib / rows[0][1] - 1) if rows else 0.0])
    print(tabulate(rows, ["epochs", "MiB", "more, %"], "github", floatfmt=".1f"))


def measure_time(
    programs: dict[str, tuple[Path, list[str]]], folder: Path, *, steps: int, rounds: int
) -> None:
    """Print the seconds of two programs in turn, and their ratio in each round."""
    seconds = {name: [] for name in programs}
    for _ in range(rounds):
        for name, (checkout, overrides) in programs.items():
            words = ["SOLVER.MAX_ITER", steps, "DATALOADER.NUM_WORKERS", 0, *overrides]
            seconds[name] += [
                value
                for kind, value in lines_of(start(checkout, folder, *words))
                if kind == "seconds"
            ]
    first, second = seconds.values()
    ratios = [later / earlier for earlier, later in zip(first, second)]
    rows = [[name, *times] for name, times in seconds.items()] + [["ratio", *ratios]]
    headers = ["seconds", *(f"round {i + 1}" for i in range(rounds))]
    print(tabulate(rows, headers, "github", floatfmt=".3f"))
    print(f"{steps} steps: {statistics.median(ratios):.3f} of the time (median of the ratios).")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["memory", "time", "deterministic"])
    parser.add_argument("--before", metavar="COMMIT", help="for time: the other checkout")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    counts = {"steps": args.steps, "rounds": args.rounds}
    if args.what == "time" and not args.before:
        parser.error("time needs --before COMMIT")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_digits(folder, num_train=NUM_IMAGES, num_val=2, image_size=256)
        if args.what == "memory":
            measure_memory(folder)
        elif args.what == "deterministic":
            switch = ["DETERMINISTIC", "True", "SEED", "1"]
            measure_time({"without": (ROOT, []), "with": (ROOT, switch)}, folder, **counts)
        else:
            before = folder / "before"
            git = ["git", "-C", str(ROOT), "worktree"]
            subprocess.run([*git, "add", "-q", "--detach", before, args.before], check=True)
            try:
                measure_time({args.before: (before, []), "now": (ROOT, [])}, folder, **counts)
            finally:
                subprocess.run([*git, "remove", "--force", before], check=True)


if __name__ == "__main__":
    main()
