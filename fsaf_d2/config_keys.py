"""Which keys of a config were given and where, which do nothing, and which a wrong name means."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from detectron2.config import CfgNode

from .detectors.contract import traits_of

COMMAND_LINE = "the command line"
PYTHON = "Python code"
# Behind every file.
_LAST = 1 << 30
# Beside yacs' own marks in the node, so that copies and other processes have it too.
_RECORD = "__fsaf_d2_given__"

_RETINANET = "MODEL.RETINANET."
_OF_TWO_STAGES = (
    *("MODEL.PROPOSAL_GENERATOR.", "MODEL.RPN.", "MODEL.ROI_", "MODEL.SEM_SEG_HEAD."),
    *("MODEL.PANOPTIC_FPN.", "MODEL.MASK_ON", "MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS"),
    *("DATASETS.PROPOSAL_FILES_", "DATASETS.PRECOMPUTED_PROPOSAL_"),
)
# Sections and switches that a detector does not read, by the section that it does read.
_DEAD = {
    "MODEL.RETINANET": _OF_TWO_STAGES,
    "MODEL.ROI_HEADS": (_RETINANET, "MODEL.BRANCHES"),
}
# What does the job of a dead key of one-stage detectors, by the key's last word.
_INSTEAD_OF_TWO_STAGES = {
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
}
_INSTEAD = {
    "MODEL.RETINANET": _INSTEAD_OF_TWO_STAGES,
    "MODEL.ROI_HEADS": {
        name: f"MODEL.ROI_HEADS.{name}"
        for name in ("NUM_CLASSES", "SCORE_THRESH_TEST", "NMS_THRESH_TEST")
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


def warnings_of_dead_keys(cfg: CfgNode, defaults: CfgNode) -> list[str]:
    """A sentence for each key that was given but does nothing for the detector.

    Those of a file that have the default's value are left out: a config that a run has written has
    all keys.
    """
    section = traits_of(cfg).section
    if section not in _DEAD:
        return []
    lines = _lines_of_trunk(cfg, defaults)
    for key, value in flat(cfg):
        if not key.startswith(_DEAD[section]):
            continue
        place = given(cfg, key)
        if place is None or (not place.is_last and _same(value, value_of(defaults, key))):
            continue
        instead = _INSTEAD[section].get(key.rpartition(".")[2])
        remedy = f"{instead} does that here." if instead else "Nothing here does that."
        lines.append(
            f"{key} ({place.place}) does nothing for {cfg.MODEL.META_ARCHITECTURE}: {remedy}"
        )
    return lines


def _lines_of_trunk(cfg: CfgNode, defaults: CfgNode) -> list[str]:
    """A sentence for each key of another trunk than the builder's, if it was given for this run."""
    builder = cfg.MODEL.BACKBONE.NAME
    if builder.startswith("build_timm_"):
        # What files say of ResNets stands in those that others build on.
        dead, remedy = "MODEL.RESNETS.", "MODEL.TIMM describes the trunk."
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
    """The key that a name which is none may stand for; a section for a name without dots."""
    unknown = unknown.upper()
    section, _, last = unknown.rpartition(".")
    if unknown.startswith(_OF_TWO_STAGES):
        # Who names such a section means it.
        siblings = [key for key, _ in flat(cfg) if key.rpartition(".")[0] == section]
        near = difflib.get_close_matches(unknown, siblings, n=1, cutoff=0.8)
        if near:
            return near[0]
    if last in _MEANT:
        return _MEANT[last]
    keys = [key for key, _ in flat(cfg) if not key.startswith(_OF_TWO_STAGES)]
    keys += list(cfg) if last == unknown else []
    same_word = [key for key in keys if key.rpartition(".")[2] == last]
    near = same_word if len(same_word) == 1 else difflib.get_close_matches(unknown, keys, n=1)
    return near[0] if near else None
