"""Published weights that run here: where they lie, what they are, what AP their authors state.

Nothing is fetched by this module. A config of :attr:`Published.config` names the address in
``MODEL.WEIGHTS``, and is what asks for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/COCO-Detection/"
_MMDET = "https://download.openmmlab.com/mmdetection/v2.0/"


class Published(NamedTuple):
    """A file of weights, as its authors describe it."""

    url: str
    hash: str  # the first hexadecimal digits of the file's, which its name carries
    hash_algorithm: str  # "md5" or "sha256"
    config: str  # in this repository
    licence: str
    ap: float  # box AP on coco_2017_val, in percent
    source: str

    @property
    def file_name(self) -> str:
        """The last part of the address."""
        return self.url.rpartition("/")[2]


def _detectron2(name: str, file: str, ap: float) -> Published:
    return Published(
        url=f"{_DETECTRON2}{name}/{file}",
        hash=re.search(r"_([0-9a-f]+)\.pkl$", file)[1],
        hash_algorithm="md5",
        config=f"configs/zoo/{name}.yaml",
        licence="CC BY-SA 3.0",
        ap=ap,
        source="detectron2, MODEL_ZOO.md",
    )


def _mmdet(
    folder: str, file: str, config: str, ap: float, *, method: str | None = None
) -> Published:
    method = method or folder.partition("_")[0]
    return Published(
        url=f"{_MMDET}{method}/{folder}/{file}",
        hash=re.search(r"-([0-9a-f]+)\.pth$", file)[1],
        hash_algorithm="sha256",
        config=f"configs/zoo/mmdet_{method}_{config}.yaml",
        licence="Apache-2.0",
        ap=ap,
        source=f"mmdetection, configs/{method}",
    )


MODELS: dict[str, Published] = {
    "retinanet_R_50_FPN_1x": _detectron2(
        "retinanet_R_50_FPN_1x", "190397773/model_final_bfca0b.pkl", 37.4
    ),
    "retinanet_R_50_FPN_3x": _detectron2(
        "retinanet_R_50_FPN_3x", "190397829/model_final_5bd44e.pkl", 38.7
    ),
    "retinanet_R_101_FPN_3x": _detectron2(
        "retinanet_R_101_FPN_3x", "190397697/model_final_971ab9.pkl", 40.4
    ),
    "mmdet_fsaf_R_50_FPN_1x": _mmdet(
        "fsaf_r50_fpn_1x_coco", "fsaf_r50_fpn_1x_coco-94ccc51f.pth", "R_50_FPN_1x", 37.4
    ),
    "mmdet_fsaf_R_101_FPN_1x": _mmdet(
        "fsaf_r101_fpn_1x_coco", "fsaf_r101_fpn_1x_coco-9e71098f.pth", "R_101_FPN_1x", 39.3
    ),
    "mmdet_fsaf_X_101_64x4d_FPN_1x": _mmdet(
        "fsaf_x101_64x4d_fpn_1x_coco",
        "fsaf_x101_64x4d_fpn_1x_coco-e3f6e6fd.pth",
        "X_101_64x4d_FPN_1x",
        42.4,
    ),
    "mmdet_fsaf_ignore_0.5_R_50_FPN_1x": _mmdet(
        "fsaf_pscale0.2_nscale0.5_r50_fpn_1x_coco",
        "fsaf_pscale0.2_nscale0.5_r50_fpn_1x_coco_20200715-b555b0e0.pth",
        "ignore_0.5_R_50_FPN_1x",
        36.0,
    ),
    "mmdet_gfl_R_50_FPN_1x": _mmdet(
        "gfl_r50_fpn_1x_coco",
        "gfl_r50_fpn_1x_coco_20200629_121244-25944287.pth",
        "R_50_FPN_1x",
        40.2,
    ),
    "mmdet_autoassign_R_50_FPN_1x": _mmdet(
        "auto_assign_r50_fpn_1x_coco",
        "auto_assign_r50_fpn_1x_coco_20210413_115540-5e17991f.pth",
        "R_50_FPN_1x",
        40.4,
        method="autoassign",
    ),
}


def get(name: str) -> Published:
    """What is known of a model.

    Raises:
        KeyError: the name is none of :data:`MODELS`.
    """
    if name not in MODELS:
        raise KeyError(f"Model {name!r} is not known. There are: {', '.join(MODELS)}.")
    return MODELS[name]


def find(weights: str) -> tuple[str, Published] | None:
    """Recognise a file by its name, or by the hash in it; None if it is none of these.

    Args:
        weights: path or address.

    Returns:
        the model's name in :data:`MODELS`, and what is known of it.
    """
    file_name = os.path.basename(weights.partition("?")[0])
    for name, model in MODELS.items():
        if file_name == model.file_name or re.search(rf"[-_]{model.hash}\.\w+$", file_name):
            return name, model
    return None


def compare(weights: str, results: dict, datasets: Sequence[str]) -> list[str]:
    """Lines on the AP that was measured beside the one that is published, for known files.

    Args:
        weights: the file that was evaluated, or its address.
        results: of an evaluation, as :meth:`fsaf_d2.training.Trainer.test` gives them.
        datasets: that it was evaluated on.
    """
    known = find(weights)
    if known is None:
        return []
    name, model = known
    parts = {datasets[0]: results} if len(datasets) == 1 else results
    return [
        f"{name} on {dataset}: AP {parts[dataset]['bbox']['AP']:.1f} measured; {model.ap:.1f} "
        f"expected on coco_2017_val ({model.source})."
        for dataset in datasets
        if "AP" in parts.get(dataset, {}).get("bbox", {})
    ]
