#!/usr/bin/env python
"""Train a grid of rows x seeds on a data set, and compare the rows with error bars.

    python benchmarks/accuracy.py --data digits --seeds 1 2 3 --jobs 2

A run that is finished is not repeated, one that was interrupted goes on from its last checkpoint:
the same command again ends the grid. benchmarks/README.md has the rows and more examples.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from accuracy_report import draw, report
from accuracy_resampling import predictions_of, resampled_ap, resampled_counts
from accuracy_rows import BASELINE, DATA, GROUPS, ROWS
from accuracy_sizes import ap_by_side, table_by_side
from detectron2.data import MetadataCatalog

from fsaf_d2 import load_config
from fsaf_d2.data.reading.builtin import data_root
from fsaf_d2.data.reading.digits import make_digits
from fsaf_d2.demo import NUM_TRAIN, NUM_VAL
from fsaf_d2.evaluation.ground_truth import read_ground_truth
from fsaf_d2.evaluation.prediction_files import read_predictions

HERE = Path(__file__).parent
# The exit code of a training that a signal stopped, too.
STOPPED = 75
# The smoke test: nothing is learnt in it.
QUICK = (
    *("SOLVER.MAX_ITER", "8", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "5"),
    *("SOLVER.WARMUP_ITERS", "1", "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.RETINANET.NUM_CONVS", "1"),
    *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
)


def jobs_of(args: argparse.Namespace) -> Iterator[dict]:
    """Yield the runs of the grid, the rows in the order of the command line."""
    data = DATA[args.data]
    for name in args.rows:
        row = ROWS[name]
        config = str(args.config_file or HERE.parent / (row.config_file or data.config_file))
        for seed in args.seeds:
            weights = ""
            if row.weights_of:
                weights = str(folder_of(args, row.weights_of, seed) / "model_final.pth")
            yield {
                "data": args.data,
                "row": name,
                "seed": seed,
                "config": config,
                "overrides": [*data.overrides, *row.overrides],
                "options": list(args.options),
                "weights": weights,
            }


def folder_of(args: argparse.Namespace, row: str, seed: int) -> Path:
    """Where a run leaves its checkpoints, log and result."""
    return args.output / args.data / row / f"seed{seed}"


def finished(folder: Path, job: dict) -> dict | None:
    """The result of a run that is complete.

    Raises:
        ValueError: the folder holds a run of other settings, complete or begun.
    """
    file = folder / "result.json"
    found = [path for path in (file, folder / "job.json") if path.is_file()]
    for path in found:
        of_run = json.loads(path.read_text())
        # Of the config the name alone: the checkout may have moved.
        for key, same in (
            ("config", _same_name),
            ("overrides", list.__eq__),
            ("options", list.__eq__),
        ):
            if not same(of_run[key], job[key]):
                raise ValueError(
                    f"'{folder}' holds a run with {key} {of_run[key]}, not {job[key]}: choose "
                    "another --output, or remove that folder."
                )
    return json.loads(file.read_text()) if file in found else None


def _same_name(path: str, other: str) -> bool:
    return Path(path).name == Path(other).name


class Queue:
    """Runs jobs as processes, so many at a time."""

    def __init__(self, args: argparse.Namespace, results: Path) -> None:
        """
        Args:
            args: of the command line.
            results: the file that gets a line for each run.
        """
        self._args = args
        self._results = results
        self._running: list[tuple[subprocess.Popen, dict, float]] = []
        self.failed: list[dict] = []

    def run(self, jobs: Sequence[dict]) -> None:
        """Run all jobs; one that fails does not keep the others from running."""
        waiting = list(jobs)
        try:
            while waiting or self._running:
                ready = [job for job in waiting if self._ready(job)]
                while ready and len(self._running) < self._args.jobs:
                    job = ready.pop(0)
                    waiting.remove(job)
                    self._start(job)
                if not self._running and waiting:
                    # Their weights come from runs that failed or are not of this grid.
                    for job in waiting:
                        print(f"failed: {_name(job)}: there are no weights '{job['weights']}'")
                    self.failed += waiting
                    return
                time.sleep(0.2)
                self._collect()
        finally:
            for process, _, _ in self._running:
                process.terminate()
            for process, _, _ in self._running:
                process.wait()

    def _ready(self, job: dict) -> bool:
        return not job["weights"] or (Path(job["weights"]).parent / "result.json").is_file()

    def _start(self, job: dict) -> None:
        folder = folder_of(self._args, job["row"], job["seed"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "job.json").write_text(json.dumps(job) + "\n")
        threads = str(self._args.threads)
        with open(folder / "output.txt", "a") as output:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "accuracy_run.py"), str(folder / "job.json")],
                env={**os.environ, "OMP_NUM_THREADS": threads},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        print(f"started: {_name(job)}, log in {folder}", flush=True)
        self._running.append((process, job, time.monotonic()))

    def _collect(self) -> None:
        for entry in list(self._running):
            process, job, start = entry
            if process.poll() is None:
                continue
            self._running.remove(entry)
            folder = folder_of(self._args, job["row"], job["seed"])
            if process.returncode or not (result := finished(folder, job)):
                last = (folder / "output.txt").read_text().strip().splitlines()[-1:]
                print(f"failed: {_name(job)}: {' '.join(last)}", flush=True)
                self.failed.append(job)
                continue
            _append(self._results, result)
            if not self._args.keep_checkpoints:
                _remove_checkpoints(folder)
            minutes = (time.monotonic() - start) / 60
            ap = result["metrics"]["bbox"]["AP"]
            ap = "none" if ap is None else f"{ap:.1f}"
            print(f"done: {_name(job)}: AP {ap}, {minutes:.1f} minutes", flush=True)


def _name(job: dict) -> str:
    return f"{job['data']} {job['row']} seed {job['seed']}"


def _append(results: Path, result: dict) -> None:
    with open(results, "a") as file:
        file.write(json.dumps(result) + "\n")


def _remove_checkpoints(folder: Path) -> None:
    for path in folder.glob("model_*.pth"):
        if path.name != "model_final.pth":
            path.unlink()


def read_results(results: Path) -> dict[tuple[str, int], dict]:
    """Read the results file: (row, seed) to its last line; a line cut off is left out."""
    found = {}
    for line in results.read_text().splitlines() if results.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[record["row"], record["seed"]] = record
    return found


def make_data(args: argparse.Namespace) -> None:
    """Make the digits where they are missing, once for all runs."""
    if args.data != "digits":
        return
    cfg = load_config(args.config_file or HERE.parent / DATA["digits"].config_file, args.options)
    if args.quick:
        # Of its own, as another size would replace data that are there.
        shutil.rmtree(args.output / "datasets", ignore_errors=True)
        os.environ["DETECTRON2_DATASETS"] = str(args.output / "datasets")
    sizes = (8, 4) if args.quick else (NUM_TRAIN, NUM_VAL)
    make_digits(
        data_root(), num_train=sizes[0], num_val=sizes[1], image_size=cfg.INPUT.MIN_SIZE_TEST
    )


def with_predictions(
    args: argparse.Namespace, jobs: list[dict]
) -> Iterator[tuple[dict, Path, Path]]:
    """Yield the jobs whose predictions and annotations are there, with the two files."""
    for job in jobs:
        file = predictions_of(folder_of(args, job["row"], job["seed"]))
        truth_file = file and Path(MetadataCatalog.get(file.parent.name).get("json_file", ""))
        if truth_file and truth_file.is_file():
            yield job, truth_file, file


def resampled_runs(args: argparse.Namespace, jobs: list[dict]) -> dict:
    """Row and seed to AP of resampled test images, of runs with predictions and images."""
    found = {}
    for job, truth_file, file in with_predictions(args, jobs):
        truth = read_ground_truth(truth_file)
        found[job["row"], job["seed"]] = resampled_ap(
            truth,
            read_predictions(file, truth),
            resampled_counts(len(truth.image_ids)),
            max_detections=load_config(
                job["config"], [*job["overrides"], *job["options"]]
            ).TEST.DETECTIONS_PER_IMAGE,
        )
    return found


def argument_parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", choices=DATA, default="digits")
    rows = [*GROUPS, *ROWS]
    add("--rows", nargs="+", choices=rows, default=["table-1"], metavar="ROW", help=", ".join(rows))
    add("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N")
    add("--jobs", type=int, default=1, metavar="N", help="so many runs at a time")
    add("--threads", type=int, default=1, metavar="N", help="of each run (OMP_NUM_THREADS)")
    add("--output", type=Path, metavar="FOLDER", help="by default output/accuracy")
    add("--baseline", choices=ROWS, metavar="ROW", help=f"by default {BASELINE}, else the first")
    add("--config-file", type=Path, metavar="FILE", help="in place of the data set's")
    add("--sides", nargs="+", type=float, metavar="PX", help="AP between these sizes of objects")
    add("--plot", type=Path, metavar="FILE", help="by default FOLDER/DATA.png")
    add("--report", action="store_true", help="of the runs that there are; nothing is trained")
    add("--keep-checkpoints", action="store_true", help="beside the final weights")
    add("--quick", action="store_true", help="a smoke test of a few steps on a few digits")
    add("options", nargs="*", metavar="KEY VALUE", help="for the config of all rows")
    return parser


def main() -> int:
    """Run what is missing, then print the tables and draw."""
    args = argument_parser().parse_intermixed_args()
    args.rows = [name for row in args.rows for name in GROUPS.get(row, [row])]
    name = "accuracy-quick" if args.quick else "accuracy"
    args.output = (args.output or Path("output") / name).resolve()
    if args.quick:
        args.options = [*QUICK, *args.options]
    args.output.mkdir(parents=True, exist_ok=True)
    results = args.output / f"{args.data}.jsonl"
    jobs = list(jobs_of(args))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed: list[dict] = []
    try:
        done = [finished(folder_of(args, job["row"], job["seed"]), job) for job in jobs]
    except ValueError as error:
        sys.exit(f"accuracy: error: {error}")
    known = read_results(results)
    for result in done:
        # A run may end after the program that started it.
        if result and (result["row"], result["seed"]) not in known:
            _append(results, result)
    if not args.report:
        missing = [job for job, result in zip(jobs, done) if result is None]
        print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are done.", flush=True)
        make_data(args)
        queue = Queue(args, results)
        try:
            queue.run(missing)
        except KeyboardInterrupt:
            print("Stopped: the same command goes on from here.")
            return STOPPED
        failed = queue.failed
    known = read_results(results)
    jobs = [job for job in jobs if (job["row"], job["seed"]) in known]
    records = [known[job["row"], job["seed"]] for job in jobs]
    if not records:
        print("No run is done.")
        return 1
    baseline = args.baseline or (BASELINE if BASELINE in args.rows else args.rows[0])
    print(report(records, args.rows, baseline, resampled_runs(args, jobs)))
    if args.sides:
        by_side = {
            (job["row"], job["seed"]): ap_by_side(truth_file, file, sorted(args.sides))
            for job, truth_file, file in with_predictions(args, jobs)
        }
        print("\nAP by the side of the objects (root of the area, px), mean over the seeds.\n")
        print(table_by_side(by_side, args.rows, sorted(args.sides)))
    plot = args.plot or args.output / f"{args.data}.png"
    draw(records, args.rows, baseline, plot)
    print(f"\n{results}  a line for each run\n{plot}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
