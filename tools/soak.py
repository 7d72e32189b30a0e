#!/usr/bin/env python
"""Kill a training again and again, and check that it ends as one that was left alone.

    python tools/soak.py                # 100 times, about 5 minutes on 2 CPU cores
    python tools/soak.py --kills 10

A small detector is trained on handwritten digits: twice undisturbed, and once with a SIGKILL at
random moments, half of them while a checkpoint is being written, resumed after each. Weights,
optimizer and logged values must be equal bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.env import seed_all_rng

from fsaf_d2 import load_config
from fsaf_d2.data.reading.digits import make_digits
from fsaf_d2.training import Trainer, prepare

CONFIG = Path(__file__).parents[1] / "configs" / "Base-FSAF-small.yaml"
# Seconds until a kill, and steps for each kill, so that some are left at the last one.
LIFE = (0.2, 2.5)
STEPS_PER_KILL = 8
# What the clock decides.
TIMES = {"time", "data_time", "data_share", "eta_seconds", "rank_data_time"}


def build_config(folder: Path, steps: int) -> CfgNode:
    """A network of few channels, small batches, a checkpoint every 4 steps."""
    overrides = {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
        "MODEL.FPN.OUT_CHANNELS": 16,
        "MODEL.RETINANET.NUM_CONVS": 1,
        "MODEL.RETINANET.NUM_CLASSES": 10,
        "DATASETS.TRAIN": "('soak_train',)",
        "DATASETS.TEST": "('soak_val',)",
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TRAIN": "(96, 128)",
        "INPUT.MIN_SIZE_TEST": 128,
        "SEED": 1,
        "DETERMINISTIC": True,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.BASE_LR": 0.001,
        "SOLVER.MAX_ITER": steps,
        "SOLVER.STEPS": f"({steps // 2},)",
        "SOLVER.CHECKPOINT_PERIOD": 4,
        "SOLVER.CHECKPOINTS_TO_KEEP": 3,
        "SOLVER.EMA_DECAY": 0.9,
        "TEST.EVAL_PERIOD": 40,
        # Samples have no state, and a life is too short to draw them.
        "TEST.SAMPLES": 0,
        "TEST.LEVEL_LENS": 4,
        "TEST.BEST_METRIC": "validation/total_loss",
        "OUTPUT_DIR": folder,
    }
    words = [str(word) for pair in overrides.items() for word in pair]
    return load_config(CONFIG, words)


def start(cfg: CfgNode) -> int:
    """Train in a process of its own, from the last checkpoint if there is one: its number."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    status = 1
    try:
        with open(Path(cfg.OUTPUT_DIR).with_suffix(".log"), "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
            seed_all_rng(cfg.SEED)
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=trainer.checkpointer.has_checkpoint())
            trainer.train()
            status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def finish(child: int) -> None:
    """Wait for a process.

    Raises:
        RuntimeError: it failed.
    """
    _, status = os.waitpid(child, 0)
    if status != 0:
        raise RuntimeError(f"A training ended with status {status}; its log says why.")


def disturb(cfg: CfgNode, kills: int, chance: random.Random) -> dict[str, int]:
    """Train with so many kills. Returns how many fell where."""
    where = {"while a checkpoint was written": 0, "elsewhere": 0, "finished before": 0}
    folder = Path(cfg.OUTPUT_DIR)
    for _ in range(kills):
        child = start(cfg)
        aimed = chance.random() < 0.5
        end = time.monotonic() + chance.uniform(*LIFE)
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            writes = any(folder.glob(".*.part"))
            if time.monotonic() > end and (writes or not aimed):
                time.sleep(chance.uniform(0, 0.004) if aimed else 0)
                writes = any(folder.glob(".*.part"))
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                where["while a checkpoint was written" if writes else "elsewhere"] += 1
                break
            time.sleep(0.0002)
        else:
            where["finished before"] += 1
    finish(start(cfg))
    return where


def differences(one: object, other: object, name: str = "") -> Iterator[str]:
    """Names of what is not equal bit for bit in two nested containers."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*map(str, one), *map(str, other)}):
            keys = [next((k for k in x if str(k) == key), None) for x in (one, other)]
            if key in TIMES:
                continue
            if None in keys and key != "None":
                yield f"{name}/{key} (on one side only)"
            else:
                yield from differences(one[keys[0]], other[keys[1]], f"{name}/{key}")
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            yield f"{name} (length)"
        for index, pair in enumerate(zip(one, other)):
            yield from differences(*pair, f"{name}/{index}")
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if not torch.equal(one, other):
            yield name
    elif one != other and not (one != one and other != other):
        yield name


def outcome(folder: Path) -> dict:
    """All that a run leaves: its last checkpoint and its log, without times."""
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    del checkpoint["config"]
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {"checkpoint": checkpoint, "log": lines}


def main() -> None:
    """Read the command line, run, report; exit code 1 if something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the kills' moments")
    parser.add_argument("--keep", metavar="FOLDER", help="leave the runs in this folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start_time = time.monotonic()
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory())
        root = Path(args.keep or temporary)
        root.mkdir(parents=True, exist_ok=True)
        make_digits(root, num_train=40, num_val=8, image_size=128)
        for part in ("train", "val"):
            digits = root / "digits"
            annotations = digits / "annotations" / f"{part}.json"
            register_coco_instances(f"soak_{part}", {}, str(annotations), str(digits / part))
        steps = max(STEPS_PER_KILL * args.kills, 40)
        results = {}
        for name in ("alone", "again", "killed"):
            shutil.rmtree(root / name, ignore_errors=True)
            cfg = build_config(root / name, steps)
            prepare(cfg, eval_only=False)
            cfg.freeze()
            begin = time.monotonic()
            if name == "killed":
                where = disturb(cfg, args.kills, random.Random(args.seed))
            else:
                finish(start(cfg))
            results[name] = outcome(root / name)
            print(f"{name}: {steps} steps in {time.monotonic() - begin:.0f} s", flush=True)
        print("kills " + ", ".join(f"{place}: {count}" for place, count in where.items()))
        failed = False
        for name in ("again", "killed"):
            found = list(differences(results["alone"], results[name]))
            failed = failed or bool(found)
            equal = f"{len(found)} values differ: {found[:10]}" if found else "equal, bit for bit"
            print(f"alone and {name}: {equal}")
    print(f"{time.monotonic() - start_time:.0f} s")
    sys.exit(failed)


if __name__ == "__main__":
    main()
