"""Which keys of a config were given and where, which do nothing, and which a wrong name means."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from detectron2.config import CfgNode, get_cfg

from .detectors.branch import BRANCHES
from .detectors.contract import traits_of

COMMAND_LINE = "the command line"
PYTHON = "Python code"
# Behind every file.
_LAST = 1 << 30
# Beside yacs' own marks in the node, so that copies and other processes have it too.
_RECORD = "__fsaf_d2_given__"

_RETINANET, _ROI_HEADS = "MODEL.RETINANET.", "MODEL.ROI_HEADS."
_OF_SEGMENTATION = ("MODEL.SEM_SEG_HEAD.", "MODEL.PANOPTIC_FPN.")
_OF_TWO_STAGES = (
    *("MODEL.PROPOSAL_GENERATOR.", "MODEL.RPN.", "MODEL.ROI_", "MODEL.MASK_ON"),
    *("MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS", "DATASETS.PROPOSAL_FILES_"),
    *("DATASETS.PRECOMPUTED_PROPOSAL_", *_OF_SEGMENTATION),
)
# What does the job of a dead key, by the key's last word, for those who read a section.
_INSTEAD = {
    _RETINANET: {
        "NUM_CLASSES": _RETINANET + "NUM_CLASSES",
        "SCORE_THRESH_TEST": _RETINANET + "SCORE_THRESH_TEST",
        "NMS_THRESH_TEST": _RETINANET + "NMS_THRESH_TEST",
        "NMS_THRESH": _RETINANET + "NMS_THRESH_TEST",
        "IOU_THRESHOLDS": _RETINANET + "IOU_THRESHOLDS",
        "IOU_LABELS": _RETINANET + "IOU_LABELS",
        "IN_FEATURES": _RETINANET + "IN_FEATURES",
        "PRE_NMS_TOPK_TEST": _RETINANET + "TOPK_CANDIDATES_TEST",
        "POST_NMS_TOPK_TEST": "TEST.DETECTIONS_PER_IMAGE",
        "BBOX_REG_WEIGHTS": _RETINANET + "BBOX_REG_WEIGHTS",
        "BBOX_REG_LOSS_TYPE": _RETINANET + "BBOX_REG_LOSS_TYPE",
        "SMOOTH_L1_BETA": _RETINANET + "SMOOTH_L1_LOSS_BETA",
        "NUM_CONV": _RETINANET + "NUM_CONVS",
        "CONV_DIMS": _RETINANET + "NUM_CONVS",
        "NORM": _RETINANET + "NORM",
    },
    _ROI_HEADS: {
        "NUM_CLASSES": _ROI_HEADS + "NUM_CLASSES",
        "SCORE_THRESH_TEST": _ROI_HEADS + "SCORE_THRESH_TEST",
        "NMS_THRESH_TEST": _ROI_HEADS + "NMS_THRESH_TEST",
        "IOU_THRESHOLDS": _ROI_HEADS + "IOU_THRESHOLDS",
        "IOU_LABELS": _ROI_HEADS + "IOU_LABELS",
        "IN_FEATURES": _ROI_HEADS + "IN_FEATURES",
        "TOPK_CANDIDATES_TEST": "MODEL.RPN.PRE_NMS_TOPK_TEST",
        "BBOX_REG_WEIGHTS": "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS",
        "BBOX_REG_LOSS_TYPE": "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE",
        "SMOOTH_L1_LOSS_BETA": "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA",
        "NUM_CONVS": "MODEL.ROI_BOX_HEAD.NUM_CONV",
        "NORM": "MODEL.ROI_BOX_HEAD.NORM",
    },
}
# What people mean by last words that no key has, or that keys have elsewhere.
_MEANT = {
    **dict.fromkeys(("LR", "LR0", "LEARNING_RATE"), "SOLVER.BASE_LR"),
    **dict.fromkeys(
        ("BATCH", "BATCH_SIZE", "BATCH_SIZE_PER_IMAGE", "IMAGES_PER_BATCH", "IMS_PER_GPU"),
        "SOLVER.IMS_PER_BATCH",
    ),
    **dict.fromkeys(
        ("EPOCH", "EPOCHS", "NUM_EPOCHS", "MAX_EPOCH", "MAX_EPOCHS"),
        "SOLVER.MAX_ITER, which counts batches",
    ),
    **dict.fromkeys(("ITERS", "NUM_ITERS", "MAX_ITERS", "ITERATIONS"), "SOLVER.MAX_ITER"),
    **dict.fromkeys(("NUM_CLASSES", "CLASSES", "NC"), _RETINANET + "NUM_CLASSES"),
    **dict.fromkeys(
        ("SCORE_THRESH", "SCORE_THRESHOLD", "SCORE_THRESH_TEST", "CONF", "CONFIDENCE"),
        _RETINANET + "SCORE_THRESH_TEST",
    ),
    **dict.fromkeys(
        ("NMS_THRESH", "NMS_THRESHOLD", "NMS_THRESH_TEST"), _RETINANET + "NMS_THRESH_TEST"
    ),
    **dict.fromkeys(("IMG_SIZE", "IMAGE_SIZE", "IMGSZ", "MIN_SIZE"), "INPUT.MIN_SIZE_TRAIN"),
    **dict.fromkeys(("MAX_DETS", "MAX_DETECTIONS"), "TEST.DETECTIONS_PER_IMAGE"),
    **dict.fromkeys(("VAL", "VALID", "VALIDATION"), "DATASETS.TEST"),
    "WORKERS": "DATALOADER.NUM_WORKERS",
    "OPTIM": "SOLVER.OPTIMIZER",
}


class Given(NamedTuple):
    """Where a key was given."""

    order: int  # of two, the larger was given later
    place: str  # a file, COMMAND_LINE or PYTHON

    @property
    def is_last(self) -> bool:
        """Whether it was given for this one run, in no file."""
        return self.order == _LAST


def record(
    cfg: CfgNode, files: Iterable[tuple[str, Iterable[str]]], overrides: Iterable[str]
) -> None:
    """Note where keys were given, once all of them are in the config.

    Args:
        cfg: the config.
        files: their names with the keys that each gives, those that others build on first.
        overrides: the keys of the command line.
    """
    given = {key: Given(i, file) for i, (file, keys) in enumerate(files) for key in keys}
    given.update({key: Given(_LAST, COMMAND_LINE) for key in overrides})
    cfg.__dict__[_RECORD] = {"given": given, "loaded": copy.deepcopy(dict(flat(cfg)))}


def given(cfg: CfgNode, key: str) -> Given | None:
    """Where a key was given; None where its value is the default or was derived.

    What has changed since :func:`fsaf_d2.load_config` or :func:`fsaf_d2.add_fsaf_config` was given
    by Python code.
    """
    known = _known(cfg)
    if not _same(value_of(cfg, key), known["loaded"].get(key)):
        return Given(_LAST, PYTHON)
    return known["given"].get(key)


def derive(cfg: CfgNode, key: str, value: object) -> None:
    """Set a key to what follows from other things, which does not count as given."""
    known = _known(cfg)
    section, _, name = key.rpartition(".")
    setattr(value_of(cfg, section), name, value)
    known["loaded"][key] = copy.deepcopy(value)
    known["given"].pop(key, None)


def _known(cfg: CfgNode) -> dict:
    if _RECORD not in cfg.__dict__:
        record(cfg, [], [])
    return cfg.__dict__[_RECORD]


def value_of(cfg: CfgNode, key: str) -> object:
    """The value, or the section, of a key with dots."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def flat(node: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """All keys with dots and their values, sections left out."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def unread(cfg: CfgNode) -> tuple[str, ...]:
    """Beginnings of the keys that the detector of a config does not read; none of a stranger.

    Raises:
        ValueError: the config names branches that there are not.
    """
    traits, name = traits_of(cfg), cfg.MODEL.META_ARCHITECTURE
    of_branches = () if traits.branch_names else ("MODEL.BRANCHES", *_sections_of_branches())
    if traits.section == "MODEL.RETINANET":
        return *_OF_TWO_STAGES, *of_branches
    if traits.section == "MODEL.ROI_HEADS":
        # detectron2's PanopticFPN is a GeneralizedRCNN, too.
        of_others = _OF_SEGMENTATION if name == "GeneralizedRCNN" else ()
        return _RETINANET, *of_branches, *of_others
    return ()


