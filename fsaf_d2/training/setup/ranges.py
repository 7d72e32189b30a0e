"""The ranges of the numbers in a config, checked before anything is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from detectron2.config import CfgNode

from ...config_keys import given, value_of


class Range(NamedTuple):
    """The numbers that a key, or each number in its list, may have."""

    least: float = -math.inf
    most: float = math.inf
    is_open: bool = False  # whether `least` itself is refused
    is_open_above: bool = False  # whether `most` is
    may_be_empty: bool = True  # of a list

    def holds(self, value: float) -> bool:
        """Whether a number is in it; NaN is in none."""
        above = value > self.least if self.is_open else value >= self.least
        below = value < self.most if self.is_open_above else value <= self.most
        return bool(above and below) and not math.isinf(value)

    def __str__(self) -> str:
        words = []
        if self.least > -math.inf:
            words.append(f"more than {self.least:g}" if self.is_open else f"{self.least:g} or more")
        if self.most < math.inf:
            words.append(
                f"less than {self.most:g}" if self.is_open_above else f"at most {self.most:g}"
            )
        return " and ".join([*words, "finite"] if len(words) < 2 else words)


_POSITIVE = Range(0, is_open=True)
_COUNT = Range(0)
ONE_OR_MORE = Range(1)
_SHARE = Range(0, 1)
_SIZES = Range(1, may_be_empty=False)

# Of training alone.
_TRAINING = {
    "SOLVER.IMS_PER_BATCH": ONE_OR_MORE,
    "SOLVER.REFERENCE_BATCH": _COUNT,
    "SOLVER.MAX_ITER": ONE_OR_MORE,
    "SOLVER.BASE_LR": _POSITIVE,
    "SOLVER.WARMUP_ITERS": _COUNT,
    "SOLVER.WARMUP_FACTOR": _SHARE,
    "SOLVER.STEPS": _COUNT,
    "SOLVER.GAMMA": _POSITIVE,
    "SOLVER.MOMENTUM": Range(0, 1, is_open_above=True),
    "SOLVER.WEIGHT_DECAY": _COUNT,
    "SOLVER.WEIGHT_DECAY_NORM": _COUNT,
    "SOLVER.WEIGHT_DECAY_BIAS": _COUNT,
    "SOLVER.BIAS_LR_FACTOR": _COUNT,
    "SOLVER.BACKBONE_LR_FACTOR": _POSITIVE,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _POSITIVE,
    "SOLVER.CHECKPOINT_PERIOD": ONE_OR_MORE,
    "SOLVER.CHECKPOINTS_TO_KEEP": _COUNT,
    "SOLVER.EMA_DECAY": Range(0, 1, is_open_above=True),
    "SOLVER.NON_FINITE.MAX_TIMES": _COUNT,
    "TEST.EVAL_PERIOD": _COUNT,
    "TEST.PATIENCE": _COUNT,
    "TEST.SAMPLES": _COUNT,
    "TEST.LEVEL_LENS": _COUNT,
    "INPUT.MIN_SIZE_TRAIN": _SIZES,
    "INPUT.MAX_SIZE_TRAIN": ONE_OR_MORE,
    "INPUT.COLOR_JITTER": Range(0, 1, is_open_above=True),
    "INPUT.CROP.SIZE": _POSITIVE,
    "DATALOADER.MAX_UNREADABLE": _COUNT,
}
# Of every run.
_ALWAYS = {
    "DATALOADER.NUM_WORKERS": _COUNT,
    "INPUT.MIN_SIZE_TEST": _COUNT,
    "INPUT.MAX_SIZE_TEST": ONE_OR_MORE,
    "INPUT.MAX_PIXELS": ONE_OR_MORE,
    "TEST.DETECTIONS_PER_IMAGE": ONE_OR_MORE,
    "TEST.AUG.MIN_SIZES": ONE_OR_MORE,
    "TEST.AUG.MAX_SIZE": ONE_OR_MORE,
    "MODEL.PIXEL_STD": _POSITIVE,
    "MODEL.BACKBONE.FREEZE_AT": _COUNT,
    "MODEL.FPN.OUT_CHANNELS": ONE_OR_MORE,
    "MODEL.ANCHOR_GENERATOR.SIZES": _POSITIVE,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": _POSITIVE,
    "MODEL.RETINANET.NUM_CLASSES": ONE_OR_MORE,
    "MODEL.RETINANET.NUM_CONVS": _COUNT,
    "MODEL.RETINANET.PRIOR_PROB": Range(0, 1, is_open=True, is_open_above=True),
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": Range(most=1),
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": _COUNT,
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": _COUNT,
    "MODEL.RETINANET.SCORE_THRESH_TEST": _SHARE,
    "MODEL.RETINANET.NMS_THRESH_TEST": _SHARE,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": ONE_OR_MORE,
    "MODEL.ROI_HEADS.NUM_CLASSES": ONE_OR_MORE,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": _SHARE,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _SHARE,
}


def require_ranges(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Make sure that the numbers of a config can be worked with.

    Raises:
        ValueError: some cannot; there is a line for each, with the place that gave it.
    """
    lines = []
    for key, allowed in ranges_of(eval_only).items():
        place = given(cfg, key)
        source = f" (given by {place.place})" if place else ""
        lines += flaws_of(key, value_of(cfg, key), allowed, source)
    if lines:
        raise ValueError("\n".join(lines))


def lines_of_warm_up(cfg: CfgNode) -> list[str]:
    """A warning where the learning rate is never reached."""
    solver = cfg.SOLVER
    if 0 < solver.MAX_ITER <= solver.WARMUP_ITERS:
        return [
            f"Warning: SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS} is not below SOLVER.MAX_ITER "
            f"{solver.MAX_ITER}: the learning rate {solver.BASE_LR:g} is never reached. Set it to "
            f"{max(solver.MAX_ITER // 10, 0)} or so, or train longer."
        ]
    return []


def ranges_of(eval_only: bool) -> dict[str, Range]:
    """By keys of ``train_net.py``'s configs."""
    return _ALWAYS if eval_only else {**_TRAINING, **_ALWAYS}


def flaws_of(name: str, value: object, allowed: Range, source: str = "") -> Iterator[str]:
    """Say what is wrong with a number, or with the first of a list that is out of range.

    Args:
        source: who gave it, for the end of the sentence.
    """
    numbers = list(_numbers(value))
    if not numbers and not allowed.may_be_empty:
        yield f"{name} must have a number, not {value!r}{source}."
    for number in numbers:
        if not allowed.holds(number):
            yield f"{name} must be {allowed}, not {number!r}{source}."
            return


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield from _numbers(part)
