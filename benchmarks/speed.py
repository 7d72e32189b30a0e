#!/usr/bin/env python
"""Compare our detectors with detectron2's RetinaNet and FCOS: time, memory, cost of many objects.

    python benchmarks/speed.py                      # every measurement
    python benchmarks/speed.py step losses          # some of: step losses inference memory
    python benchmarks/speed.py --device cuda --batch 2 --height 800 --width 1344

Programs are measured in turn in one run and compared pair by pair: what is printed is the median
time of each and the median and the quartiles of its ratio to detectron2's RetinaNet. Weights are
random, pictures noise, and scores dense; only the time is of interest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tabulate import tabulate

from fsaf_d2 import load_config

CONFIG = Path(__file__).parents[1] / "configs" / "fsaf_R_50_FPN_1x.yaml"
BASELINE = "RetinaNet (detectron2)"
MODELS = {
    BASELINE: ["MODEL.META_ARCHITECTURE", "RetinaNet"],
    "joint": [],
    "anchor-free only": ["MODEL.FSAF.ANCHOR_BRANCH", "False"],
    "anchors only": ["MODEL.FSAF.ANCHOR_FREE_BRANCH", "False"],
    "FCOS (detectron2)": ["MODEL.META_ARCHITECTURE", "FCOS"],
}
OBJECT_COUNTS = (1, 20, 100, 500, 2000)


def build(name: str, args: argparse.Namespace) -> torch.nn.Module:
    """Build a detector with random weights."""
    if name.startswith("FCOS"):
        return build_fcos(args)
    return build_model(load_config(CONFIG, base_overrides(args) + MODELS[name]))


def base_overrides(args: argparse.Namespace) -> list[str]:
    return [
        *(
            "MODEL.DEVICE",
            args.device,
            "MODEL.WEIGHTS",
            "",
            "MODEL.PIXEL_STD",
            "[64.0, 64.0, 64.0]",
        ),
        # All scores pass, as they do in the worst case.
        *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
    ]


def build_fcos(args: argparse.Namespace) -> torch.nn.Module:
    """detectron2's FCOS on the same backbone; it cannot be built from a yaml config."""
    from detectron2.modeling.backbone import build_backbone
    from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead

    cfg: CfgNode = load_config(CONFIG, base_overrides(args))
    backbone = build_backbone(cfg)
    shapes = [backbone.output_shape()[name] for name in cfg.MODEL.RETINANET.IN_FEATURES]
    head = FCOSHead(input_shape=shapes, num_classes=80, conv_dims=[256] * 4)
    model = FCOS(
        backbone=backbone,
        head=head,
        head_in_features=cfg.MODEL.RETINANET.IN_FEATURES,
        num_classes=80,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        test_score_thresh=0.0,
    )
    return model.to(args.device)


def make_batch(num_objects: int, args: argparse.Namespace) -> list[dict]:
    """Noise with boxes of 8 to 256 pixels."""
    generator = torch.Generator().manual_seed(num_objects)
    limits = torch.tensor([args.width, args.height])
    batch = []
    for _ in range(args.batch):
        centers = torch.rand(num_objects, 2, generator=generator) * limits
        halves = 2 ** (torch.rand(num_objects, 2, generator=generator) * 5 + 2)
        corners = torch.cat(
            [(centers - halves).clamp(min=0), (centers + halves).minimum(limits)], 1
        )
        truth = Instances((args.height, args.width))
        truth.gt_boxes = Boxes(corners)
        truth.gt_classes = torch.randint(80, (num_objects,), generator=generator)
        image = torch.randint(0, 256, (3, args.height, args.width), generator=generator).float()
        batch.append({"image": image, "instances": truth})
    return batch


def paired(programs: dict[str, Callable[[], None]], args: argparse.Namespace) -> list[list[str]]:
    """Run programs in turn. Returns a row (name, ms, ratio, quartiles) for each."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for repeat in range(args.repeats + 1):
        for name, program in programs.items():
            synchronize(args.device)
            start = time.perf_counter()
            program()
            synchronize(args.device)
            if repeat > 0:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, times in seconds.items():
        ratios = [time / base for time, base in zip(times, seconds[BASELINE], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        spread = "" if name == BASELINE else f"{low:.2f} to {high:.2f}"
        milliseconds = statistics.median(times) * 1e3
        rows.append([name, f"{milliseconds:.1f}", f"{statistics.median(ratios):.2f}", spread])
    return rows


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure_step(args: argparse.Namespace) -> Iterator[tuple[str, list]]:
    """A training step: forward, backward, SGD."""
    batch = make_batch(20, args)
    programs = {}
    for name in MODELS:
        model = build(name, args).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)

        def step(model=model, optimizer=optimizer) -> None:
            with EventStorage():
                losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()

        programs[name] = step
    yield "training step, 20 objects a picture", paired(programs, args)


def head_outputs(model: torch.nn.Module, batch: list[dict]):
    """Features without values, and predictions as dense as an untrained head's, for the losses."""
    images = model.preprocess_image(batch)
    with torch.no_grad():
        pyramid = model.backbone(images.tensor)
        features = [pyramid[name] for name in model.head_in_features]
        predictions = model.head(features)
    leaves = [
        [torch.randn_like(x).sub_(3 * (index % 2 == 0)).requires_grad_() for x in levels]
        for index, levels in enumerate(predictions)
    ]
    for levels in leaves[3:4]:
        for level in levels:
            level.data.relu_()
    kind = type(predictions)
    return images, features, kind(*leaves) if hasattr(kind, "_fields") else tuple(leaves)


