"""A detector as one program of tensors, from images of any size to detections.

It can be traced for TorchScript and for ONNX. Everything but the suppression is what the detector
itself runs.

Letters: N images; C candidates of an image; D detections of an image; K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..detectors.contract import DetectorContract
from ..inference.candidates import NONE, Candidates, joined, stable_topk
from ..inference.suppression import part_of, surviving

# torchvision's batched_nms on a CPU shifts the classes of so many numbers apart, and goes class by
# class where there are more. Shifted boxes are rounded, so that this decides what is suppressed.
MAX_SHIFTED = 4000


class Outputs(NamedTuple):
    """Of the program. Places of an image without a detection come last; their score is 0."""

    boxes: Tensor  # (N, D, 4) float32, (x0, y0, x1, y1) in pixels of the input
    scores: Tensor  # (N, D) float32, falling
    classes: Tensor  # (N, D) int64 in 0..K-1
    levels: Tensor  # (N, D) int64, the pyramid level that answered
    branches: Tensor  # (N, D) int64, the branch that answered


class DetectionProgram(nn.Module):
    """Normalises, pads, runs the network, decodes and, unless told otherwise, suppresses."""

    def __init__(self, model: DetectorContract, *, with_nms: bool = True) -> None:
        """
        Args:
            model: whose weights and settings it has; one with a suppression.
            with_nms: whether to suppress; else all candidates come out, (N, C), in no order.
        """
        super().__init__()
        self.model = model
        self.with_nms = with_nms
        self.num_classes = model.traits.num_classes
        self.eval()

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        """Detect.

        Args:
            images: (N, 3, H, W) float32 of 0 to 255 in the channel order of the training; each
                image lies in the upper left corner.
            sizes: (N, 2) int64, height and width of each image.
        """
        suppression = self.model.suppression
        parts = self.model.candidates(self._normalised(images, sizes), sizes)
        if not self.with_nms:
            return _outputs(joined(parts))
        if suppression.nms_per_level and torch.onnx.is_in_onnx_export():
            parts = [part._replace(scores=self._suppressed(part)) for part in parts]
        found = joined(parts)
        if torch.onnx.is_in_onnx_export():
            scores = self._suppressed(_shifted(found))
        else:
            scores = _suppressed_each(
                found.boxes,
                found.scores,
                found.classes,
                part_of(found.levels, found.branches),
                suppression.nms_thresh,
                suppression.nms_per_level,
                NONE,
            )
        scores, index = stable_topk(scores, suppression.max_detections)
        return _outputs(found.at(index)._replace(scores=scores))

    def _normalised(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Normalise; around the images there is 0, to the multiple that the network needs."""
        images = (images - self.model.pixel_mean) / self.model.pixel_std
        inside = [
            torch.arange(images.shape[axis], device=images.device) < sizes[:, axis - 2, None]
            for axis in (2, 3)
        ]
        inside = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        images = images.masked_fill(~inside, 0.0)
        step = max(self.model.backbone.size_divisibility, 1)
        height, width = images.shape[2], images.shape[3]
        return F.pad(images, [0, (step - width % step) % step, 0, (step - height % step) % step])

    def _suppressed(self, found: Candidates) -> Tensor:
        """Scores (N, C), NONE for what is suppressed or empty, by ONNX's class-wise operator."""
        kinds = torch.arange(self.num_classes, device=found.classes.device)
        of_class = found.classes[:, None] == kinds[:, None]
        scores = found.scores[:, None].where(of_class, 0.0)
        chosen = _OnnxNms.apply(found.boxes, scores, self.model.suppression.nms_thresh)
        stay = torch.zeros_like(found.scores)
        stay[chosen[:, 0], chosen[:, 2]] = 1.0
        return found.scores.masked_fill(stay == 0, NONE)


def _outputs(found: Candidates) -> Outputs:
    # Scores of candidates are above 0.
    return Outputs(*found._replace(scores=found.scores.clamp(min=0)))


def _shifted(found: Candidates) -> Candidates:
    """Round boxes as detectron2's suppression does, see MAX_SHIFTED."""
    empty = found.scores == NONE
    highest = found.boxes.masked_fill(empty[..., None], -torch.inf).amax(dim=(1, 2))
    shift = found.classes.to(found.boxes.dtype) * (highest + 1)[:, None]
    shift = shift.masked_fill(empty | ((~empty).sum(dim=1) * 4 > MAX_SHIFTED)[:, None], 0.0)
    return found._replace(boxes=found.boxes + shift[..., None])


@torch.jit.script_if_tracing
def _suppressed_each(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    parts: Tensor,
    nms_thresh: float,
    nms_per_level: bool,
    none: float,
) -> Tensor:
    """Scores (N, C), ``none`` for what is suppressed or empty, image by image."""
    result = torch.full_like(scores, none)
    for image in range(boxes.shape[0]):
        stay = surviving(
            boxes[image],
            scores[image],
            classes[image],
            parts[image],
            nms_thresh=nms_thresh,
            nms_per_level=nms_per_level,
        )
        result[image, stay] = scores[image, stay]
    return result


class _OnnxNms(torch.autograd.Function):
    """ONNX's NonMaxSuppression, which PyTorch itself does not have."""

    @staticmethod
    def forward(ctx: object, boxes: Tensor, scores: Tensor, nms_thresh: float) -> Tensor:
        """Indices (S, 3) of image, class and box; what comes out here is only traced."""
        return torch.nonzero(scores > 0)

    @staticmethod
    def symbolic(
        g: torch.Graph, boxes: torch.Value, scores: torch.Value, nms_thresh: float
    ) -> torch.Value:
        """The node; boxes are (N, C, 4), scores (N, K, C)."""
        most = torch.tensor([torch.iinfo(torch.int32).max])
        return g.op(
            "NonMaxSuppression",
            boxes,
            scores,
            g.op("Constant", value_t=most),
            g.op("Constant", value_t=torch.tensor([nms_thresh])),
            g.op("Constant", value_t=torch.tensor([0.0])),
        )
