"""FSAF: RetinaNet with an anchor-free branch on every level, trained jointly (arXiv 1903.00621).

Letters: N images; M objects of the batch; L levels; R locations of one image over all levels; A
anchors per location; K classes. Boxes are (x0, y0, x1, y1) in pixels of the network's input.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from fvcore.nn import smooth_l1_loss
from torch import Tensor, nn
from torch.nn import functional as F

from .. import inference
from ..assignment import feature_selection
from ..assignment.anchor_matching import AnchorKinds, AnchorMatches, match_anchors
from ..assignment.feature_selection import Objects, SelectionRule, point_box_transform
from ..assignment.regions import Cells, Grid, to_device
from ..backbones.fpn import group_norm, require_known_pyramid
from ..inference import Candidates
from ..losses import (
    AnchorPlaces,
    anchor_focal_loss_sums,
    background_loss_sums,
    gather_anchor_deltas,
    point_loss_sums,
)

# RetinaNet's running mean of the positive anchors: its first value and the weight of a new one.
INITIAL_NORMALIZER = 100.0
MOMENTUM = 0.1
_NO_STEP = 1 << 62


class Predictions(NamedTuple):
    """The output of :class:`FSAFHead`, a tensor per level; empty lists for a branch that is off."""

    logits: list[Tensor]  # (N, A * K, H, W)
    anchor_deltas: list[Tensor]  # (N, A * 4, H, W)
    point_logits: list[Tensor]  # (N, K, H, W)
    point_deltas: list[Tensor]  # (N, 4, H, W), distances >= 0 in units of BOX_NORMALIZER strides


class BranchLosses(NamedTuple):
    """The losses of a branch, summed over its locations or anchors and divided by nothing."""

    cls: Tensor
    box_reg: Tensor
    num_positives: int | Tensor
    of_levels: Callable[[], tuple[list[Tensor], list[Tensor]]]  # both losses of each level
    levels: Tensor | None = None  # (M,) in 0..L-1, which the objects have selected, if they do


class DecodedBranches(NamedTuple):
    """Candidates of each level; empty lists for a branch that is off."""

    points: list[Candidates]
    anchors: list[Candidates]
    shared_scores: list[Tensor]  # of the anchors, see inference.decode_level


class FSAFHead(RetinaNetHead):
    """RetinaNet's two towers with two output layers for each branch (FSAF Sec. 3.1)."""

    @configurable
    def __init__(
        self,
        *,
        input_shape: list[ShapeSpec],
        num_classes: int,
        conv_dims: list[int],
        num_anchors: int = 1,
        norm: str = "",
        prior_prob: float = 0.01,
        anchor_branch: bool = True,
        anchor_free_branch: bool = True,
        bbox_bias: float = 0.1,
    ) -> None:
        """
        Args:
            input_shape: of each level.
            num_classes: K.
            conv_dims: channels of each layer of the towers.
            num_anchors: A; it plays no part without the anchor branch.
            norm: of the towers, "" for none.
            prior_prob: initial score of every class.
            anchor_branch, anchor_free_branch: whether the branch has layers.
            bbox_bias: initial value of the four distances.

        Raises:
            ValueError: both branches are off, or ``bbox_bias`` is not above 0.
        """
        if not (anchor_branch or anchor_free_branch):
            raise ValueError(
                "MODEL.FSAF.ANCHOR_BRANCH and MODEL.FSAF.ANCHOR_FREE_BRANCH are both False: "
                "a detector needs one of them."
            )
        # Below 0 the ReLU has no gradient anywhere, and the branch could never learn.
        _require(0 < bbox_bias < math.inf, "BBOX_BIAS", "more than 0 and finite", bbox_bias)
        super().__init__(
            input_shape=input_shape,
            num_classes=num_classes,
            num_anchors=num_anchors,
            conv_dims=conv_dims,
            # detectron2 0.6 tries out the norm on a single channel, which its own 32 groups refuse.
            norm=group_norm if norm == "GN" else norm,
            prior_prob=prior_prob,
        )
        # What comes before a ReLU of the towers is needed by nobody.
        for module in (*self.cls_subnet, *self.bbox_subnet):
            if isinstance(module, nn.ReLU):
                module.inplace = True
        self.anchor_branch = anchor_branch
        self.anchor_free_branch = anchor_free_branch
        if not anchor_branch:
            del self.cls_score, self.bbox_pred
        if anchor_free_branch:
            self.anchor_free_cls_score = nn.Conv2d(conv_dims[-1], num_classes, 3, padding=1)
            self.anchor_free_bbox_pred = nn.Conv2d(conv_dims[-1], 4, 3, padding=1)
            for layer in (self.anchor_free_cls_score, self.anchor_free_bbox_pred):
                nn.init.normal_(layer.weight, std=0.01)
            prior = torch.tensor(prior_prob)
            nn.init.constant_(self.anchor_free_cls_score.bias, torch.logit(prior).item())
            nn.init.constant_(self.anchor_free_bbox_pred.bias, bbox_bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        """Read the head's arguments from a config."""
        return {
            **super().from_config(cfg, input_shape),
            "anchor_branch": cfg.MODEL.FSAF.ANCHOR_BRANCH,
            "anchor_free_branch": cfg.MODEL.FSAF.ANCHOR_FREE_BRANCH,
            "bbox_bias": cfg.MODEL.FSAF.BBOX_BIAS,
        }

    def forward(self, features: list[Tensor]) -> Predictions:
        """Predict from one feature map (N, C, H, W) per level, finest first."""
        predictions = Predictions([], [], [], [])
        for feature in features:
            cls_feature = self.cls_subnet(feature)
            bbox_feature = self.bbox_subnet(feature)
            if self.anchor_branch:
                predictions.logits.append(self.cls_score(cls_feature))
                predictions.anchor_deltas.append(self.bbox_pred(bbox_feature))
            if self.anchor_free_branch:
                predictions.point_logits.append(self.anchor_free_cls_score(cls_feature))
                predictions.point_deltas.append(F.relu(self.anchor_free_bbox_pred(bbox_feature)))
        return predictions


@META_ARCH_REGISTRY.register()
class FSAF(RetinaNet):
    """RetinaNet joined by an anchor-free branch with online feature selection.

    The anchor branch has the layers, labels, losses and detections of detectron2's RetinaNet, also
    where that deviates from the paper (L1 box loss, running mean of the positives as normalizer);
    only the way they are computed is another. The anchor-free branch assigns every object to the
    level whose predictions for it cost least, and to a small region about its centre there. At
    inference both branches' boxes are merged.

    Detections carry two fields beside detectron2's: ``pred_levels`` (int64, index into
    ``head_in_features``) and ``pred_anchor_free`` (bool, the branch that answered). Within
    :func:`each_branch` the detections of each branch alone come with them.
    """

    @configurable
    def __init__(
        self,
        *,
        head: FSAFHead,
        point_generator: nn.Module,
        selection_rule: SelectionRule | None = None,
        anchor_free_loss_weight: float = 0.5,
        nms_per_level: bool = False,
        **retinanet_args,
    ) -> None:
        """
        Args:
            head: gives :class:`Predictions`.
            point_generator: makes for every location one square box about it, whose side is the
                unit of the predicted distances.
            selection_rule: how objects choose level and locations; the paper's by default.
            anchor_free_loss_weight: lambda.
            nms_per_level: suppress within each level of each branch before merging them.
            retinanet_args: every other argument of detectron2's RetinaNet.

        Raises:
            ValueError: the loss weight is negative or not finite.
        """
        super().__init__(head=head, **retinanet_args)
        _require(
            0 <= anchor_free_loss_weight < math.inf,
            "LOSS_WEIGHT",
            "at least 0 and finite",
            anchor_free_loss_weight,
        )
        self.point_generator = point_generator
        self.selection_rule = selection_rule or SelectionRule()
        self.anchor_free_loss_weight = anchor_free_loss_weight
        self.nms_per_level = nms_per_level
        # Where it is a dict, a training step notes each level's share of every loss in it.
        self.level_losses: dict[str, list[float]] | None = None
        self.detects_each_branch = False
        self._scalars = DeferredScalars()
        # Objects are matched on the CPU, where they come from, while a GPU computes the network.
        self._anchor_kinds, self._point_kinds = (
            kinds_of(generator) for generator in (self.anchor_generator, point_generator)
        )
        if head.anchor_branch:
            self.register_buffer("loss_normalizer", torch.tensor(INITIAL_NORMALIZER))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """Read the arguments from a config: RetinaNet's own, then FSAF's."""
        # RetinaNet's builds a head too, which on 0.6 cannot have GN; ours takes its place.
        require_known_pyramid(cfg)
        plain_cfg = cfg.clone()
        plain_cfg.defrost()
        plain_cfg.MODEL.RETINANET.NORM = ""
        names = cfg.MODEL.RETINANET.IN_FEATURES
        try:
            args = super().from_config(plain_cfg)
        except KeyError as error:
            if error.args[0] not in names:
                raise
            raise ValueError(
                f"MODEL.RETINANET.IN_FEATURES {names} names '{error.args[0]}', which MODEL.BACKBONE"
                f".NAME '{cfg.MODEL.BACKBONE.NAME}' does not give: name levels that it has "
                "(those of HRNet's pyramid follow from MODEL.HRFPN.OUT_STRIDES)."
            ) from error
        shapes = args["backbone"].output_shape()
        input_shape = [shapes[name] for name in args["head_in_features"]]
        fsaf = cfg.MODEL.FSAF
        return {
            **args,
            "head": FSAFHead(cfg, input_shape),
            "point_generator": build_point_generator(
                [shape.stride for shape in input_shape],
                box_normalizer=fsaf.BOX_NORMALIZER,
                point_offset=fsaf.POINT_OFFSET,
            ),
            "selection_rule": SelectionRule(
                effective_scale=fsaf.EFFECTIVE_SCALE,
                ignore_scale=fsaf.IGNORE_SCALE,
                level_selection=fsaf.LEVEL_SELECTION,
                canonical_level=fsaf.CANONICAL_LEVEL,
                canonical_box_size=fsaf.CANONICAL_BOX_SIZE,
                heuristic_steps=fsaf.HEURISTIC_STEPS,
            ),
            "anchor_free_loss_weight": fsaf.LOSS_WEIGHT,
            "nms_per_level": fsaf.NMS_PER_LEVEL,
        }

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
        # Weights that were trained elsewhere lack the running mean: it starts anew.
        if self.head.anchor_branch:
            state_dict.setdefault(f"{prefix}loss_normalizer", torch.tensor(INITIAL_NORMALIZER))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Copy pictures to the device without waiting for it; normalise, pad and batch them."""
        return super().preprocess_image(
            [{**x, "image": to_device(x["image"], self.device)} for x in batched_inputs]
        )

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Compute the losses in training, and else detect.

        Args:
            batched_inputs: a dict per picture with ``image`` (3, H, W) of 0 to 255, in training
                ``instances`` with ``gt_boxes`` and ``gt_classes``, which stay where they are: on
                the CPU, matching them never waits for a GPU. Detections refer to ``height`` and
                ``width``, where these are given.

        Returns:
            the losses by name, or a dict per picture with ``instances``; of a model with both
            branches within :func:`each_branch`, also with ``anchor_branch`` and
            ``anchor_free_branch``.

        Raises:
            ValueError: a picture to train with has no ``instances``.
        """
        both = self.head.anchor_branch and self.head.anchor_free_branch
        if not self.training and not (both and self.detects_each_branch):
            return super().forward(batched_inputs)
        images, features, predictions = self._predict(batched_inputs)
        if not self.training:
            found = self._detect_each_branch(images, features, predictions)
            return [
                {
                    name: _resized(detections[i], images.image_sizes[i], x)
                    for name, detections in found.items()
                }
                for i, x in enumerate(batched_inputs)
            ]
        for x in batched_inputs:
            if "instances" not in x:
                name = x.get("file_name", "a picture")
                raise ValueError(f"{name} has no 'instances' to train with; model.eval() detects.")
        ground_truths = [x["instances"] for x in batched_inputs]
        return self.forward_training(images, features, predictions, ground_truths)

    def _predict(self, batched_inputs: list[dict]) -> tuple[ImageList, list[Tensor], Predictions]:
        images = self.preprocess_image(batched_inputs)
        pyramid = self.backbone(images.tensor)
        features = [pyramid[name] for name in self.head_in_features]
        return images, features, self.head(features)

    @torch.no_grad()
    def inspect(self, batched_inputs: list[dict]) -> dict[str, BranchLosses]:
        """Compute the losses and selected levels of pictures, and change nothing.

        Unlike in training, the running mean of the positives stays as it is, nothing is logged, and
        other processes have no part in it. Layers such as batch norm work in the mode that they are
        in.

        Args:
            batched_inputs: as for training.

        Returns:
            by the names of the branches that are on, ``anchor`` and ``anchor_free``; the latter's
            losses are not yet times the loss weight.
        """
        _, features, predictions = self._predict(batched_inputs)
        predictions = Predictions(*([x.float() for x in levels] for levels in predictions))
        objects = _pack([x["instances"] for x in batched_inputs], torch.device("cpu"))
        found = {}
        if self.head.anchor_branch:
            found["anchor"] = self._anchor_loss_sums(features, predictions, objects)
        if self.head.anchor_free_branch:
            found["anchor_free"] = self._anchor_free_loss_sums(features, predictions, objects)
        return found

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: Predictions,
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Compute the losses of the branches that are on.

        Args:
            images: the batch of N padded images.
            features: (N, C, H, W) for each level.
            predictions: of the head.
            gt_instances: of each image, with ``gt_boxes`` and ``gt_classes``.

        Returns:
            ``loss_cls``, ``loss_box_reg`` of the anchor branch; ``loss_anchor_free_cls``,
            ``loss_anchor_free_box_reg``, already times the loss weight.
        """
        # Under autocast the head's outputs are half precision; every loss is computed in float32.
        predictions = Predictions(*([x.float() for x in levels] for levels in predictions))
        objects = _pack(gt_instances, torch.device("cpu"))
        losses = {}
        with _event_storage():
            if self.head.anchor_branch:
                losses.update(self.anchor_losses(features, predictions, objects))
            if self.head.anchor_free_branch:
                losses.update(self.anchor_free_losses(features, predictions, objects))
        return losses

    def anchor_losses(
        self, features: list[Tensor], predictions: Predictions, objects: Objects
    ) -> dict[str, Tensor]:
        """Compute RetinaNet's losses of the anchor branch.

        They are detectron2's up to rounding; what is background is never listed or compared. The
        running mean that divides them is that of the positives of all processes' batches, so that
        N processes with a batch of B train as one does with a batch of N * B.
        """
        sums = self._anchor_loss_sums(features, predictions, objects)
        num_images = len(predictions.logits[0])
        get_event_storage().put_scalar("num_pos_anchors", sums.num_positives / num_images)
        count = _sum_over_processes(torch.full((), sums.num_positives, device=self.device))
        self.loss_normalizer.mul_(1 - MOMENTUM).add_(count.clamp(min=1), alpha=MOMENTUM)
        normalizer = self.loss_normalizer / comm.get_world_size()
        self._note_levels(sums, 1 / normalizer, ("loss_cls", "loss_box_reg"))
        return {"loss_cls": sums.cls / normalizer, "loss_box_reg": sums.box_reg / normalizer}

    def _anchor_loss_sums(
        self, features: list[Tensor], predictions: Predictions, objects: Objects
    ) -> BranchLosses:
        logits, deltas = predictions[:2]
        kinds, grid = self._anchor_kinds, self._grid(features)
        matches = match_anchors(
            kinds,
            objects,
            grid,
            num_images=len(logits[0]),
            thresholds=self.anchor_matcher.thresholds[1:-1],
            labels=self.anchor_matcher.labels,
            keep_best=self.anchor_matcher.allow_low_quality_matches,
        )
        positives, ignored = (
            AnchorMatches(*(field[matches.labels == label] for field in matches))
            for label in (1, -1)
        )
        places = self._locate(positives, grid)
        cls_losses = anchor_focal_loss_sums(
            logits,
            places,
            to_device(objects.classes[positives.object_index], self.device),
            self._locate(ignored, grid),
            num_classes=self.num_classes,
            alpha=self.focal_loss_alpha,
            gamma=self.focal_loss_gamma,
        )
        boxes = (
            gather_anchor_deltas(deltas, places),
            kinds.boxes(positives.anchor_index, grid),
            objects.boxes[positives.object_index],
        )

        def of_levels() -> tuple[list[Tensor], list[Tensor]]:
            counts = [len(level.image) for level in places]
            parts = zip(*(field.split(counts) for field in boxes))
            return cls_losses, [self._box_loss(*part) for part in parts]

        loss_cls, loss_box_reg = sum(cls_losses), self._box_loss(*boxes)
        return BranchLosses(loss_cls, loss_box_reg, len(positives.labels), of_levels)

    def _locate(self, matches: AnchorMatches, grid: Grid) -> list[AnchorPlaces]:
        """Say where the head answers for anchors, level by level, in the matches' order."""
        num_per_location = self._anchor_kinds.num_per_location
        cells = Cells.at(matches.anchor_index // num_per_location, grid)
        kind = matches.anchor_index % num_per_location
        places = torch.stack([matches.image_index, kind, cells.y, cells.x])
        counts = torch.bincount(cells.level, minlength=len(grid.strides)).tolist()
        parts = to_device(places, self.device).split(counts, dim=1)
        return [AnchorPlaces(*part) for part in parts]

    def _box_loss(self, deltas: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
        """Sum detectron2's box loss over P pairs of anchor and object.

        Args:
            deltas: (P, 4), predicted.
            anchors, boxes: (P, 4), on the CPU.
        """
        if self.box_reg_loss_type == "smooth_l1":
            target_deltas = to_device(
                self.box2box_transform.get_deltas(anchors, boxes), self.device
            )
            return smooth_l1_loss(deltas, target_deltas, self.smooth_l1_beta, reduction="sum")
        # fvcore's IoU losses wait for a GPU.
        anchors, boxes = to_device(anchors, self.device), to_device(boxes, self.device)
        return _dense_box_regression_loss(
            [Boxes(anchors)],
            self.box2box_transform,
            [deltas[None]],
            [boxes],
            ...,
            box_reg_loss_type=self.box_reg_loss_type,
        )

    def anchor_free_losses(
        self, features: list[Tensor], predictions: Predictions, objects: Objects
    ) -> dict[str, Tensor]:
        """Compute the focal and IoU losses of the anchor-free branch (FSAF Sec. 3.2, 3.4).

        Both are summed and divided by the number of positive locations of all processes' batches.
        """
        sums = self._anchor_free_loss_sums(features, predictions, objects)
        num_images = len(predictions.point_logits[0])
        self._log(sums.levels, sums.num_positives / num_images)
        # Deviates from the paper: a location in two effective regions counts once, as it has one
        # target; and the batch is that of all processes, whatever their number.
        count = _sum_over_processes(sums.num_positives).clamp(min=1) / comm.get_world_size()
        weight = self.anchor_free_loss_weight / count
        self._note_levels(sums, weight, ("loss_anchor_free_cls", "loss_anchor_free_box_reg"))
        return {
            "loss_anchor_free_cls": sums.cls * weight,
            "loss_anchor_free_box_reg": sums.box_reg * weight,
        }

    def _anchor_free_loss_sums(
        self, features: list[Tensor], predictions: Predictions, objects: Objects
    ) -> BranchLosses:
        logits, deltas = (
            torch.cat([level.flatten(2) for level in levels], dim=2) for levels in predictions[2:]
        )
        deltas = deltas.transpose(1, 2)
        grid = self._grid(features)
        kinds = self._on_device(self._point_kinds)
        device_grid = Grid(*to_device(torch.stack(grid), self.device))
        points = kinds.boxes(torch.arange(grid.num_locations, device=self.device), device_grid)
        focal_args = {"alpha": self.focal_loss_alpha, "gamma": self.focal_loss_gamma}
        background_losses = background_loss_sums(logits, **focal_args)
        levels, targets = feature_selection.label_points(
            logits.transpose(1, 2),
            deltas,
            points,
            objects,
            grid,
            self.selection_rule.at_step(_training_step()),
            background_losses=background_losses,
            focal_loss_alpha=self.focal_loss_alpha,
            focal_loss_gamma=self.focal_loss_gamma,
        )
        positive = targets.object_index < len(objects.boxes)
        boxes = to_device(F.pad(objects.boxes, (0, 0, 0, 1)), self.device)[targets.object_index]
        target_deltas = point_box_transform.get_deltas(
            points.repeat(len(boxes), 1), boxes.flatten(0, 1)
        )
        loss_args = {
            "logits": logits,
            "deltas": deltas,
            "labels": targets.labels,
            "positive": positive,
            "target_deltas": target_deltas.view_as(boxes),
            "background_losses": background_losses,
        }
        sum_losses = functools.partial(
            point_loss_sums,
            planes=targets.planes,
            focal_loss_alpha=self.focal_loss_alpha,
            focal_loss_gamma=self.focal_loss_gamma,
        )

        def of_levels() -> tuple[list[Tensor], list[Tensor]]:
            ends = [*grid.starts[1:].tolist(), grid.num_locations]
            places = [slice(*place) for place in zip(grid.starts.tolist(), ends)]
            parts = [sum_losses(**_part_of(loss_args, place)) for place in places]
            return tuple(map(list, zip(*parts)))

        return BranchLosses(*sum_losses(**loss_args), positive.sum(), of_levels, levels)

    def _note_levels(self, sums: BranchLosses, weight: Tensor, names: tuple[str, str]) -> None:
        if self.level_losses is not None:
            for name, losses in zip(names, sums.of_levels()):
                self.level_losses[name] = [(loss * weight).item() for loss in losses]

    def _grid(self, features: list[Tensor]) -> Grid:
        sizes = [feature.shape[-2:] for feature in features]
        return Grid.of(self.point_generator.strides, sizes, torch.device("cpu"))

    def _log(self, levels: Tensor, num_points: Tensor) -> None:
        each_level = torch.arange(len(self.head_in_features), device=levels.device)
        counts = (levels[:, None] == each_level).sum(dim=0)
        names = ["num_pos_points", *(f"num_objects_{name}" for name in self.head_in_features)]
        values = torch.cat([num_points[None], to_device(counts, num_points.device)])
        self._scalars.put(names, values)

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: Predictions
    ) -> list[Instances]:
        """Detect objects in every image of the batch."""
        return self._detect(self._decode_branches(predictions), predictions, images.image_sizes)

    def _detect_each_branch(
        self, images: ImageList, features: list[Tensor], predictions: Predictions
    ) -> dict[str, list[Instances]]:
        """Detect with both branches, and with each alone as a model without the other would."""
        decoded = self._decode_branches(predictions)
        shares = {
            "instances": decoded,
            "anchor_branch": decoded._replace(points=[]),
            "anchor_free_branch": decoded._replace(anchors=[], shared_scores=[]),
        }
        return {
            name: self._detect(share, predictions, images.image_sizes)
            for name, share in shares.items()
        }

    def decode(self, predictions: Predictions, image_sizes: Tensor) -> list[Candidates]:
        """Candidates of every level and branch, what :func:`inference.merge` suppresses.

        Args:
            predictions: of the head.
            image_sizes: (N, 2), height and width.
        """
        decoded = self._decode_branches(predictions)
        return self._clipped(decoded.anchors, decoded.points, image_sizes)

    def _decode_branches(self, predictions: Predictions) -> DecodedBranches:
        logits, deltas, point_logits, point_deltas = predictions
        points, _ = self._decode(point_logits, point_deltas, anchor_free=True)
        return DecodedBranches(points, *self._decode(logits, deltas, anchor_free=False))

    def _detect(
        self,
        decoded: DecodedBranches,
        predictions: Predictions,
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Merge what was decoded in every image, with equal scores in RetinaNet's order."""
        points, anchors, shared_scores = decoded
        detections = self._merge(anchors, points, image_sizes)
        # RetinaNet's order of equal scores depends on all that it sorts with them, so that where it
        # can matter only its own method gives the same. On a GPU it would be waited for.
        if self.device.type == "cpu":
            redo = []
            for image, found in enumerate(detections):
                full = len(found.scores) == self.max_detections_per_image > 0
                lowest = found.scores[-1] if full else 0
                for level, shared in enumerate(shared_scores):
                    if shared[image] >= lowest:
                        redo.append((level, image))
            if redo:
                # What was decoded stays as it is: another branch's detections may need it.
                anchors = [Candidates(*(field.clone() for field in part)) for part in anchors]
                for level, image in redo:
                    outputs = (levels[level][image] for levels in predictions[:2])
                    self._decode_as_retinanet(anchors[level], image, level, *outputs)
                detections = self._merge(anchors, points, image_sizes)
        return [
            Instances(
                image_size,
                pred_boxes=Boxes(found.boxes),
                scores=found.scores,
                pred_classes=found.classes,
                pred_levels=found.levels,
                pred_anchor_free=found.anchor_free,
            )
            for image_size, found in zip(image_sizes, detections)
        ]

    def _merge(
        self,
        anchors: list[Candidates],
        points: list[Candidates],
        image_sizes: list[tuple[int, int]],
    ) -> list[Candidates]:
        """Merge the levels of both branches; the detections of each image."""
        sizes = to_device(torch.tensor(image_sizes), self.device)
        return inference.merge(
            self._clipped(anchors, points, sizes),
            nms_thresh=self.test_nms_thresh,
            max_detections=self.max_detections_per_image,
            nms_per_level=self.nms_per_level,
        )

    def _clipped(
        self, anchors: list[Candidates], points: list[Candidates], image_sizes: Tensor
    ) -> list[Candidates]:
        """Clip all candidates of the images in which there are points."""
        # RetinaNet clips last. Boxes of two branches that agree on an object at the border differ
        # beyond it, so they are clipped first; without any point the result is RetinaNet's.
        parts = [*anchors, *points]
        if not points:
            return parts
        found = [(part.scores != inference.NONE).any(dim=1) for part in points]
        clipped = torch.stack(found).any(dim=0)
        return [inference.clip_to_images(part, image_sizes, clipped) for part in parts]

    def _decode(
        self, logits: list[Tensor], deltas: list[Tensor], *, anchor_free: bool
    ) -> tuple[list[Candidates], list[Tensor]]:
        """Decode the levels of a branch, see :func:`inference.decode_level`."""
        kinds = self._point_kinds if anchor_free else self._anchor_kinds
        transform = point_box_transform if anchor_free else self.box2box_transform
        kinds = self._on_device(kinds)
        results = [
            inference.decode_level(
                level_logits,
                level_deltas,
                functools.partial(
                    kinds.boxes_of_level,
                    level=level,
                    stride=stride,
                    width=level_logits.shape[-1],
                ),
                transform.apply_deltas,
                num_classes=self.num_classes,
                score_thresh=self.test_score_thresh,
                topk_candidates=self.test_topk_candidates,
                level=level,
                anchor_free=anchor_free,
            )
            for level, (stride, level_logits, level_deltas) in enumerate(
                zip(self.point_generator.strides, logits, deltas)
            )
        ]
        return [part for part, _ in results], [shared for _, shared in results]

    def _decode_as_retinanet(
        self, part: Candidates, image: int, level: int, logits: Tensor, deltas: Tensor
    ) -> None:
        """Replace an image's candidates of a level by what RetinaNet's own method gives.

        Args:
            part: of the level, all images.
            logits, deltas: (A * K, H, W) and (A * 4, H, W).
        """
        stride, width = self.point_generator.strides[level], logits.shape[-1]
        (logits,), (deltas,) = self._transpose_dense_predictions(
            [[logits[None]], [deltas[None]]], [self.num_classes, 4]
        )
        index = torch.arange(logits.shape[1])
        found = self._decode_per_level_predictions(
            Boxes(self._anchor_kinds.boxes_of_level(index, level, stride=stride, width=width)),
            logits[0].float().sigmoid(),
            deltas[0].float(),
            self.test_score_thresh,
            self.test_topk_candidates,
            (0, 0),
        )
        boxes, count = found.pred_boxes.tensor, len(found)
        finite = torch.isfinite(boxes).all(dim=1)
        part.boxes[image, :count] = boxes
        part.classes[image, :count] = found.pred_classes
        part.scores[image] = inference.NONE
        part.scores[image, :count] = found.scores.where(finite, inference.NONE)

    def _on_device(self, kinds: AnchorKinds) -> AnchorKinds:
        return kinds._replace(cell_anchors=to_device(kinds.cell_anchors, self.device))


@contextlib.contextmanager
def each_branch(model: nn.Module) -> Iterator[None]:
    """Have detectors with two branches also tell what each of them finds alone.

    In the body, what :class:`FSAF` gives for a picture holds ``anchor_branch`` and
    ``anchor_free_branch`` beside ``instances``: the detections, at the picture's own size, that the
    same weights give in a model without the other branch, on a CPU bit for bit. All come from one
    pass through the network; what is added is merging and suppression.

    Args:
        model: a detector, or a module that holds it, such as DistributedDataParallel. Others than
            :class:`FSAF`, and those of one branch, give what they always do.
    """
    detectors = [module for module in model.modules() if isinstance(module, FSAF)]
    before = [detector.detects_each_branch for detector in detectors]
    for detector in detectors:
        detector.detects_each_branch = True
    try:
        yield
    finally:
        for detector, value in zip(detectors, before):
            detector.detects_each_branch = value


def build_point_generator(
    strides: list[int], *, box_normalizer: float, point_offset: float
) -> DefaultAnchorGenerator:
    """Build the maker of one square box about every location, box_normalizer strides wide.

    Raises:
        ValueError: an argument is out of its range; the message has the config key's name.
    """
    _require(
        0 < box_normalizer < math.inf, "BOX_NORMALIZER", "more than 0 and finite", box_normalizer
    )
    _require(0 <= point_offset < 1, "POINT_OFFSET", "at least 0 and less than 1", point_offset)
    return DefaultAnchorGenerator(
        sizes=[[box_normalizer * stride] for stride in strides],
        aspect_ratios=[[1.0]],
        strides=strides,
        offset=point_offset,
    )


def kinds_of(generator: DefaultAnchorGenerator) -> AnchorKinds:
    """Describe a generator's boxes, on the CPU."""
    cell_anchors = [boxes.cpu() for boxes in generator.cell_anchors]
    return AnchorKinds(torch.cat(cell_anchors), generator.num_anchors[0], generator.offset)


class DeferredScalars:
    """Logs what a GPU has counted without waiting for it: a step's values with the next step's."""

    def __init__(self) -> None:
        self._copied = None

    def __getstate__(self) -> dict:
        """Copies of a model begin without what is on its way."""
        return {"_copied": None}

    def put(self, names: list[str], values: Tensor) -> None:
        """Log values of shape (len(names),), at once if they are on the CPU."""
        if values.device.type == "cpu":
            self._log(names, values)
            return
        if self._copied is not None and self._copied[0].query():
            self._log(*self._copied[1:])
        host_values, event = to_device(values, torch.device("cpu")), torch.cuda.Event()
        event.record()
        self._copied = event, names, host_values

    def _log(self, names: list[str], values: Tensor) -> None:
        for name, value in zip(names, values.tolist()):
            get_event_storage().put_scalar(name, value, smoothing_hint=name == "num_pos_points")


def _require(condition: bool, key: str, allowed: str, value: float) -> None:
    if not condition:
        raise ValueError(f"MODEL.FSAF.{key} must be {allowed}, not {value}.")


def _part_of(loss_args: dict[str, Tensor], level: slice) -> dict[str, Tensor]:
    """The arguments of the losses for a level's locations alone."""
    return {
        name: value[:, :, level].contiguous() if name == "logits" else value[:, level]
        for name, value in loss_args.items()
    }


def _resized(found: Instances, input_size: tuple[int, int], picture: dict) -> Instances:
    """Detections at the size that a picture asks for, as DenseDetector gives them."""
    height, width = picture.get("height", input_size[0]), picture.get("width", input_size[1])
    return detector_postprocess(found, height, width)


def _pack(gt_instances: list[Instances], device: torch.device) -> Objects:
    counts = torch.tensor([len(instances) for instances in gt_instances], device=device)
    return Objects(
        torch.cat([instances.gt_boxes.tensor for instances in gt_instances]),
        torch.cat([instances.gt_classes for instances in gt_instances]),
        torch.repeat_interleave(counts),
    )


def _sum_over_processes(count: Tensor) -> Tensor:
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(count)
    return count


def _event_storage() -> contextlib.AbstractContextManager:
    """Log to the storage at hand, or to a throw-away one outside a trainer."""
    try:
        return contextlib.nullcontext(get_event_storage())
    except AssertionError:
        return EventStorage(start_iter=_NO_STEP)


def _training_step() -> int:
    """The trainer's step; a very late one outside a trainer."""
    try:
        return get_event_storage().iter
    except AssertionError:
        return _NO_STEP
