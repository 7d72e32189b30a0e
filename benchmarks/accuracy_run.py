"""One run of accuracy.py, a process of its own: train, or go on where it was killed; evaluate."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import subprocess
import time
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from fsaf_d2 import load_config
from fsaf_d2.training import SafeCheckpointer, Trainer, load_weights, prepare
from fsaf_d2.visualization.training_curves import read_metrics

# The last part of a training, in which the levels that objects select are counted.
LATE = 0.2
ROOT = Path(__file__).parents[1]


def train(cfg: CfgNode) -> None:
    """Train to ``OUTPUT_DIR/model_final.pth``, from the newest checkpoint there if there is one."""
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED)
    cfg = cfg.clone()
    if not cfg.TEST.EVAL_PERIOD:
        # The evaluation at the end comes after training, by itself.
        cfg.DATASETS.TEST = ()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=trainer.checkpointer.has_checkpoint())
    trainer.train()


def evaluate(cfg: CfgNode, weights: Path) -> dict:
    """Everything that ``Trainer.test`` says of these weights."""
    model = Trainer.build_model(cfg)
    load_weights(SafeCheckpointer(model), str(weights), resume=False)
    return Trainer.test(cfg, model)


def late_levels(records: list[dict], num_steps: int) -> dict[str, int]:
    """Count the objects that selected each level, in the logged batches of the last steps.

    Args:
        records: of ``metrics.json``, see :func:`read_metrics`.
        num_steps: of the whole training.

    Returns:
        level name to objects; empty without an anchor-free branch.
    """
    late = _late(records, "num_objects_", num_steps)
    return {name: round(sum(values)) for name, values in late.items()}


def late_lens(records: list[dict], num_steps: int) -> dict[str, float]:
    """Average what was logged in the last steps of how levels are selected.

    Args:
        records: of ``metrics.json``.
        num_steps: of the whole training.

    Returns:
        name to mean, such as ``flip_rate``; empty where nothing is evaluated during training.
    """
    late = _late(records, "level_lens/", num_steps)
    return {name: sum(values) / len(values) for name, values in late.items()}


def _late(records: list[dict], prefix: str, num_steps: int) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for record in records:
        if record["iteration"] + 1 > (1 - LATE) * num_steps:
            for key, value in record.items():
                if key.startswith(prefix):
                    values.setdefault(key.removeprefix(prefix), []).append(value)
    return values


def training_minutes(records: list[dict], num_steps: int) -> float | None:
    """Minutes that the steps took, those of a run in several parts included.

    ``time`` in ``metrics.json`` is seconds a step, the median of the last 20; evaluation, set-up
    and the start of the loader are not in it.
    """
    seconds = [record["time"] for record in records if "time" in record]
    return sum(seconds) / len(seconds) * num_steps / 60 if seconds else None


def without_nan(value: object) -> object:
    """Replace what JSON cannot hold, such as the AP of a size that no object has, by None."""
    if isinstance(value, dict):
        return {str(key): without_nan(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def commit() -> str | None:
    """The commit that ran, with a "+" where files differ from it; None outside of git."""
    git = ["git", "-C", str(ROOT)]
    try:
        name = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return name + "+" * bool(changed)


def main() -> None:
    """Do what the job file says, and write what came of it beside it as ``result.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=Path, help="job.json: what accuracy.py wants to know")
    args = parser.parse_args()
    job = json.loads(args.job.read_text())
    folder = args.job.parent
    setup_logger(name="detectron2", output=str(folder / "log.txt"))
    setup_logger(name="fvcore", output=str(folder / "log.txt"))

    options = ["SEED", str(job["seed"]), "OUTPUT_DIR", str(folder)]
    cfg = load_config(job["config"], [*job["overrides"], *job["options"], *options])
    prepare(cfg, eval_only=bool(job["weights"]))
    weights = Path(job["weights"] or folder / "model_final.pth")
    started = commit()
    if not weights.is_file():
        train(cfg)
    start = time.monotonic()
    metrics = evaluate(cfg, weights)
    minutes = (time.monotonic() - start) / 60

    metrics_file = folder / "metrics.json"
    records = read_metrics(metrics_file) if metrics_file.is_file() else []
    result = {
        **job,
        "steps": cfg.SOLVER.MAX_ITER,
        "batch": cfg.SOLVER.IMS_PER_BATCH,
        "minutes": training_minutes(records, cfg.SOLVER.MAX_ITER),
        "evaluation_minutes": minutes,
        "metrics": without_nan(metrics),
        "late_levels": late_levels(records, cfg.SOLVER.MAX_ITER),
        "late_lens": late_lens(records, cfg.SOLVER.MAX_ITER),
        "commit": started,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cfg.MODEL.DEVICE == "cuda" else "cpu",
        "torch": str(torch.__version__),
        "date": datetime.date.today().isoformat(),
    }
    unfinished = folder / "result.json.unfinished"
    unfinished.write_text(json.dumps(result) + "\n")
    os.replace(unfinished, folder / "result.json")


if __name__ == "__main__":
    main()
