"""N processes with a batch of B are one process with a batch of N * B."""

from pathlib import Path

import pytest
import torch
from models import instances, predictions_of, tiny_model

MANY = [(10, 10, 90, 70), (50, 40, 60, 52), (0, 0, 150, 120)]
# All branches at once: each has its own way to count.
ALL = ["MODEL.BRANCHES", "['anchor', 'point', 'fcos', 'autoassign']"]


def losses_and_gradients(images: list[int], boxes: list[list]) -> tuple[list[float], torch.Tensor]:
    """Losses of two steps with some images of a batch of two, and the gradient of the last one's.

    The loss normalizer after them stands last among the losses.
    """
    torch.manual_seed(0)
    model = tiny_model(*ALL)
    inputs = [{"image": torch.rand(3, 128, 160) * 255} for _ in range(2)]
    with torch.no_grad():
        predictions, grid = predictions_of(model.eval(), inputs)
    model.train()
    leaves = {
        name: type(part)(
            *(
                [(x + torch.rand_like(x))[images].requires_grad_() for x in levels]
                for levels in part
            )
        )
        for name, part in predictions.items()
    }
    values = []
    for count in (None, 1):
        truth = [instances(boxes[i][:count], range(len(boxes[i][:count]))) for i in images]
        terms = model._terms(leaves, grid, [{"instances": gt} for gt in truth])
        losses = model._divided(terms)
        values += [loss.item() for loss in losses.values()]
    sum(losses.values()).backward()
    gradient = torch.cat(
        [x.grad.flatten(1) for part in leaves.values() for levels in part for x in levels], dim=1
    )
    return [*values, model.branches.anchor.loss_normalizer.item()], gradient


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
