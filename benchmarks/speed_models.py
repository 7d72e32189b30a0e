"""The models, inputs, programs and tables that the speed measurements share."""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tabulate import tabulate

from fsaf_d2 import load_config
from fsaf_d2.training import Trainer

CONFIG = Path(__file__).parents[1] / "configs" / "fsaf_R_50_FPN_1x.yaml"
BASELINE = "RetinaNet (detectron2)"
FCOS_NAME = "FCOS (detectron2)"
# What detectron2 trains with.
PLAIN = ["SOLVER.FUSED", "False", "MODEL.CHANNELS_LAST", "False"]
MODELS = {
    BASELINE: ["MODEL.META_ARCHITECTURE", "RetinaNet", *PLAIN],
    "joint": [],
    "anchor-free only": ["MODEL.BRANCHES", "['point']"],
    "anchors only": ["MODEL.BRANCHES", "['anchor']"],
    FCOS_NAME: PLAIN,
}
# A network so small that a smoke run is short, also where it is compiled.
QUICK = [
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.RETINANET.NUM_CONVS", "1"),
]
Program = Callable[[], None]


@dataclasses.dataclass
class Row:
    """What was measured of one program, and its ratio to the first one's."""

    name: str
    value: float  # the median
    ratio: float  # the median
    low: float | None = None  # quartiles of the ratio; None if measured once
    high: float | None = None
    more: dict[str, float | None] = dataclasses.field(default_factory=dict)  # further columns


@dataclasses.dataclass
class Table:
    """One measurement under one condition."""

    measurement: str
    title: str
    rows: list[Row]
    at: dict[str, int]  # batch, height and width in pixels, objects
    unit: str = "ms"

    def __str__(self) -> str:
        """The table in markdown."""
        more = list(dict.fromkeys(column for row in self.rows for column in row.more))
        cells = [
            [
                row.name,
                f"{row.value:.1f}",
                f"{row.ratio:.3g}",
                "" if row.low is None else f"{row.low:.3g} to {row.high:.3g}",
                *(_number(row.more.get(column)) for column in more),
            ]
            for row in self.rows
        ]
        headers = [self.title, self.unit, "ratio", "quartiles", *more]
        return tabulate(cells, headers=headers, tablefmt="github", disable_numparse=True)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def size_of(args: argparse.Namespace, **more: int) -> dict[str, int]:
    """The condition of a table."""
    return {"batch": args.batch, "height": args.height, "width": args.width, **more}


def config(args: argparse.Namespace, overrides: Sequence[str] = ()) -> CfgNode:
    """Read the config of a detector without trained weights, whose scores all pass."""
    return load_config(
        CONFIG,
        [
            *("MODEL.DEVICE", args.device, "MODEL.WEIGHTS", ""),
            *("MODEL.PIXEL_STD", "[64.0, 64.0, 64.0]", "SOLVER.BASE_LR", "1e-9"),
            *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"),
            *(QUICK if args.quick else []),
            *overrides,
        ],
    )


def build(name: str, args: argparse.Namespace, switches: Sequence[str] = ()) -> torch.nn.Module:
    """Build a detector with random weights.

    Args:
        name: a key of MODELS.
        args: the command line.
        switches: further keys and values of the config.
    """
    cfg = config(args, [*MODELS[name], *switches])
    return build_fcos(cfg) if name == FCOS_NAME else Trainer.build_model(cfg)


def build_fcos(cfg: CfgNode) -> torch.nn.Module:
    """detectron2's FCOS on the same backbone; it cannot be built from a yaml config."""
    from detectron2.modeling.backbone import build_backbone
    from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead

    backbone = build_backbone(cfg)
    shapes = [backbone.output_shape()[name] for name in cfg.MODEL.RETINANET.IN_FEATURES]
    convs = [shapes[0].channels] * cfg.MODEL.RETINANET.NUM_CONVS
    model = FCOS(
        backbone=backbone,
        head=FCOSHead(input_shape=shapes, num_classes=80, conv_dims=convs),
        head_in_features=cfg.MODEL.RETINANET.IN_FEATURES,
        num_classes=80,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        test_score_thresh=0.0,
    )
    return model.to(cfg.MODEL.DEVICE)


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


def training(
    name: str,
    args: argparse.Namespace,
    batch: list[dict],
    switches: Sequence[str] = (),
    *,
    amp: bool = False,
) -> tuple[Program, Program]:
    """Build a model and its optimizer, as ``train_net.py`` does.

    Args:
        name: a key of MODELS.
        args: the command line.
        batch: to train with.
        switches: further keys and values of the config.
        amp: as detectron2's AMPTrainer does it: float16 with a scaled loss.

    Returns:
        a whole training step, and its forward and backward pass alone.
    """
    model = build(name, args, switches).train()
    optimizer = Trainer.build_optimizer(config(args, switches), model)
    scaler = torch.amp.GradScaler(args.device, enabled=amp)

    def forward_backward() -> None:
        with EventStorage(), torch.autocast(args.device, torch.float16, enabled=amp):
            loss = sum(model(batch).values())
        scaler.scale(loss).backward()

    def step() -> None:
        forward_backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step, forward_backward


def detecting(
    name: str,
    args: argparse.Namespace,
    batch: list[dict],
    switches: Sequence[str] = (),
    *,
    dtype: torch.dtype | None = None,
) -> Program:
    """Build a model and give the program that detects with it, under autocast to ``dtype``."""
    model = build(name, args, switches).eval()

    def detect() -> None:
        with torch.no_grad(), torch.autocast(args.device, dtype, enabled=dtype is not None):
            model(batch)

    return detect


def paired(programs: dict[str, Program], args: argparse.Namespace) -> list[Row]:
    """Run programs in turn, ``args.repeats`` times after a warm-up. Times are in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for repeat in range(args.repeats + 1):
        for name, program in programs.items():
            synchronize(args.device)
            start = time.perf_counter()
            program()
            synchronize(args.device)
            if repeat > 0:  # the first one warms up
                times[name].append((time.perf_counter() - start) * 1e3)
    base = next(iter(times.values()))
    rows = []
    for name, own in times.items():
        ratios = [mine / other for mine, other in zip(own, base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        spread = (None, None) if own is base else (low, high)
        rows.append(Row(name, statistics.median(own), middle, *spread))
    return rows


def synchronize(device: str) -> None:
    """Wait until a GPU has done all it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
