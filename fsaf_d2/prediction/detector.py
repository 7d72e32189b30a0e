"""A trained detector that takes images, in files or in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Instances
from torch import Tensor, nn
from torchvision.ops import nms

from ..data.loading.mapper import to_planes
from ..data.loading.resizing import shortest_edge
from ..data.reading.image_headers import MAX_PIXELS
from ..visualization.detections import MIN_LONGER_SIDE, draw_detections
from .batches import by_shape
from .given_images import Channels, GivenImage, is_single, to_array

# Longer side of what is drawn, in pixels: labels stay readable on a screen.
MAX_DRAWN_SIDE = 1600


class Prepared(NamedTuple):
    """An image and what the network gets of it."""

    image: np.ndarray  # (H, W, 3) uint8 as it was given, upright
    channels: Channels  # of `image`
    resized: Tensor  # (3, h, w) uint8, in the network's channel order


class Detector:
    """Finds objects in images, with the reading and resizing of the training's evaluation.

    Detections are detectron2's ``Instances`` on the CPU, in pixels of the upright image, the
    surest first: ``pred_boxes``, ``scores``, ``pred_classes`` (indices into ``class_names``),
    and, where the detector tells them, ``pred_levels`` (indices into ``level_names``) and
    ``pred_branches`` (indices into ``branch_names``).

    Attributes:
        class_names: of the K classes.
        category_ids: the K classes' ids in the data set.
        thresholds: (K,) the score from which a detection of each class counts.
        level_names: of the pyramid's levels, such as "p3", the finest first; empty if detections do
            not tell them.
        branch_names: of the branches, such as "point"; empty if detections do not tell them.
        input_format: the network's channel order.
        short_side, max_side: what images are resized to, in pixels.
        size_divisibility: to multiples of it the network pads images.
        batch_size: images that pass the network together at the most.
        max_pixels: files of more pixels are not decoded, and no more pass the network together.
        notes: sentences on what was assumed because the weights' file does not say it.
        nms_thresh: the IoU above which the less sure of two detections is suppressed.
        agnostic_nms: whether that is done over classes as well, of what the network has given; to
            be set, False by default.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        thresholds: Sequence[float],
        level_names: Sequence[str] = (),
        branch_names: Sequence[str] = (),
        short_side: int,
        max_side: int,
        size_divisibility: int,
        resize: str = "auto",
        input_format: Channels = "BGR",
        max_pixels: int = MAX_PIXELS,
        size_keys: str = "INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST",
        batch_size: int = 4,
        nms_thresh: float = 0.5,
        notes: Sequence[str] = (),
    ) -> None:
        """
        Args:
            model: a detector, or what stands for one; it is set to evaluate.
            class_names, category_ids, thresholds: of each class.
            level_names, branch_names: of each level and branch, if detections tell them.
            short_side: that images are resized to, in pixels; 0 for as they are.
            max_side: above which no longer side gets.
            size_divisibility: to multiples of it the network pads images.
            resize: by what images are resized, as ``INPUT.RESIZE``.
            input_format: the network's channel order.
            max_pixels: files of more pixels are not decoded, and no more pass the network together.
            size_keys: where the sides come from, for messages.
            batch_size: images that pass the network together at the most.
            nms_thresh: IoU of ``agnostic_nms``.
            notes: what was assumed.
        """
        self.model = model.eval()
        self.class_names = list(class_names)
        self.category_ids = list(category_ids)
        self.thresholds = torch.tensor(thresholds, dtype=torch.float32)
        self.level_names = list(level_names)
        self.branch_names = list(branch_names)
        self.batch_size = batch_size
        self.notes = list(notes)
        self.nms_thresh, self.agnostic_nms = nms_thresh, False
        self.short_side, self.max_side = short_side, max_side
        self.size_divisibility = max(size_divisibility, 1)
        self.resize = resize
        self._resize = shortest_edge(
            short_side, max_side, resize, max_pixels=max_pixels, keys=size_keys
        )
        self.input_format = input_format
        self.max_pixels = max_pixels

    def __call__(
        self,
        images: GivenImage | Sequence[GivenImage],
        *,
        channels: Channels = "BGR",
        min_score: float | None = None,
    ) -> Instances | list[Instances]:
        """Find the objects in one image, or in each of several.

        Args:
            images: path of a file, uint8 array (H, W, 3) as ``cv2.imread`` gives it, or image of
                Pillow's; or a list of these.
            channels: order of the arrays' channels: "BGR" as OpenCV has them, or "RGB" as Pillow
                and matplotlib have them. Files are read in the right order by themselves.
            min_score: the least score of what is returned, for all classes. By default the
                ``thresholds``; 0 for all that the network finds.

        Returns:
            the detections, or for a list a list of them; see the class.

        Raises:
            OSError: a file cannot be read, is no image or is too large; the message names it.
            ValueError: an image is none of these, an array is not as said above, or the network
                would get too many pixels.
        """
        if is_single(images):
            return self([images], channels=channels, min_score=min_score)[0]
        prepared = (self.prepare(image, channels) for image in images)
        found: dict[int, Instances] = {}
        batches = by_shape(
            enumerate(prepared), lambda x: self.padded_shape(x[1]), batch_size=self.batch_size
        )
        for batch in batches:
            places, inputs = zip(*batch)
            found.update(zip(places, self.detect(inputs)))
        return [self.choose(found[place], min_score) for place in sorted(found)]

    def prepare(self, image: GivenImage, channels: Channels = "BGR") -> Prepared:
        """Read an image, if it is a file, and resize it for the network.

        Raises:
            OSError: as :meth:`__call__`.
            ValueError: as :meth:`__call__`.
        """
        if channels not in ("BGR", "RGB"):
            raise ValueError(f"channels must be 'BGR' or 'RGB', not {channels!r}.")
        if not isinstance(image, np.ndarray):
            channels = self.input_format
        pixels = to_array(image, channels, self.max_pixels)
        wanted = pixels if channels == self.input_format else _swapped(pixels)
        height, width = pixels.shape[:2]
        augmented = T.AugInput(wanted)
        try:
            self._resize(augmented)
        except (ValueError, cv2.error) as error:
            raise ValueError(
                f"An image of {width} x {height} pixels cannot be resized for the network: {error}"
            ) from error
        prepared = Prepared(pixels, channels, to_planes(augmented.image))
        padded = self.padded_shape(prepared)
        if math.prod(padded) > self.max_pixels:
            raise ValueError(
                f"An image of {width} x {height} pixels has {padded[1]} x {padded[0]} once it is "
                f"padded to multiples of {self.size_divisibility}, more than the "
                f"{self.max_pixels} that INPUT.MAX_PIXELS allows."
            )
        return prepared

    def padded_shape(self, prepared: Prepared) -> tuple[int, ...]:
        """Height and width that the network pads an image to.

        Images of one shape may share a batch: what is found in them does not depend on it.
        """
        step = self.size_divisibility
        return tuple(math.ceil(side / step) * step for side in prepared.resized.shape[1:])

    @torch.no_grad()
    def detect(self, batch: Sequence[Prepared]) -> list[Instances]:
        """Pass images through the network together; all that is found, whatever its score."""
        largest = max((math.prod(self.padded_shape(x)) for x in batch), default=1)
        step = max(1, self.max_pixels // largest)
        if step < len(batch):
            return [*self.detect(batch[:step]), *self.detect(batch[step:])]
        inputs = [
            {"image": x.resized, "height": x.image.shape[0], "width": x.image.shape[1]}
            for x in batch
        ]
        return [output["instances"].to("cpu") for output in self.model(inputs)]

    def choose(self, found: Instances, min_score: float | None = None) -> Instances:
        """The detections that reach ``min_score``, or by default their class's threshold.

        With ``agnostic_nms`` of those that overlap, of any classes, the surest alone.
        """
        least = self.thresholds[found.pred_classes] if min_score is None else min_score
        found = found[found.scores >= least]
        if not self.agnostic_nms:
            return found
        return found[nms(found.pred_boxes.tensor, found.scores, self.nms_thresh)]

    def draw(
        self,
        image: GivenImage,
        found: Instances,
        *,
        channels: Channels = "BGR",
        show: Sequence[str] = (),
    ) -> np.ndarray:
        """Draw detections with class and score; the class gives the colour.

        Args:
            image: as for :meth:`__call__`.
            found: what is drawn.
            channels: order of the channels, of ``image`` if it is an array and of the result.
            show: what labels tell beside class and score: "level", "branch".

        Returns:
            uint8 (h, w, 3). Small images are magnified and large ones are shrunk, so that the
            labels can be read.
        """
        image = to_array(image, channels, self.max_pixels)
        drawn = draw_detections(
            _swapped(image) if channels == "BGR" else image,
            found,
            class_names=self.class_names,
            level_names=self.level_names if "level" in show else (),
            branch_names=self.branch_names if "branch" in show else (),
            scale=drawing_scale(*image.shape[:2]),
        )
        return _swapped(drawn) if channels == "BGR" else drawn


def _swapped(image: np.ndarray) -> np.ndarray:
    """BGR as RGB, and back; a reversed view would be slow to copy later."""
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def drawing_scale(height: int, width: int) -> float:
    """By how much an image is magnified to be drawn on."""
    longer = max(height, width)
    if longer > MAX_DRAWN_SIDE:
        return MAX_DRAWN_SIDE / longer
    return max(1, math.ceil(MIN_LONGER_SIDE / longer))
