"""2000 objects in each image fit into bounded memory, whatever their size."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from models import NUM_CLASSES, grid_of, instances, losses_given, random_instances, tiny_model

from fsaf_d2.detectors.atss import ATSSPredictions
from fsaf_d2.detectors.autoassign import AutoAssignPredictions
from fsaf_d2.detectors.fcos import FCOSPredictions
from fsaf_d2.detectors.fsaf import PointPredictions
from fsaf_d2.detectors.gfl import GFLPredictions
from fsaf_d2.detectors.retinanet import AnchorPredictions

SIZE = (800, 1344)
LEVELS = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]


def peak_memory() -> float:
    """The highest resident memory of this process so far in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure(large: bool, names: tuple[str, ...], num_images: int, answers) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kinds = {
        "anchor": (AnchorPredictions, (9 * NUM_CLASSES, 36)),
        "point": (PointPredictions, (NUM_CLASSES, 4)),
        "ap_loss": (AnchorPredictions, (9 * NUM_CLASSES, 36)),
        "fcos": (FCOSPredictions, (NUM_CLASSES, 4, 1)),
        "atss": (ATSSPredictions, (NUM_CLASSES, 4, 1)),
        "gfl": (GFLPredictions, (NUM_CLASSES, 68)),
        "autoassign": (AutoAssignPredictions, (NUM_CLASSES, 4, 1)),
        "noisy_anchor": (AnchorPredictions, (9 * NUM_CLASSES, 36)),
        "dr_loss": (AnchorPredictions, (9 * NUM_CLASSES, 36)),
    }
    predictions = {
        name: kind(*([torch.rand(num_images, x, *size) for size in LEVELS] for x in channels))
        for name, (kind, channels) in kinds.items()
        if name in names
    }
    whole = torch.tensor([[0.0, 0, SIZE[1], SIZE[0]]]).repeat(2000, 1)
    truth = [
        instances(whole, torch.arange(2000) % NUM_CLASSES, SIZE)
        if large
        else random_instances(2000, SIZE)
        for _ in range(num_images)
    ]
    model = tiny_model("MODEL.BRANCHES", str(list(names)))
    before = peak_memory()
    losses = losses_given(model, predictions, grid_of(LEVELS), truth)
    answers.put((peak_memory() - before, [loss.item() for loss in losses.values()]))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    ("large", "names", "num_images"),
    [
        (False, ("anchor", "point", "fcos", "autoassign"), 16),
        (True, ("anchor", "point", "fcos"), 16),
        # All locations of each object are computed, 45 million pairs in the image.
        (True, ("autoassign",), 1),
    ],
)
def test_memory_is_bounded(large, names, num_images):
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=measure, args=(large, names, num_images, answers))
    process.start()
    process.join(timeout=300)
    assert process.exitcode == 0
    memory, losses = answers.get()
    # A single matrix of all pairs of an image would take 1.5 GiB; there are sixteen.
    assert memory < 1024
    assert torch.isfinite(torch.tensor(losses)).all()
