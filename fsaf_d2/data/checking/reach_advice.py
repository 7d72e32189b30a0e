"""What to change where anchors do not reach the objects of a data set."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import Tensor

# Of all objects; a smaller group is not worth a change.
GROUP = 0.05
# Of a group that no anchor reaches: the share that may stay.
MAY_STAY = 0.1
# What a larger side must leave of that share to be worth its time, and to be enough.
WORTH, ENOUGH = 2 / 3, 0.4
# Sides of a box that a square or an anchor of 1:2 does not fit.
LONG = 2.5


def advise(found: dict, cfg: CfgNode, unreached: Tensor) -> str:
    """Name the one key to change and its value, or say that nothing is to be changed.

    Args:
        found: ``min_size_test``, ``groups`` and ``sides`` as :func:`.check_coverage.coverage` has
            them.
        cfg: of the detector.
        unreached: (N, 4) corners of the boxes that no anchor reaches, as the network gets them.
    """
    groups, name = found["groups"], _worst(found["groups"])
    if name is None:
        return "The anchors reach the objects: nothing is to be changed for that."
    total = groups[name]["objects"]
    lost = groups[name]["no_anchor"] / total
    shares = [side["no_anchor"][name] / total for side in found["sides"]]
    good = [i for i, share in enumerate(shares) if share <= max(MAY_STAY, ENOUGH * lost)]
    best = good[0] if good else shares.index(min(shares))
    side = found["sides"][best]
    if shares[best] > WORTH * lost or side["no_anchor"]["all"] > groups["all"]["no_anchor"]:
        return _by_shape(groups["all"], cfg, unreached)
    return (
        f"{lost:.0%} of the {name} objects are out of reach {_at(found)}; at "
        f"{side['min_size_test']} px {shares[best]:.0%}: {_keys(found, side, cfg)}"
    ).replace("%", " %")


def _worst(groups: dict) -> str | None:
    """The group of which anchors miss the largest share, if that and the group are worth it."""
    shares = {
        name: x["no_anchor"] / x["objects"]
        for name, x in groups.items()
        if name != "all" and x["objects"] > GROUP * groups["all"]["objects"]
    }
    name = max(shares, key=shares.__getitem__, default=None)
    return name if name and shares[name] > MAY_STAY else None


def _at(found: dict) -> str:
    side = found["min_size_test"]
    return f"at {side} px" if side else "of images as they are"


def _keys(found: dict, side: dict, cfg: CfgNode) -> str:
    """The settings as they are written behind a command."""
    value = side["min_size_test"]
    factor = value / (found["min_size_test"] or value)
    keys = [f"INPUT.MIN_SIZE_TEST {value}", f"INPUT.MAX_SIZE_TEST {side['max_size_test']}"]
    if factor > 1:
        train = tuple(round(factor * x) for x in cfg.INPUT.MIN_SIZE_TRAIN)
        keys.append(f'INPUT.MIN_SIZE_TRAIN "{train}"')
        keys.append(f"INPUT.MAX_SIZE_TRAIN {round(factor * cfg.INPUT.MAX_SIZE_TRAIN)}")
    return " ".join(keys)


def _by_shape(everything: dict, cfg: CfgNode, unreached: Tensor) -> str:
    lost = everything["no_anchor"] / everything["objects"]
    start = f"{lost:.0%} of the objects are out of reach, and larger images hardly change that: "
    width, height = (unreached[:, 2:] - unreached[:, :2]).clamp(min=1e-3).unbind(1)
    ratio = (height / width).log2()
    if 2 ** ratio.abs().median().item() > LONG:
        ratios = {
            round(2 ** part.median().item(), 2)
            for part in (ratio[ratio > 0], ratio[ratio < 0])
            if len(part) > 0.2 * len(ratio)
        }
        own = {x for level in cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS for x in level}
        values = ", ".join(f"{x:g}" for x in sorted(own | ratios))
        rest = f'they are long and thin: MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS "[[{values}]]"'
    else:
        side = (width * height).sqrt().median().item()
        rest = f"MODEL.ANCHOR_GENERATOR.SIZES must have their size, {side:.0f} px in the median"
    return (start + rest).replace("%", " %")
