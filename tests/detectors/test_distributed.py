"""N processes with a batch of B are one process with a batch of N * B."""

from pathlib import Path

import pytest
import torch
from models import NUM_CLASSES, instances, tiny_model

from fsaf_d2.detectors.fsaf import Predictions

SIZES = [(16, 20), (8, 10), (4, 5), (2, 3), (1, 2)]
MANY = [(10, 10, 90, 70), (50, 40, 60, 52), (0, 0, 150, 120)]


def losses_and_gradients(images: list[int], boxes: list[list]) -> tuple[list[float], torch.Tensor]:
    """Losses of two steps with some images of a batch of two, and the gradient of the last one's.

    The loss normalizer after them stands last among the losses.
    """
    generator = torch.Generator().manual_seed(0)
    channels = [9 * NUM_CLASSES, 36, NUM_CLASSES, 4]
    predictions = [
        [torch.rand(2, count, *size, generator=generator) * 4 - 2 for size in SIZES]
        for count in channels
    ]
    predictions[3] = [level.relu() for level in predictions[3]]
    leaves = [[level[images].requires_grad_() for level in levels] for levels in predictions]
    features = [torch.zeros(len(images), 1, *size) for size in SIZES]
    model = tiny_model()
    values = []
    for count in (None, 1):
        truth = [instances(boxes[i][:count], range(len(boxes[i][:count]))) for i in images]
        losses = model.forward_training(None, features, Predictions(*leaves), truth)
        values += [loss.item() for loss in losses.values()]
    sum(losses.values()).backward()
    gradient = torch.cat([level.grad.flatten(1) for levels in leaves for level in levels], dim=1)
    return [*values, model.loss_normalizer.item()], gradient


def one_of_two(rank: int, folder: Path, boxes: list[list]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2
    )
    torch.save(losses_and_gradients([rank], boxes), folder / f"{rank}.pth")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("boxes", [[MANY, MANY[:1]], [MANY, []], [[], []]])
def test_two_processes_equal_one(boxes, tmp_path):
    torch.multiprocessing.spawn(one_of_two, args=(tmp_path, boxes), nprocs=2)
    answers = [torch.load(tmp_path / f"{rank}.pth") for rank in range(2)]
    # DistributedDataParallel averages gradients, and the log averages losses.
    losses = torch.tensor([answer[0] for answer in answers]).mean(dim=0)
    gradients = torch.cat([answer[1] for answer in answers]) / 2
    expected_losses, expected_gradients = losses_and_gradients([0, 1], boxes)
    torch.testing.assert_close(losses, torch.tensor(expected_losses), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-8)