def _sections_of_branches() -> list[str]:
    """The sections that branches add to detectron2's."""
    cfg = get_cfg()
    before = set(cfg.MODEL)
    for kind in BRANCHES.values():
        kind.add_config(cfg)
    return [f"MODEL.{name}." for name in cfg.MODEL if name not in before]


def warnings_of_dead_keys(cfg: CfgNode, defaults: CfgNode) -> list[str]:
    """A sentence for each key that was given but does nothing for the detector.

    Those of a file that have the default's value are left out: a config that a run has written has
    all keys.
    """
    dead = unread(cfg)
    if not dead:
        return []
    lines = _lines_of_backbone(cfg, defaults)
    for key, value in flat(cfg):
        if not key.startswith(dead):
            continue
        place = given(cfg, key)
        if place is None or (not place.is_last and _same(value, value_of(defaults, key))):
            continue
        instead = _INSTEAD[f"{traits_of(cfg).section}."].get(key.rpartition(".")[2])
        remedy = f"{instead} does that here." if instead else "Nothing here does that."
        lines.append(
            f"{key} ({place.place}) does nothing for {cfg.MODEL.META_ARCHITECTURE}: {remedy}"
        )
    return lines


def _lines_of_backbone(cfg: CfgNode, defaults: CfgNode) -> list[str]:
    """A sentence for each key given for this run that another backbone than this one reads."""
    builder = cfg.MODEL.BACKBONE.NAME
    if builder.startswith("build_timm_"):
        # What files say of ResNets stands in those that others build on.
        dead, remedy = "MODEL.RESNETS.", "MODEL.TIMM describes the backbone."
    else:
        dead, remedy = "MODEL.TIMM.", "build_timm_fpn_backbone reads it."
    lines = []
    for key, value in flat(cfg):
        place = given(cfg, key) if key.startswith(dead) else None
        of_file = dead == "MODEL.TIMM." and not _same(value, value_of(defaults, key))
        if place and (place.is_last or of_file):
            lines.append(
                f"{key} ({place.place}) does nothing for MODEL.BACKBONE.NAME '{builder}': {remedy}"
            )
    return lines


