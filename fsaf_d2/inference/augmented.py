"""Test-time augmentation of single-shot detectors: an image is seen in several sizes, mirrored.

detectron2's ``GeneralizedRCNNWithTTA`` is for two stages. The keys are its own, ``TEST.AUG``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from torch import nn

from ..data.loading.mapper import read_image, to_planes
from ..data.loading.resizing import shortest_edge
from ..data.reading.image_headers import MAX_PIXELS
from ..detectors.contract import contract_of
from .candidates import Candidates, resized, to_instances

# Of INPUT.MIN_SIZE_TEST, where no sizes are given.
FACTORS = (0.75, 1, 1.25)


class AugmentedDetector(nn.Module):
    """Detects in resized and mirrored views of an image and merges what is found.

    The detections of all views, in the image's own pixels, pass one class-wise NMS, or one per
    level of each branch before it where the detector has these; the best ones stay. A view at a
    time passes the network, so that no more memory is needed than for the largest of them.
    """

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        min_sizes: Sequence[int],
        max_size: int,
        flip: bool,
        input_format: str = "BGR",
        resize: str = "auto",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """
        Args:
            model: a detector with a suppression.
            min_sizes: shorter sides of the views, in pixels.
            max_size: above which no longer side gets, in pixels.
            flip: whether each view is also mirrored.
            input_format: "BGR" or "RGB", as the detector takes images.
            resize: by what they are resized, as ``INPUT.RESIZE``.
            max_pixels: files of more pixels are not decoded, and views of more not made.

        Raises:
            ValueError: the model is another detector, a size is not above 0, or the format is
                another.
        """
        super().__init__()
        contract = contract_of(model)
        if contract is None or contract.suppression is None:
            name = contract.name if contract else type(model).__name__
            lack = contract.lacks("suppression") if contract else "nothing is known of it here."
            raise ValueError(f"TEST.AUG.ENABLED must be False for {name}: {lack}")
        if not min_sizes or not all(type(size) is int and size > 0 for size in min_sizes):
            raise ValueError(
                f"TEST.AUG.MIN_SIZES must be whole numbers above 0, such as (640, 800), not "
                f"{min_sizes!r}."
            )
        if input_format not in ("BGR", "RGB"):
            raise ValueError(
                f"TEST.AUG.ENABLED needs INPUT.FORMAT 'BGR' or 'RGB', not {input_format!r}."
            )
        if max_size <= 0:
            raise ValueError(f"TEST.AUG.MAX_SIZE must be above 0, not {max_size}.")
        self.model, self.suppression = model, contract.suppression
        self.flip, self.min_sizes, self.max_size = flip, tuple(min_sizes), max_size
        limits = {
            "max_pixels": max_pixels,
            "keys": "one of TEST.AUG.MIN_SIZES and TEST.AUG.MAX_SIZE",
        }
        self.resizes = [shortest_edge(size, max_size, resize, **limits) for size in min_sizes]
        self.input_format, self.max_pixels = input_format, max_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict:
        """Read ``TEST.AUG`` and how images are read.

        Where ``MIN_SIZES`` are detectron2's default, which is for detectors of a short side of 800,
        views are of sizes about the config's own ``INPUT.MIN_SIZE_TEST``.
        """
        min_sizes, max_size = _sizes(cfg)
        return {
            "model": model,
            "min_sizes": min_sizes,
            "max_size": max_size,
            "flip": cfg.TEST.AUG.FLIP,
            "input_format": cfg.INPUT.FORMAT,
            "resize": cfg.INPUT.RESIZE,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
        }

    @property
    def num_views(self) -> int:
        """Of each image."""
        return len(self.resizes) * (2 if self.flip else 1)

    def description(self) -> str:
        """The views, for a person."""
        sizes = ", ".join(map(str, self.min_sizes))
        return (
            f"{self.num_views} views of each image: short side {sizes} px, long side up to "
            f"{self.max_size} px{', each mirrored as well' if self.flip else ''}"
        )

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Detect.

        Args:
            batched_inputs: a dict per image. Views are made from the file ``file_name`` or, where
                there is none, from ``image`` (3, H, W). Detections refer to ``height`` and
                ``width``, where these are given.

        Returns:
            what the detector gives.

        Raises:
            OSError: an image cannot be read.
            ValueError: a view of it would have no pixels, or too many.
        """
        return [self._detect(x) for x in batched_inputs]

    def _detect(self, inputs: dict) -> dict[str, Instances]:
        if os.path.isfile(inputs.get("file_name", "")):
            image = read_image(inputs["file_name"], self.input_format, self.max_pixels)
        else:
            image = np.ascontiguousarray(inputs["image"].cpu().numpy().transpose(1, 2, 0))
        size = image.shape[:2]
        found: dict[str, list[Instances]] = {}
        for view, transform in self._views(image):
            for name, detections in self._found_in(view, transform).items():
                found.setdefault(name, []).append(detections)
        height, width = inputs.get("height", size[0]), inputs.get("width", size[1])
        return {name: self._merged(views, size, (height, width)) for name, views in found.items()}

    def _views(self, image: np.ndarray) -> Iterator[tuple[np.ndarray, T.Transform]]:
        """Views of an image (H, W, 3), and how each was made."""
        for resize in self.resizes:
            view = T.AugInput(image)
            transform = resize(view)
            yield view.image, transform
            if self.flip:
                mirror = T.HFlipTransform(view.image.shape[1])
                yield cv2.flip(view.image, 1), T.TransformList([transform, mirror])

    def _found_in(self, view: np.ndarray, transform: T.Transform) -> dict[str, Instances]:
        """What is found in a view, in the image's pixels."""
        height, width = view.shape[:2]
        (outputs,) = self.model([{"image": to_planes(view), "height": height, "width": width}])
        back = transform.inverse()
        for detections in outputs.values():
            boxes = detections.pred_boxes.tensor
            moved = back.apply_box(boxes.cpu().numpy()).reshape(-1, 4)
            detections.pred_boxes = Boxes(torch.from_numpy(moved).to(boxes))
        return outputs

    def _merged(
        self, views: list[Instances], size: tuple[int, int], wanted: tuple[int, int]
    ) -> Instances:
        names = ("scores", "pred_classes", "pred_levels", "pred_branches")
        boxes = torch.cat([view.pred_boxes.tensor for view in views])
        fields = (torch.cat([view.get(name) for view in views]) for name in names)
        found = self.suppression([Candidates(boxes[None], *(field[None] for field in fields))])
        sizes = torch.tensor([size, wanted], device=boxes.device)[:, None]
        (merged,) = to_instances(resized(found, *sizes), [wanted])
        return merged


def _sizes(cfg: CfgNode) -> tuple[Sequence[int], int]:
    """Short sides of the views, and the longest side."""
    own, default = cfg.TEST.AUG, get_cfg().TEST.AUG
    if list(own.MIN_SIZES) != list(default.MIN_SIZES):
        return own.MIN_SIZES, own.MAX_SIZE
    if cfg.INPUT.MIN_SIZE_TEST <= 0:
        raise ValueError(
            "TEST.AUG.MIN_SIZES is not set, and INPUT.MIN_SIZE_TEST 0 gives no size to start from: "
            "set it, such as (640, 800)."
        )
    max_size = own.MAX_SIZE
    if max_size == default.MAX_SIZE:
        max_size = round(FACTORS[-1] * cfg.INPUT.MAX_SIZE_TEST)
    return [round(factor * cfg.INPUT.MIN_SIZE_TEST) for factor in FACTORS], max_size
