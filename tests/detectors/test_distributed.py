"""N processes with a batch of B are one process with a batch of N * B."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from models import ANCHOR_FREE_ONLY, NUM_CLASSES, instances, tiny_model

from fsaf_d2.detectors.fsaf import Predictions, _pack

SIZES = [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]
MANY = [(10, 10, 90, 70), (50, 40, 60, 52), (0, 0, 150, 120)]


def losses_and_gradient(images: list[int], boxes: list[list]) -> tuple[list[float], torch.Tensor]:
    """The anchor-free losses of some images of a batch of two, and the logits' gradient."""
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, NUM_CLASSES, *size, generator=generator)[images] for size in SIZES]
    deltas = [torch.rand(2, 4, *size, generator=generator)[images] for size in SIZES]
    logits = [level.requires_grad_() for level in logits]
    truth = [instances(boxes[image], range(len(boxes[image]))) for image in images]
    features = [torch.zeros(len(images), 1, *size) for size in SIZES]
    model = tiny_model(*ANCHOR_FREE_ONLY)
    with EventStorage():
        losses = model.anchor_free_losses(
            features, Predictions([], [], logits, deltas), _pack(truth, model.device)
        )
    sum(losses.values()).backward()
    gradient = torch.cat([level.grad.flatten(1) for level in logits], dim=1)
    return [loss.item() for loss in losses.values()], gradient


def one_of_two(rank: int, port_file: str, boxes: list[list], results) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{port_file}", rank=rank, world_size=2
    )
    losses, gradient = losses_and_gradient([rank], boxes)
    results.put((rank, losses, gradient.tolist()))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("boxes", [[MANY, MANY[:1]], [MANY, []], [[], []]])
def test_two_processes_equal_one(boxes, tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    torch.multiprocessing.spawn(
        one_of_two, args=(str(tmp_path / "rendezvous"), boxes, results), nprocs=2
    )
    answers = sorted(results.get() for _ in range(2))
    # DistributedDataParallel averages gradients, and the log averages losses.
    losses = torch.tensor([answer[1] for answer in answers]).mean(dim=0)
    gradients = torch.cat([torch.tensor(answer[2]) for answer in answers]) / 2
    expected_losses, expected_gradients = losses_and_gradient([0, 1], boxes)
    torch.testing.assert_close(losses, torch.tensor(expected_losses), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-8)