def _same(one: object, other: object) -> bool:
    """Whether values are equal, where a file may have lists for tuples."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def meant_key(unknown: str, cfg: CfgNode) -> str | None:
    """The key that a name which is none may stand for; a section for a name without dots.

    Keys of the same section come first, then those that people mean by such a word, then all that
    are near.
    """
    unknown = unknown.upper()
    section, _, last = unknown.rpartition(".")
    keys = [key for key, _ in flat(cfg)]
    sections = {key.rpartition(".")[0] for key in keys}
    if section and section not in sections:
        # One that is misspelt; a whole one that is missing does not come near another.
        section = next(iter(difflib.get_close_matches(section, sections, n=1, cutoff=0.85)), "")
    siblings = [key.rpartition(".")[2] for key in keys if section == key.rpartition(".")[0]]
    meant = _MEANT.get(last)
    words = [last, meant.rpartition(".")[2]] if meant else [last]
    for word in words if section and section.count(".") else ():
        near = difflib.get_close_matches(word, siblings, n=1, cutoff=0.75)
        if near:
            return f"{section}.{near[0]}"
    if meant:
        return _of_this_detector(meant, cfg)
    keys = [key for key in keys if not key.startswith(_OF_TWO_STAGES)]
    keys += list(cfg) if last == unknown else []
    same_word = [key for key in keys if key.rpartition(".")[2] == last]
    near = same_word if len(same_word) == 1 else difflib.get_close_matches(unknown, keys, n=1)
    return near[0] if near else None


def _of_this_detector(key: str, cfg: CfgNode) -> str:
    """What does a key's job for the detector of a config, if a config has named that already."""
    if not key.startswith(_RETINANET) or given(cfg, "MODEL.META_ARCHITECTURE") is None:
        return key
    try:
        section = f"{traits_of(cfg).section}."
    except ValueError:
        return key
    return _INSTEAD.get(section, {}).get(key.rpartition(".")[2], key)
