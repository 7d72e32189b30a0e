"""Learning rate and schedule for another batch than the one that they were chosen for."""

from __future__ import annotations

import math

from detectron2.config import CfgNode

from ..config_keys import derive, given, value_of
from ..detectors.contract import traits_of

_STEPS = (
    *("SOLVER.WARMUP_ITERS", "SOLVER.STEPS", "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD"),
    "TEST.EVAL_PERIOD",
)


def scale_to_batch(cfg: CfgNode) -> list[str]:
    """Scale what depends on the batch from ``SOLVER.REFERENCE_BATCH`` to ``IMS_PER_BATCH``.

    With k times the pictures in a batch there are 1/k of the steps, so that every picture is seen
    as often: warm-up, schedule, periods and what the detector counts in steps. The learning rate of
    SGD is k times as high (Goyal et al., arXiv 1706.02677), that of AdamW the square root of k
    times (Malladi et al., arXiv 2205.10287; its betas and its decay are left as they are).

    What was given on the command line or in Python stays as it is, and so does what stands in the
    file that gives ``IMS_PER_BATCH``, or in one that builds on it: it is for that batch, unless the
    file gives ``REFERENCE_BATCH`` as well. Where ``MAX_ITER`` stays, warm-up grows to a tenth of it
    at most, the detector's steps to a fifth. Afterwards the reference is the batch, so that one
    which was scaled is not scaled again. 0 switches all of it off, as does
    ``SOLVER.REFERENCE_WORLD_SIZE``, by which detectron2 scales in its own way.

    Args:
        cfg: not frozen; changed in place.

    Returns:
        lines for a person, one for each key that would have another value: empty if there is none.

    Raises:
        ValueError: a batch is not above 0.
    """
    reference, batch = cfg.SOLVER.REFERENCE_BATCH, cfg.SOLVER.IMS_PER_BATCH
    if reference == 0 or reference == batch or cfg.SOLVER.REFERENCE_WORLD_SIZE:
        return []
    if min(reference, batch) < 0 or batch == 0:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {batch} and SOLVER.REFERENCE_BATCH {reference} must be above 0 "
            "(the latter 0 to scale nothing)."
        )
    ratio = batch / reference
    rate_factor = math.sqrt(ratio) if cfg.SOLVER.OPTIMIZER == "ADAMW" else ratio
    scaled = {"SOLVER.BASE_LR": float(f"{cfg.SOLVER.BASE_LR * rate_factor:.6g}")}
    own_steps = traits_of(cfg).step_keys
    scaled.update((key, _scaled(value_of(cfg, key), ratio)) for key in (*_STEPS, *own_steps))
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR":
        # It has no steps.
        del scaled["SOLVER.STEPS"]
    if _is_for_this_batch(cfg, "SOLVER.MAX_ITER"):
        # A run that stays as short must not become nothing but warm-up.
        for key, part in (("SOLVER.WARMUP_ITERS", 10), *((key, 5) for key in own_steps)):
            longest = max(value_of(cfg, key), cfg.SOLVER.MAX_ITER // part)
            scaled[key] = min(scaled[key], longest)
    lines = []
    for key, after in scaled.items():
        before = value_of(cfg, key)
        if before == after:
            continue
        if _is_for_this_batch(cfg, key):
            lines.append(f"  {key}: {before} stays (given by {given(cfg, key).place})")
        else:
            derive(cfg, key, after)
            lines.append(f"  {key}: {before} -> {after}")
    derive(cfg, "SOLVER.REFERENCE_BATCH", batch)
    if lines:
        lines.insert(
            0,
            f"Scaled from batches of {reference} pictures to {batch} (SOLVER.REFERENCE_BATCH 0 "
            "switches this off):",
        )
    return lines


def _scaled(steps: int | tuple[int, ...], ratio: float) -> int | tuple[int, ...]:
    if isinstance(steps, (tuple, list)):
        return type(steps)(_scaled(step, ratio) for step in steps)
    return max(round(steps / ratio), 1) if steps > 0 else steps


def _is_for_this_batch(cfg: CfgNode, key: str) -> bool:
    place = given(cfg, key)
    if place is None or place.is_last:
        return place is not None
    batch, reference = given(cfg, "SOLVER.IMS_PER_BATCH"), given(cfg, "SOLVER.REFERENCE_BATCH")
    if batch is None or (reference is not None and reference.order >= batch.order):
        return False
    return place.order >= batch.order