def measure_losses(args: argparse.Namespace) -> Iterator[tuple[str, list]]:
    """Matching and losses alone, forward and backward, against the number of objects."""
    models = {name: build(name, args).train() for name in MODELS if "FCOS" not in name}
    for count in OBJECT_COUNTS:
        batch = make_batch(count, args)
        programs = {}
        for name, model in models.items():
            images, features, predictions = head_outputs(model, batch)
            truth = [item["instances"].to(args.device) for item in batch]

            def losses(model=model, inputs=(images, features, predictions, truth)) -> None:
                with EventStorage():
                    loss = sum(model.forward_training(*inputs).values())
                loss.backward()
                for levels in inputs[2]:
                    for level in levels:
                        level.grad = None

            programs[name] = losses
        yield f"matching and losses, forward and backward, {count} objects", paired(programs, args)


def measure_inference(args: argparse.Namespace) -> Iterator[tuple[str, list]]:
    """Inference whole, and its post-processing alone, on dense scores."""
    batch = make_batch(1, args)
    whole, post = {}, {}
    for name in MODELS:
        model = build(name, args).eval()
        # The gradient-free copies keep the scores of an untrained head from being all alike.
        outputs = head_outputs(model, batch)

        def detect(model=model) -> None:
            with torch.no_grad():
                model(batch)

        def post_process(model=model, outputs=outputs) -> None:
            with torch.no_grad():
                kind = type(outputs[2])
                copies = [[level.detach().clone() for level in levels] for levels in outputs[2]]
                copies = kind(*copies) if hasattr(kind, "_fields") else tuple(copies)
                model.forward_inference(outputs[0], outputs[1], copies)

        whole[name], post[name] = detect, post_process
    yield "inference with post-processing, dense scores", paired(whole, args)
    yield "post-processing alone, dense scores", paired(post, args)


def measure_memory(args: argparse.Namespace) -> Iterator[tuple[str, list]]:
    """Peak memory of a training step, each model in a process of its own."""
    rows = []
    for name in MODELS:
        command = [sys.executable, __file__, "--one-step", name]
        for option in ("device", "batch", "height", "width"):
            command += [f"--{option}", str(getattr(args, option))]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append((name, float(result.stdout.split()[-1])))
    base = dict(rows)[BASELINE]
    yield (
        "peak memory of a training step, 20 objects a picture (MiB)",
        [[name, f"{peak:.0f}", f"{peak / base:.2f}", ""] for name, peak in rows],
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


MEASUREMENTS = {
    "step": measure_step,
    "losses": measure_losses,
    "inference": measure_inference,
    "memory": measure_memory,
}


def main() -> None:
    """Read the command line, measure, print a table for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", help=f"some of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=1, help="pictures")
    parser.add_argument("--height", type=int, default=512, help="pixels")
    parser.add_argument("--width", type=int, default=640, help="pixels")
    parser.add_argument("--repeats", type=int, default=5, help="paired runs after a warm-up")
    parser.add_argument("--one-step", metavar="MODEL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.one_step:
        print_one_step(args.one_step, args)
        return
    unknown = set(args.what) - set(MEASUREMENTS)
    if unknown:
        parser.error(f"unknown measurement {', '.join(sorted(unknown))}")
    device = (
        torch.cuda.get_device_name() if args.device == "cuda" else f"{os.cpu_count()} CPU cores"
    )
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, fp32,")
    print(f"{args.batch} x 3 x {args.height} x {args.width}, R-50, 80 classes\n")
    for name in args.what or MEASUREMENTS:
        for title, rows in MEASUREMENTS[name](args):
            headers = [title, "MiB" if "memory" in title else "ms", "ratio", "quartiles"]
            print(tabulate(rows, headers=headers, tablefmt="github"), "\n", flush=True)


if __name__ == "__main__":
    main()
