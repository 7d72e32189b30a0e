"""How much AP depends on which test images there are: the bootstrap over images.

Letters: I images, D detections of a class, T IoU thresholds, B resamples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from fsaf_d2.evaluation.average_precision import BoxEvaluation
from fsaf_d2.evaluation.ground_truth import Detections, GroundTruth

NUM_RESAMPLES = 1000


def resampled_counts(num_images: int, num_resamples: int = NUM_RESAMPLES) -> np.ndarray:
    """How often each image is drawn, (B, I): as many draws as images, with replacement.

    The draws are the same in every call, so that all runs are tested with the same images.
    """
    rng = np.random.default_rng(0)
    return rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=num_resamples)


def resampled_ap(
    truth: GroundTruth, detections: Detections, counts: np.ndarray, *, max_detections: int
) -> np.ndarray:
    """COCO AP of test sets in which images stand several times or not at all.

    Nothing is matched again: an image that is drawn twice is found twice alike.

    Args:
        truth: the objects of all images.
        detections: of all images.
        counts: (B, I) how often each image stands in each test set.
        max_detections: how many of a class in an image count.

    Returns:
        (B,) in percent; NaN for a test set without objects.
    """
    evaluation = BoxEvaluation(truth, detections, max_detections=max_detections, sizes=("all",))
    matched, ignored = evaluation.matches[0] >= 0, evaluation.ignored[0]
    images = detections.image_index[evaluation.order]
    classes = truth.classes_of(detections.category_ids)[evaluation.order]
    scores = detections.scores[evaluation.order]
    of_classes = []
    for k in range(len(truth.class_names)):
        chosen = np.flatnonzero(classes == k)
        chosen = chosen[np.argsort(-scores[chosen], kind="mergesort")]
        objects = truth.image_index[(truth.class_index == k) & ~truth.crowd]
        num_objects = counts @ np.bincount(objects, minlength=counts.shape[1])
        of_classes.append(
            _class_ap(
                counts[:, images[chosen]],
                (matched & ~ignored)[:, chosen],
                (~matched & ~ignored)[:, chosen],
                num_objects,
                evaluation.params.recThrs,
            )
        )
    there = ~np.isnan(of_classes)
    with np.errstate(invalid="ignore"):
        return 100 * np.where(there, of_classes, 0).sum(0) / there.sum(0)


def _class_ap(
    counts: np.ndarray, right: np.ndarray, wrong: np.ndarray, num_objects: np.ndarray,
    recalls: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """AP of a class, (B,), NaN where it has no objects.

    Args:
        counts: (B, D) of each detection's image, by falling score.
        right, wrong: (T, D) of the detections; some are neither.
        num_objects: (B,).
        recalls: at which precision is averaged.
    """
    sums = np.zeros(len(counts))
    for is_right, is_wrong in zip(right, wrong):
        # Precision is highest where one more is right, so these places are enough.
        places = np.flatnonzero(is_right)
        hits = np.cumsum(counts[:, places], axis=1)
        false_alarms = np.cumsum(counts * is_wrong, axis=1)[:, places]
        precision = hits / np.maximum(hits + false_alarms, 1)
        best_after = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        for b, (found, best) in enumerate(zip(hits, best_after)):
            reached = np.searchsorted(found / max(num_objects[b], 1), recalls)
            sums[b] += best[reached[reached < len(best)]].sum() / len(recalls)
    return np.where(num_objects > 0, sums / len(right), np.nan)


def interval_over_images(
    resampled: Mapping[tuple[str, int], np.ndarray], row: str, baseline: str,
    seeds: Iterable[int],
) -> tuple[float, float] | None:  # fmt: skip
    """The 95 % percentile interval of AP less that of the baseline, averaged over the seeds.

    Args:
        resampled: row and seed to (B,) AP, see :func:`resampled_ap`.
        row, baseline: names of rows.
        seeds: of the pairs.

    Returns:
        lower and upper end; None where a run of a pair is missing.
    """
    pairs = [(resampled.get((row, s)), resampled.get((baseline, s))) for s in seeds]
    if not pairs or any(ap is None for pair in pairs for ap in pair):
        return None
    differences = np.mean([ap - other for ap, other in pairs], axis=0)
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    return float(low), float(high)


def predictions_of(folder: Path) -> Path | None:
    """The predictions that a run has left, of the only data set that it was tested with."""
    files = sorted(folder.glob("inference/*/predictions.json"))
    return files[0] if len(files) == 1 else None
