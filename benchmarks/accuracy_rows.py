"""What accuracy.py can train: rows, and the data sets to train them on."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """A model: what it is called in tables, and what it changes in the data set's config.

    ``paper`` is the AP of the paper's Table 1 (COCO, R-50). With ``weights_of``, another row's
    weights are evaluated and nothing is trained. ``config_file`` replaces the data set's.
    """

    about: str
    overrides: tuple[str, ...] = ()
    paper: float | None = None
    weights_of: str = ""
    config_file: str = ""


class Data(NamedTuple):
    """The config of a data set, which names its splits, steps and schedule."""

    config_file: str
    overrides: tuple[str, ...] = ()


BASELINE = "anchors-only"
_HEURISTIC = ("MODEL.FSAF.LEVEL_SELECTION", "heuristic")
# Without the anchor branch the losses have nothing to be weighed against.
_ANCHOR_FREE = ("MODEL.BRANCHES", "['point']", "MODEL.FSAF.LOSS_WEIGHT", "1.0")

# The paper's Table 1, the most telling rows first.
TABLE_1 = {
    "both-online": Row("both, online", (), 37.2),
    "anchors-only": Row("anchors only", ("MODEL.BRANCHES", "['anchor']"), 35.7),
    "both-heuristic": Row("both, heuristic", _HEURISTIC, 36.1),
    "anchor-free-online": Row("anchor-free, online", _ANCHOR_FREE, 35.9),
    "anchor-free-heuristic": Row("anchor-free, heuristic", (*_ANCHOR_FREE, *_HEURISTIC), 34.7),
}


def _questions() -> dict[str, Row]:
    """Rows that differ from both-online in one key."""
    values = {
        "BBOX_BIAS": ("0.1", "0.25", "0.5", "1.0"),
        "LOSS_WEIGHT": ("0.25", "0.5", "1.0"),
        "EFFECTIVE_SCALE": ("0.2", "0.3"),
        "IGNORE_SCALE": ("0.2", "0.5"),
    }
    rows = {
        f"{key.lower().replace('_', '-')}-{value}": Row(
            f"{key} {value}", (f"MODEL.FSAF.{key}", value)
        )
        for key, of_key in values.items()
        for value in of_key
    }
    rows["nms-per-level"] = Row(
        "NMS_PER_LEVEL, same weights",
        ("MODEL.FSAF.NMS_PER_LEVEL", "True"),
        weights_of="both-online",
    )
    return rows


# Every detector alone, and joined with the anchors: on the digits, docs/family.md.
_METHODS = {
    "fcos": "FCOS",
    "atss": "ATSS",
    "gfl": "GFL",
    "autoassign": "AutoAssign",
    "noisy_anchors": "Noisy Anchors",
    "dr_loss": "DR loss",
    "ap_loss": "AP loss",
    "anchor_fcos": "anchors and FCOS",
    "anchor_gfl": "anchors and GFL",
    "anchor_autoassign": "anchors and AutoAssign",
}
_FAMILY = {
    name: Row(about, config_file=f"configs/family/digits/{name}.yaml")
    for name, about in _METHODS.items()
}
ROWS = {**TABLE_1, **_questions(), **_FAMILY}
# Names for several rows at once.
GROUPS = {"table-1": list(TABLE_1), "family": ["anchors-only", "both-online", *_FAMILY]}

DATA = {
    "digits": Data("configs/demo/digits.yaml", ("TEST.EVAL_PERIOD", "350")),
    "bloodcells": Data("configs/examples/bloodcells.yaml"),
    "bloodcells_lite": Data("configs/examples/bloodcells_lite.yaml"),
    "nuclei_lite": Data("configs/examples/nuclei_lite.yaml"),
    "nuclei": Data("configs/examples/nuclei.yaml"),
    "bloodcells_R_50": Data("configs/examples/bloodcells_R_50.yaml"),
    "nuclei_R_50": Data("configs/examples/nuclei_R_50.yaml"),
    "nuclei_dense": Data(
        "configs/examples/nuclei.yaml",
        (
            *("DATASETS.TRAIN", "('nuclei_train', 'nuclei_train_dense')"),
            *("DATASETS.TEST", "('nuclei_test_dense',)"),
            *("TEST.DETECTIONS_PER_IMAGE", "375"),
        ),
    ),
}
