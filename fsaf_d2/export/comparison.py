"""Whether an exported detector finds in images what the detector itself finds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from detectron2.structures import Instances

from ..prediction.detector import Detector

# In pixels of the network's input, or of the image where that is smaller: in a larger one the
# rounding of float32 is larger, too.
BOX_TOLERANCE = 5e-3
# Runtimes add in another order. Scores closer than this may change places.
SCORE_TOLERANCE = 1e-4


class Comparison(NamedTuple):
    """Of images, all together."""

    num_images: int = 0
    num_detections: int = 0
    box_difference: float = 0.0  # the largest, in pixels, of detections that both have
    score_difference: float = 0.0  # the largest
    failures: tuple[str, ...] = ()  # a sentence for each image in which they differ
    unreadable: tuple[str, ...] = ()  # a sentence for each image that is left out

    def __add__(self, other: Comparison) -> Comparison:
        return Comparison(
            self.num_images + other.num_images,
            self.num_detections + other.num_detections,
            max(self.box_difference, other.box_difference),
            max(self.score_difference, other.score_difference),
            self.failures + other.failures,
            self.unreadable + other.unreadable,
        )


def compare(detector: Detector, exported: Detector, files: Iterable[str]) -> Comparison:
    """Run both on images and compare all that they find, whatever its score.

    Images that cannot be read are left out and named.

    Raises:
        ValueError: the exported detector cannot be run.
    """
    total = Comparison()
    lowest = detector.model.traits.score_threshold
    for file in files:
        try:
            sides = detector.prepare(file).resized.shape[1:]
        except (OSError, ValueError) as error:
            said = str(error) if file in str(error) else f"'{file}': {error}"
            total += Comparison(unreadable=(said,))
            continue
        expected, found = (x(file, min_score=0) for x in (detector, exported))
        limit = detector.model.suppression.max_detections
        total += compare_detections(
            expected,
            found,
            file,
            lowest=lowest,
            limit=limit,
            scale=max(1.0, *(side / used for side, used in zip(expected.image_size, sides))),
        )
    return total


def compare_detections(
    expected: Instances,
    found: Instances,
    file: str,
    *,
    lowest: float,
    limit: int,
    scale: float = 1.0,
) -> Comparison:
    """Compare the detections in one image.

    They are the same where each has one of the same class, level and branch, and of the same box
    and score within the tolerances; both lists being sorted, their order is then the same but for
    equal scores. Where rounding alone decides whether there is a detection, at the score threshold
    and at the last place of a full list, one of them may lack it.

    Args:
        expected, found: best first.
        file: the image, for the message.
        lowest: the score threshold.
        limit: the most detections of an image.
        scale: pixels of the image for one of the network's input.
    """
    one, other = _table(expected), _table(found)
    scores, boxes = (
        (one[:, None, columns] - other[:, columns]).abs().amax(dim=2)
        for columns in (slice(4, 5), slice(4))
    )
    same_kind = (one[:, None, 5:] == other[:, 5:]).all(dim=2)
    near = same_kind & (scores <= SCORE_TOLERANCE) & (boxes <= scale * BOX_TOLERANCE)
    pairs = _pairs(near)
    missing = sorted(set(range(len(one))) - set(pairs))
    surplus = sorted(set(range(len(other))) - set(pairs.values()))
    edge = [lowest, *(x[-1, 4].item() for x in (one, other) if len(x) == limit > 0)]
    wrong = [
        (name, row)
        for name, rows in (("missing", one[missing]), ("too much", other[surplus]))
        for row in rows.tolist()
        if all(abs(row[4] - score) > SCORE_TOLERANCE for score in edge)
    ]
    failures = ()
    if wrong:
        name, row = wrong[0]
        box = ", ".join(f"{value:.3f}" for value in row[:4])
        failures = (
            f"{file}: of {len(one)} detections {len(missing)} are missing and {len(surplus)} are "
            f"too much; {name}: box ({box}), score {row[4]:.6f}, class {row[5]:.0f}.",
        )
    index = (list(pairs), list(pairs.values()))
    worst = [x[index].amax().item() if pairs else 0.0 for x in (boxes, scores)]
    return Comparison(1, len(one), *worst, failures)


def _table(found: Instances) -> torch.Tensor:
    """(D, 8): box, score, class, level, branch; float64, which has room for all of them."""
    fields = (found.scores, found.pred_classes, found.pred_levels, found.pred_branches)
    columns = [found.pred_boxes.tensor, *(field[:, None] for field in fields)]
    return torch.cat([column.double() for column in columns], dim=1)


def _pairs(near: torch.Tensor) -> dict[int, int]:
    """Pair rows with columns that are near, each at most once, as many as can be."""
    partners: dict[int, int] = {}  # of columns

    def find(row: int, tried: set[int]) -> bool:
        for column in near[row].nonzero().flatten().tolist():
            if column not in tried:
                tried.add(column)
                if column not in partners or find(partners[column], tried):
                    partners[column] = row
                    return True
        return False

    for row in range(len(near)):
        find(row, set())
    return {row: column for column, row in sorted(partners.items(), key=lambda x: x[1])}
