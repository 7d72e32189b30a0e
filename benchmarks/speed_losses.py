"""What is measured behind the pyramid: matching, losses and post-processing."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.utils.events import EventStorage
from speed_models import FCOS_NAME, MODELS, Table, build, make_batch, paired, size_of

from fsaf_d2.detectors import BRANCHES, OneStageDetector

OBJECT_COUNTS = (1, 20, 100, 500, 2000)
FAMILY_COUNTS = (20, 500)
# Predictions that are no deltas of boxes: they are not below 0.
_DISTANCES = ("point_deltas", "fcos_deltas", "autoassign_deltas")


class Head:
    """What comes behind a detector's pyramid, with predictions as dense as an untrained head's."""

    def __init__(self, model: torch.nn.Module, batch: list[dict]) -> None:
        self.model, self.batch = model, batch
        self.is_ours = isinstance(model, OneStageDetector)
        self.images = model.preprocess_image(batch)
        with torch.no_grad():
            if self.is_ours:
                self.predictions, self.grid = model._predict(self.images.tensor)
            else:
                pyramid = model.backbone(self.images.tensor)
                self.features = [pyramid[name] for name in model.head_in_features]
                self.predictions = {"": model.head(self.features)}
        self.predictions = {name: self._leaves(x) for name, x in self.predictions.items()}

    def _leaves(self, predictions: tuple) -> tuple:
        """Random values: logits first, which are low; distances of points are not below 0."""
        leaves = [
            [torch.randn_like(x).sub_(3 * (index == 0)) for x in levels]
            for index, levels in enumerate(predictions)
        ]
        names = getattr(predictions, "_fields", ())
        if names[1:2] and names[1] in _DISTANCES:
            leaves[1] = [x.relu_() for x in leaves[1]]
        for levels in leaves:
            for x in levels:
                x.requires_grad_()
        return type(predictions)(*leaves) if names else tuple(leaves)

    def losses(self) -> None:
        """Match, compute the losses and their gradients."""
        if self.is_ours:
            # The truth stays where it comes from; RetinaNet wants it where its anchors are.
            terms = self.model._terms(self.predictions, self.grid, self.batch)
            losses = self.model._divided(terms)
        else:
            truth = [x["instances"].to(self.model.device) for x in self.batch]
            with EventStorage():
                losses = self.model.forward_training(
                    self.images, self.features, self.predictions[""], truth
                )
        sum(losses.values()).backward()
        for predictions in self.predictions.values():
            for levels in predictions:
                for level in levels:
                    level.grad = None

    @torch.no_grad()
    def post_process(self) -> None:
        """Decode and suppress; copies, as detectron2 writes to what it gets."""
        copies = {
            name: type(x)(*([y.detach().clone() for y in levels] for levels in x))
            if hasattr(x, "_fields")
            else tuple([y.detach().clone() for y in levels] for levels in x)
            for name, x in self.predictions.items()
        }
        if self.is_ours:
            self.model._detect(copies, self.grid, self.images.image_sizes, self.batch)
            return
        found = self.model.forward_inference(self.images, self.features, copies[""])
        for instances, size in zip(found, self.images.image_sizes):
            detector_postprocess(instances, *size)


def measure_losses(args: argparse.Namespace) -> Iterator[Table]:
    """Matching and losses alone, forward and backward, against the number of objects."""
    models = {name: build(name, args).train() for name in MODELS if name != FCOS_NAME}
    for count in OBJECT_COUNTS[:2] if args.quick else OBJECT_COUNTS:
        batch = make_batch(count, args)
        programs = {name: Head(model, batch).losses for name, model in models.items()}
        title = f"matching and losses, forward and backward, {count} objects"
        yield Table("losses", title, paired(programs, args), size_of(args, objects=count))


def measure_family(args: argparse.Namespace) -> Iterator[Table]:
    """Matching and losses of each branch alone, beside the joint model's."""
    models = {"joint": build("joint", args).train()}
    for name in sorted(BRANCHES):
        words = ["MODEL.META_ARCHITECTURE", "OneStageDetector", "MODEL.BRANCHES", f"['{name}']"]
        models[name] = build("joint", args, words).train()
    for count in FAMILY_COUNTS:
        batch = make_batch(count, args)
        programs = {name: Head(model, batch).losses for name, model in models.items()}
        title = f"matching and losses of a branch alone, {count} objects"
        yield Table("family", title, paired(programs, args), size_of(args, objects=count))
