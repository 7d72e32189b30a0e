"""Which pyramid level the objects select while a detector learns, and how often they change it."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...assignment.feature_selection import select_levels_by_size
from ...assignment.grid import Grid
from ...detectors.fsaf import PointBranch
from ...detectors.one_stage import OneStageDetector
from ...visualization.level_lens import plot_level_lens
from ...visualization.training_curves import level_shares, read_metrics
from ..validation import undisturbed

# Edges of the bins of box sizes, sqrt(width * height) in pixels; the outer bins take the rest.
SIZE_EDGES = [2 ** (exponent / 2) for exponent in range(2, 23)]
# Records of the log that are counted together for the share of a level: at most so many, and at
# most this share of them, so that a short run has more than one point.
WINDOW, WINDOW_SHARE = 10, 0.2


class LevelLens(HookBase):
    """Looks, at every evaluation, which levels the objects of the same training images select.

    The images are as in evaluation (resized, not augmented) and the weights those that are
    trained, not their average; an object selects as it would in a training step with them, with
    batch norm as in evaluation. An object has flipped if it selects another level than at the
    evaluation before. Training itself is not touched.

    What was seen is in checkpoints, in ``OUTPUT_DIR/level_lens.json`` and ``level_lens.png``.
    """

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether a model has one branch whose objects select their level."""
        return isinstance(model, OneStageDetector) and len(_selecting(model)) == 1

    def __init__(self, model: OneStageDetector, batches: DataLoader, output_dir: str) -> None:
        """
        Args:
            model: that the lens fits; not wrapped for several processes.
            batches: of this process; annotated images, the same at every evaluation.
            output_dir: where ``metrics.json`` lies and the files are written.
        """
        self._model = model
        (self._branch,) = _selecting(model)
        self._batches = batches
        self._folder = Path(output_dir)
        self._names = list(model.head_in_features)
        self._state: dict = {"identity": 0, "levels": [], "evaluations": []}

    def observe(self, step: int) -> None:
        """Look at the images, in all processes; log and write in the main one.

        Args:
            step: so many steps are done.
        """
        parts = comm.all_gather(self._select())
        if not comm.is_main_process():
            return
        identity = zlib.crc32(repr([part[0] for part in parts]).encode())
        levels, sizes, by_size = (
            torch.cat([torch.tensor(part[i]) for part in parts]) for i in (1, 2, 3)
        )
        levels, by_size = levels.long(), by_size.long()
        same = self._state["identity"] == identity and self._state["evaluations"]
        before = torch.tensor(self._state["levels"] if same else []).long()
        flipped = int((levels != before).sum()) if same else None
        counts = torch.bincount(levels, minlength=len(self._names)).tolist()
        entry = {
            "step": step,
            "num_objects": dict(zip(self._names, counts)),
            "as_heuristic": int((levels == by_size).sum()),
            "compared": len(before),
            "flipped": flipped,
        }
        self._state.update(
            identity=identity,
            levels=levels.tolist(),
            evaluations=[*self._state["evaluations"], entry],
        )
        self._log(levels, sizes, entry)
        self._write(_histogram(levels, sizes, len(self._names)))

    def _select(self) -> tuple[list, list[int], list[float], list[int]]:
        """Of this process: images, levels of their objects, sizes, and the heuristic's levels."""
        images: list[tuple[str, int]] = []
        levels, boxes = [torch.zeros(0)], [torch.zeros(0, 4)]
        with undisturbed(self._model):
            for batch in self._batches:
                for x in batch:
                    images.append((x["file_name"], len(x["instances"])))
                    boxes.append(x["instances"].gt_boxes.tensor)
                self._model.loss_terms(batch)
                levels.append(self._branch.selected_levels.cpu())
        packed = torch.cat(boxes)
        sizes = (packed[:, 2:] - packed[:, :2]).clamp(min=0).prod(dim=1).sqrt()
        by_size = self._select_by_size(packed)
        return images, torch.cat(levels).tolist(), sizes.tolist(), by_size.tolist()

    def _select_by_size(self, boxes: Tensor) -> Tensor:
        strides, rule = self._branch.strides, self._branch.selection_rule
        grid = Grid.of(strides, [(1, 1)] * len(strides), torch.device("cpu"))
        return select_levels_by_size(
            boxes,
            grid,
            canonical_level=rule.canonical_level,
            canonical_box_size=rule.canonical_box_size,
        )

    def _log(self, levels: Tensor, sizes: Tensor, entry: dict) -> None:
        storage = self.trainer.storage
        if len(levels) == 0:
            return
        if entry["compared"]:
            flip_rate = entry["flipped"] / entry["compared"]
            storage.put_scalar("level_lens/flip_rate", flip_rate, smoothing_hint=False)
        as_heuristic = entry["as_heuristic"] / len(levels)
        storage.put_scalar("level_lens/as_heuristic", as_heuristic, smoothing_hint=False)
        strides = torch.tensor([float(x) for x in self._branch.strides])
        storage.put_histogram("level_lens/selected_level", strides.log2()[levels])
        for index, name in enumerate(self._names):
            if (selected := levels == index).any():
                storage.put_histogram(
                    f"level_lens/log2_size_{name}", sizes[selected].clamp(min=1).log2()
                )

    def _write(self, histogram: list[list[int]]) -> None:
        report = {
            "levels": self._names,
            "heuristic_borders": self._heuristic_borders(),
            "size_edges": SIZE_EDGES,
            "objects_by_level_and_size": histogram,
            "evaluations": self._state["evaluations"],
            "training": self._training_shares(),
        }
        file = self._folder / "level_lens.json"
        part = file.with_name(f".{file.name}.part")
        part.write_text(json.dumps(report))
        part.replace(file)
        plot_level_lens(report, file.with_suffix(".png"))

    def _heuristic_borders(self) -> list[float]:
        """The box sizes from which on the heuristic rule takes the next level, one for each."""
        rule = self._branch.selection_rule
        exponents = [math.log2(stride) for stride in self._branch.strides]
        return [
            rule.canonical_box_size * 2 ** (exponent - rule.canonical_level)
            for exponent in exponents[1:]
        ]

    def _training_shares(self) -> dict:
        """The share of each level among the objects of the training steps that were logged."""
        try:
            records = read_metrics(self._folder / "metrics.json")
        except FileNotFoundError:
            records = []
        window = min(WINDOW, max(int(WINDOW_SHARE * len(records)), 1))
        iterations, shares = level_shares(records, self._names, window)
        return {
            "steps": [int(iteration) + 1 for iteration in iterations],
            "share": {
                name: [None if np.isnan(value) else round(float(value), 4) for value in row]
                for name, row in zip(self._names, shares)
            },
        }

    def state_dict(self) -> dict:
        """What a resumed run needs."""
        return dict(self._state)

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._state = dict(state_dict)


def _selecting(model: OneStageDetector) -> list[PointBranch]:
    return [branch for branch in model.branches.values() if isinstance(branch, PointBranch)]


def _histogram(levels: Tensor, sizes: Tensor, num_levels: int) -> list[list[int]]:
    """Count objects by level and bin of ``SIZE_EDGES``."""
    num_bins = len(SIZE_EDGES) - 1
    bins = torch.bucketize(sizes.double(), torch.tensor(SIZE_EDGES[1:-1]).double(), right=True)
    counts = torch.bincount(levels * num_bins + bins, minlength=num_levels * num_bins)
    return counts.view(num_levels, num_bins).tolist()
