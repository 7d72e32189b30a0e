"""What counts on a GPU: images a second, memory, waits of the CPU, share of the card's peak.

On the CPU it runs too, for a test, and leaves out what a CPU has not.
"""

from __future__ import annotations

import argparse
import contextlib
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch
from speed_models import (
    BASELINE,
    Program,
    Table,
    detecting,
    make_batch,
    paired,
    size_of,
    training,
)
from torch.utils.flop_counter import FlopCounterMode


class Peaks(NamedTuple):
    """Dense matrix products of a card, in TFLOP/s, from its maker's data sheet."""

    half: float  # bf16; fp16 where a card has no bf16
    tf32: float
    fp32: float


# By a part of the card's name; the first that fits.
CARDS = {
    "H100 PCIe": Peaks(756, 378, 51),
    "H100 NVL": Peaks(835, 417.5, 60),
    "H100": Peaks(989, 494.5, 67),
    "H200": Peaks(989, 494.5, 67),
    "A100": Peaks(312, 156, 19.5),
    "L40S": Peaks(362, 183, 91.6),
    "L4": Peaks(121, 60, 30.3),
    "T4": Peaks(65, 8.1, 8.1),
    "RTX 4090": Peaks(165.2, 82.6, 82.6),
}

BF16 = ["SOLVER.BFLOAT16", "True"]
NOT_CHANNELS_LAST = ["MODEL.CHANNELS_LAST", "False"]
COMPILE = ["MODEL.COMPILE", "True"]


class Case(NamedTuple):
    """A model, and how it computes."""

    name: str
    precision: str  # a field of Peaks
    switches: list[str] = []
    dtype: torch.dtype | None = None  # of autocast


# float32 convolutions in TF32 are torch's default, float32 matrix products in TF32 are not.
CASES = {
    "RetinaNet, fp32 (TF32 convolutions)": Case(BASELINE, "tf32"),
    "RetinaNet, detectron2's AMP (fp16)": Case(BASELINE, "half", dtype=torch.float16),
    "joint, fp32 (TF32 convolutions)": Case("joint", "tf32"),
    "joint, fp32 without TF32": Case("joint", "fp32"),
    "joint, bf16": Case("joint", "half", BF16, torch.bfloat16),
    "joint, bf16, not channels_last": Case(
        "joint", "half", BF16 + NOT_CHANNELS_LAST, torch.bfloat16
    ),
    "joint, bf16, compiled": Case("joint", "half", BF16 + COMPILE, torch.bfloat16),
}


def measure_gpu(args: argparse.Namespace) -> Iterator[Table]:
    """Training and inference in every precision; the ratio is of times, to RetinaNet in fp32."""
    peaks = card_peaks(args.device)
    if args.device == "cuda" and peaks is None:
        print(f"The peak of {torch.cuda.get_device_name()} is not known here: no share of it.\n")
    batch = make_batch(20, args)
    steps, passes = {}, {}
    for title, case in CASES.items():
        amp = case.dtype is torch.float16
        programs = training(case.name, args, batch, case.switches, amp=amp)
        steps[title], passes[title] = (with_precision(case, program) for program in programs)
    yield gpu_table("training step, 20 objects an image", steps, passes, peaks, args)
    steps.clear()
    passes.clear()

    detections = {
        title: with_precision(
            case, detecting(case.name, args, batch, case.switches, dtype=case.dtype)
        )
        for title, case in CASES.items()
    }
    yield gpu_table(
        "inference with post-processing, dense scores", detections, detections, peaks, args
    )


def with_precision(case: Case, program: Program) -> Program:
    """Let the program compute without TF32 if its case says so."""
    if case.precision != "fp32":
        return program

    def run() -> None:
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            program()
        finally:
            torch.backends.cudnn.allow_tf32 = before

    return run


def gpu_table(
    title: str,
    programs: dict[str, Program],
    passes: dict[str, Program],
    peaks: Peaks | None,
    args: argparse.Namespace,
) -> Table:
    """Time the programs, and measure all else.

    Args:
        title: of the table.
        programs: to be timed.
        passes: of them, what waits and floating point operations are counted in: an optimizer has
            few of these, and a GradScaler waits by design.
        peaks: of the card, if known.
        args: the command line.
    """
    rows = paired(programs, args)
    flops: dict[str, int] = {}
    for row in rows:
        case = CASES[row.name]
        memory = peak_memory(programs[row.name], args.device)
        if case.name not in flops:
            flops[case.name] = count_flops(passes[row.name])
        rate = flops[case.name] / row.value / 1e9
        row.more = {
            "images/s": args.batch / row.value * 1e3,
            "MiB above the weights": memory,
            "host syncs": count_syncs(passes[row.name], args.device),
            "TFLOP/s": rate,
            "% of peak": 100 * rate / getattr(peaks, case.precision) if peaks else None,
        }
    return Table("gpu", title, rows, size_of(args, objects=20))


def card_peaks(device: str) -> Peaks | None:
    """The peaks of the card at hand, if it is one of ``CARDS``."""
    if device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((peaks for part, peaks in CARDS.items() if part in name), None)


def count_flops(program: Program) -> int:
    """Count the floating point operations of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        program()
    return counter.get_total_flops()


def peak_memory(program: Program, device: str) -> float | None:
    """Peak of the device memory in MiB above what was taken before; None on the CPU."""
    if device != "cuda":
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    program()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def count_syncs(program: Program, device: str) -> int | None:
    """Count how often the CPU waits for the GPU; None on the CPU."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught, sync_warnings():
        warnings.simplefilter("always")
        program()
    return sum("synchronizing" in str(warning.message) for warning in caught)


@contextlib.contextmanager
def sync_warnings() -> Iterator[None]:
    """Let torch warn wherever the CPU waits for the GPU."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
