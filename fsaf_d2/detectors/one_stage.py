"""A dense detector: backbone, towers, one or more branches, and a suppression.

Letters: N images; M objects of the batch; L levels; K classes. Boxes are (x0, y0, x1, y1) in pixels
of the network's input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList, Instances
from detectron2.utils import comm
from torch import Tensor, nn

from ..assignment.grid import Grid, to_device
from ..assignment.objects import Objects
from ..heads.towers import ConvTowers
from ..inference.candidates import NONE, Candidates, clip_to_images, resized, to_instances
from ..inference.suppression import Suppression
from ..necks.fpn import require_known_pyramid
from .branch import (
    Branch,
    in_float32,
    kinds_of_branches,
    require_named_terms,
    traits_of_branches,
)
from .contract import (
    ALL_BRANCHES,
    BRANCH_ENDING,
    DetectorContract,
    LossTerm,
    Traits,
    keep_modes,
)


@META_ARCH_REGISTRY.register()
class OneStageDetector(DetectorContract, nn.Module):
    """Branches that answer on the same features, trained and run together.

    Every branch has its own layers, targets and losses; the losses are added. At inference the
    candidates of all branches and levels are suppressed together.

    Detections carry two fields beside detectron2's: ``pred_levels`` (int64, index into
    ``head_in_features``) and ``pred_branches`` (int64, index into the names of the branches).
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        towers: nn.Module,
        branches: Mapping[str, Branch],
        num_classes: int,
        head_in_features: Sequence[str] | None = None,
        suppression: Suppression | None = None,
        score_thresh: float = 0.05,
        pixel_mean: Sequence[float] = (103.53, 116.28, 123.675),
        pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        """
        Args:
            backbone: gives the pyramid.
            towers: turns one map of each level into two, see :class:`ConvTowers`.
            branches: by name; the order is that of ``pred_branches``.
            num_classes: K.
            head_in_features: the levels, finest first; by default all that the backbone gives.
            suppression: of the candidates; NMS at 0.5 by default.
            score_thresh: the score below which the branches give nothing, as it is told.
            pixel_mean, pixel_std: of each channel, by which images are normalised.

        Raises:
            ValueError: there is no branch, or two of them have losses of one name.
        """
        super().__init__()
        names = [name for branch in branches.values() for name in branch.loss_names]
        if not branches or len(set(names)) < len(names):
            raise ValueError(
                f"Branches {list(branches)} cannot be joined: there must be one or more, with "
                "losses of different names."
            )
        shapes = backbone.output_shape()
        if head_in_features is None:
            head_in_features = sorted(shapes, key=lambda name: shapes[name].stride)
        self.backbone = backbone
        self.towers = towers
        self.branches = nn.ModuleDict(branches)
        self.num_classes = num_classes
        self.head_in_features = list(head_in_features)
        self.strides = [shapes[name].stride for name in self.head_in_features]
        self.suppression = suppression or Suppression()
        self.score_thresh = score_thresh
        self.detects_each_branch = False
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    @classmethod
    def branch_names(cls, cfg: CfgNode) -> list[str]:
        """The branches that a config asks for; what it leaves open is for detectors to say."""
        return list(cfg.MODEL.BRANCHES)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Read the arguments from a config: RetinaNet's keys, and each branch its own."""
        require_known_pyramid(cfg)
        kinds = kinds_of_branches(cls.branch_names(cfg))
        backbone = build_backbone(cfg)
        retinanet = cfg.MODEL.RETINANET
        input_shape = _shapes_of(backbone, cfg)
        return {
            "backbone": backbone,
            "towers": ConvTowers(cfg, input_shape),
            "branches": {name: kind(cfg, input_shape) for name, kind in kinds.items()},
            "num_classes": retinanet.NUM_CLASSES,
            "head_in_features": retinanet.IN_FEATURES,
            "suppression": Suppression(
                nms_thresh=retinanet.NMS_THRESH_TEST,
                max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            ),
            "score_thresh": retinanet.SCORE_THRESH_TEST,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @classmethod
    def traits_from_config(cls, cfg: CfgNode) -> Traits:
        """What is known of the detector that a config describes.

        Raises:
            ValueError: a branch is unknown.
        """
        kinds = kinds_of_branches(cls.branch_names(cfg))
        retinanet = cfg.MODEL.RETINANET
        return traits_of_branches(
            retinanet.NUM_CLASSES, retinanet.SCORE_THRESH_TEST, retinanet.IN_FEATURES, kinds, cfg
        )

    @property
    def traits(self) -> Traits:
        """What is known of it."""
        levels, branches = self.head_in_features, self.branches
        return traits_of_branches(self.num_classes, self.score_thresh, levels, branches)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Compute the losses in training, and else detect.

        Args:
            batched_inputs: a dict per image with ``image`` (3, H, W) of 0 to 255, in training
                ``instances`` with ``gt_boxes`` and ``gt_classes``, which stay where they are: on
                the CPU, matching them never waits for a GPU. Detections refer to ``height`` and
                ``width``, where these are given.

        Returns:
            the losses by name, or a dict per image with ``instances``; of a detector of several
            branches within :func:`fsaf_d2.detectors.each_branch`, also with what each finds alone.

        Raises:
            ValueError: an image to train with has no ``instances``.
        """
        images = self.preprocess_image(batched_inputs)
        predictions, grid = self._predict(images.tensor)
        if not self.training:
            return self._detect(predictions, grid, images.image_sizes, batched_inputs)
        terms = self._terms(predictions, grid, batched_inputs)
        return self._divided(terms)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Copy images to the device without waiting for it; normalise, pad and batch them."""
        images = [to_device(x["image"], self.device) for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return ImageList.from_tensors(images, self.backbone.size_divisibility)

    def _predict(self, images: Tensor) -> tuple[dict[str, tuple], Grid]:
        """What every branch says, and the grid of the levels, on the CPU."""
        pyramid = self.backbone(images)
        features = [pyramid[name] for name in self.head_in_features]
        class_features, box_features = self.towers(features)
        sizes = [feature.shape[-2:] for feature in features]
        grid = Grid.of(self.strides, sizes, torch.device("cpu"))
        predictions = {
            name: branch(class_features, box_features) for name, branch in self.branches.items()
        }
        return predictions, grid

    def _terms(
        self, predictions: Mapping[str, tuple], grid: Grid, batched_inputs: list[dict]
    ) -> dict[str, dict[str, LossTerm]]:
        """The losses of each branch, in float32; NaN where a box of an object is not finite."""
        for x in batched_inputs:
            if "instances" not in x:
                name = x.get("file_name", "an image")
                raise ValueError(f"{name} has no 'instances' to train with; model.eval() detects.")
        objects = Objects.of([x["instances"] for x in batched_inputs])
        is_finite = bool(torch.isfinite(objects.boxes).all())
        if not is_finite:
            # Some assignments would only lose such an object; the step has to be seen.
            objects = objects._replace(boxes=objects.boxes.nan_to_num(0, 0, 0))
        terms = {
            name: branch.losses(in_float32(predictions[name]), objects, grid)
            for name, branch in self.branches.items()
        }
        for name, branch in self.branches.items():
            require_named_terms(name, terms[name], branch.loss_names)
            if not is_finite:
                terms[name] = {
                    key: term._replace(total=term.total * math.nan)
                    for key, term in terms[name].items()
                }
        return terms

    def _divided(self, terms: Mapping[str, dict[str, LossTerm]]) -> dict[str, Tensor]:
        """Divide by what the processes have counted together, as one with all batches would."""
        num_processes = comm.get_world_size()
        places = [(part, name) for part, of_part in terms.items() for name in of_part]
        counts = torch.stack([terms[part][name].count.detach().float() for part, name in places])
        if num_processes > 1:
            torch.distributed.all_reduce(counts)
        losses = {}
        for part, of_part in terms.items():
            shared = {
                name: count for (of, name), count in zip(places, counts.unbind()) if of == part
            }
            divisors = self.branches[part].divisors(of_part, shared)
            for name, term in of_part.items():
                # Gradients are averaged over processes.
                losses[name] = term.total * (term.weight * num_processes / divisors[name])
        return losses

    @torch.no_grad()
    def loss_terms(self, batched_inputs: list[dict]) -> dict[str, LossTerm]:
        """Compute the losses of annotated images, and change nothing; see the contract."""
        with keep_modes(self):
            self.eval()
            predictions, grid = self._predict(self.preprocess_image(batched_inputs).tensor)
            terms = self._terms(predictions, grid, batched_inputs)
        return {name: term for of_part in terms.values() for name, term in of_part.items()}

    def observed(self) -> dict[str, nn.Module]:
        """The branches."""
        return dict(self.branches.items())

    def compiled(self) -> list[nn.Module]:
        """Backbone, towers and branches."""
        return [self.backbone, self.towers, *self.branches.values()]

    def at_step(self, step: int) -> None:
        """Take note that a step of training begins."""
        for branch in self.branches.values():
            branch.at_step(step)

    def counts(self) -> dict[str, Tensor]:
        """What the last training step of this process has counted, for the log."""
        found = {}
        for branch in self.branches.values():
            for name, value in branch.counted.items():
                if value.dim() == 0:
                    found[name] = value
                else:
                    levels = (f"{name}_{level}" for level in self.head_in_features)
                    found.update(zip(levels, value.unbind()))
        return found

    def detect_each_branch(self, wanted: bool) -> bool:
        """Also give what each branch finds alone; what it was before."""
        before, self.detects_each_branch = self.detects_each_branch, wanted
        return before

    def candidates(self, images: Tensor, image_sizes: Tensor) -> list[Candidates]:
        """Detect up to the suppression, see the contract."""
        predictions, grid = self._predict(images)
        return self._clipped(self._decoded(predictions, grid), image_sizes)

    def _decoded(self, predictions: Mapping[str, tuple], grid: Grid) -> dict[str, list[Candidates]]:
        """The candidates of each branch, a tuple of them for each level."""
        decoded = {}
        for index, (name, branch) in enumerate(self.branches.items()):
            parts = branch.decode(predictions[name], grid)
            decoded[name] = [
                part._replace(branches=torch.full_like(part.classes, index)) for part in parts
            ]
        return decoded

    def _clipped(
        self, decoded: Mapping[str, list[Candidates]], image_sizes: Tensor
    ) -> list[Candidates]:
        """Clip all candidates of the images in which a branch that asks for it has any."""
        # RetinaNet clips last. Boxes of two branches that agree on an object at the border differ
        # beyond it, so they are clipped first; where anchors alone answer, it is as in RetinaNet.
        parts = [part for of_branch in decoded.values() for part in of_branch]
        found = [
            (part.scores != NONE).any(dim=1)
            for name, of_branch in decoded.items()
            for part in of_branch
            if self.branches[name].clips_candidates
        ]
        if not found:
            return parts
        clipped = torch.stack(found).any(dim=0)
        return [clip_to_images(part, image_sizes, clipped) for part in parts]

    def _detect(
        self,
        predictions: Mapping[str, tuple],
        grid: Grid,
        image_sizes: Sequence[tuple[int, int]],
        batched_inputs: list[dict],
    ) -> list[dict[str, Instances]]:
        """Detect in all images at once, at the sizes that they ask for."""
        wanted = [
            (x.get("height", size[0]), x.get("width", size[1]))
            for x, size in zip(batched_inputs, image_sizes)
        ]
        sizes, wanted_sizes = to_device(torch.tensor([image_sizes, wanted]), self.device)
        decoded = self._decoded(predictions, grid)
        shares = {ALL_BRANCHES: decoded}
        if self.detects_each_branch and len(decoded) > 1:
            shares.update((f"{name}{BRANCH_ENDING}", {name: decoded[name]}) for name in decoded)
        results: list[dict[str, Instances]] = [{} for _ in batched_inputs]
        for name, share in shares.items():
            found = self.suppression(self._clipped(share, sizes))
            found = to_instances(resized(found, sizes, wanted_sizes), wanted)
            for result, instances in zip(results, found):
                result[name] = instances
        return results


def _shapes_of(backbone: Backbone, cfg: CfgNode) -> list[ShapeSpec]:
    shapes, names = backbone.output_shape(), cfg.MODEL.RETINANET.IN_FEATURES
    for name in names:
        if name not in shapes:
            raise ValueError(
                f"MODEL.RETINANET.IN_FEATURES {names} names '{name}', which MODEL.BACKBONE"
                f".NAME '{cfg.MODEL.BACKBONE.NAME}' does not give: name levels that it has "
                "(those of HRNet's pyramid follow from MODEL.HRFPN.OUT_STRIDES)."
            )
    return [shapes[name] for name in names]
