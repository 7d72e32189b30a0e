"""A detector as one program of tensors, from pictures of any size to detections.

It can be traced for TorchScript and for ONNX. Everything but the suppression is what the detector
itself runs.

Letters: N pictures; C candidates of a picture; D detections of a picture; K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import inference
from ..detectors import FSAF
from ..inference import Candidates

# torchvision's batched_nms on a CPU shifts the classes of so many numbers apart, and goes class by
# class where there are more. Shifted boxes are rounded, so that this decides what is suppressed.
MAX_SHIFTED = 4000


class Outputs(NamedTuple):
    """Of the program. Places of a picture without a detection come last; their score is 0."""

    boxes: Tensor  # (N, D, 4) float32, (x0, y0, x1, y1) in pixels of the input
    scores: Tensor  # (N, D) float32, falling
    classes: Tensor  # (N, D) int64 in 0..K-1
    levels: Tensor  # (N, D) int64, the pyramid level that answered
    anchor_free: Tensor  # (N, D) bool, whether the anchor-free branch answered


class DetectionProgram(nn.Module):
    """Normalises, pads, runs the network, decodes and, unless told otherwise, suppresses."""

    def __init__(self, model: FSAF, *, with_nms: bool = True) -> None:
        """
        Args:
            model: whose weights and settings it has.
            with_nms: whether to suppress; else all candidates come out, (N, C), in no order.
        """
        super().__init__()
        self.model = model
        self.with_nms = with_nms
        self.eval()

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        """Detect.

        Args:
            images: (N, 3, H, W) float32 of 0 to 255 in the channel order of the training; each
                picture lies in the upper left corner.
            sizes: (N, 2) int64, height and width of each picture.
        """
        pyramid = self.model.backbone(self._normalised(images, sizes))
        features = [pyramid[name] for name in self.model.head_in_features]
        parts = self.model.decode(self.model.head(features), sizes)
        if not self.with_nms:
            return _outputs(_joined(parts))
        if self.model.nms_per_level and torch.onnx.is_in_onnx_export():
            parts = [part._replace(scores=self._suppressed(part)) for part in parts]
        found = _joined(parts)
        if torch.onnx.is_in_onnx_export():
            scores = self._suppressed(_shifted(found))
        else:
            scores = _suppressed_each(
                *found, self.model.test_nms_thresh, self.model.nms_per_level, inference.NONE
            )
        scores, index = inference.stable_topk(scores, self.model.max_detections_per_image)
        boxes = found.boxes.gather(1, index[..., None].expand(-1, -1, 4))
        return _outputs(Candidates(boxes, scores, *(field.gather(1, index) for field in found[2:])))

    def _normalised(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Normalise; around the pictures there is 0, to the multiple that the network needs."""
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
        kinds = torch.arange(self.model.num_classes, device=found.classes.device)
        of_class = found.classes[:, None] == kinds[:, None]
        scores = found.scores[:, None].where(of_class, 0.0)
        chosen = _OnnxNms.apply(found.boxes, scores, self.model.test_nms_thresh)
        stay = torch.zeros_like(found.scores)
        stay[chosen[:, 0], chosen[:, 2]] = 1.0
        return found.scores.masked_fill(stay == 0, inference.NONE)


def _joined(parts: list[Candidates]) -> Candidates:
    return Candidates(*(torch.cat(field, dim=1) for field in zip(*parts)))


def _outputs(found: Candidates) -> Outputs:
    # Scores of candidates are above 0.
    return Outputs(*found._replace(scores=found.scores.clamp(min=0)))


def _shifted(found: Candidates) -> Candidates:
    """Round boxes as detectron2's suppression does, see MAX_SHIFTED."""
    empty = found.scores == inference.NONE
    highest = found.boxes.masked_fill(empty[..., None], -torch.inf).amax(dim=(1, 2))
    shift = found.classes.to(found.boxes.dtype) * (highest + 1)[:, None]
    shift = shift.masked_fill(empty | ((~empty).sum(dim=1) * 4 > MAX_SHIFTED)[:, None], 0.0)
    return found._replace(boxes=found.boxes + shift[..., None])


@torch.jit.script_if_tracing
def _suppressed_each(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    levels: Tensor,
    anchor_free: Tensor,
    nms_thresh: float,
    nms_per_level: bool,
    none: float,
) -> Tensor:
    """Scores (N, C), ``none`` for what is suppressed or empty, image by image."""
    result = torch.full_like(scores, none)
    for image in range(boxes.shape[0]):
        stay = inference.surviving(
            boxes[image],
            scores[image],
            classes[image],
            levels[image] * 2 + anchor_free[image].long(),
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
