#!/usr/bin/env python
"""Parameters, peak memory and time of a training step for each backbone and pyramid.

    python benchmarks/backbones.py                  # all, 512 x 512 pixels, about 7 minutes
    python benchmarks/backbones.py hrnet_w18_single_map --height 800 --width 1344

Each row is measured in a process of its own, with random weights and one image of 20 objects.
Memory is what the step takes above the model alone: on the CPU of the whole process, on a GPU as
torch allocates it. The time is that of a second step, forward and backward.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from detectron2.utils.events import EventStorage
from speed import resident_memory
from speed_models import make_batch
from tabulate import tabulate

from fsaf_d2 import load_config
from fsaf_d2.training import Trainer

CONFIGS = Path(__file__).parents[1] / "configs"
SINGLE = "timm/hrnet_w18_single_map_1x"
ANCHOR_FREE = ["MODEL.BRANCHES", "['point']"]
ROWS = {
    "R_50": ("fsaf_R_50_FPN_1x", []),
    "cspresnet50": ("timm/cspresnet50_FPN_1x", []),
    "cspresnext50": ("timm/cspresnext50_FPN_1x", []),
    "cspdarknet53": ("timm/cspdarknet53_FPN_1x", []),
    "hrnet_w18": ("timm/hrnet_w18_FPN_1x", []),
    "hrnet_w32": ("timm/hrnet_w32_FPN_1x", []),
    "hrnet_w18_HRFPN": ("timm/hrnet_w18_HRFPN_1x", []),
    "hrnet_w32_HRFPN": ("timm/hrnet_w32_HRFPN_1x", []),
    "hrnet_w18_HRFPN, anchor-free": ("timm/hrnet_w18_HRFPN_1x", ANCHOR_FREE),
    "hrnet_w18_single_map, stride 4": (SINGLE, []),
    **{
        f"hrnet_w18_single_map, stride {stride}": (
            SINGLE,
            [
                "MODEL.HRFPN.OUT_STRIDES",
                f"[{stride}]",
                "MODEL.RETINANET.IN_FEATURES",
                f"['{name}']",
            ],
        )
        for stride, name in ((2, "p1"), (1, "p0"))
    },
}


def print_step(name: str, args: argparse.Namespace) -> None:
    """Print parameters, peak memory in MiB and seconds of a step."""
    file, words = ROWS[name]
    words = [*words, "MODEL.DEVICE", args.device, "MODEL.WEIGHTS", ""]
    model = Trainer.build_model(load_config(CONFIGS / f"{file}.yaml", words)).train()
    on_gpu, batch = args.device == "cuda", make_batch(20, args)
    before = torch.cuda.memory_allocated() / 2**20 if on_gpu else resident_memory("VmRSS")
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        with EventStorage():
            sum(model(batch).values()).backward()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resident_memory("VmHWM")
    # Those of frozen batch norm are buffers.
    count = sum(
        value.numel()
        for key, value in model.state_dict().items()
        if not key.endswith(("running_mean", "running_var", "num_batches_tracked", "_normalizer"))
    )
    print(count, peak - before, seconds)


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help=f"beginnings of: {'; '.join(ROWS)}")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=default)
    parser.add_argument("--batch", type=int, default=1, help="images")
    parser.add_argument("--height", type=int, default=512, help="pixels")
    parser.add_argument("--width", type=int, default=512, help="pixels")
    parser.add_argument("--one-step", metavar="ROW", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one_step:
        print_step(args.one_step, args)
        return
    chosen = [x for x in ROWS if not args.rows or x.startswith(tuple(args.rows))]
    if not chosen:
        parser.error(f"no row begins so: {', '.join(ROWS)}")
    table = []
    for name in chosen:
        command = [sys.executable, __file__, "--one-step", name]
        for option in ("device", "batch", "height", "width"):
            command += [f"--{option}", str(getattr(args, option))]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            sys.exit(result.stderr)
        count, peak, seconds = map(float, result.stdout.split()[-3:])
        table.append([name, f"{int(count):,}", f"{peak:.0f}", f"{1000 * seconds:.0f}"])
    title = f"{args.batch} x {args.height} x {args.width}, {args.device}"
    headers = [title, "parameters", "MiB above the model", "ms"]
    print(tabulate(table, headers=headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
