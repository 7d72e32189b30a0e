"""Losses that are of the batch of a process, in two of them: none waits for another for ever."""

from pathlib import Path

import pytest
import torch
from models import instances, predictions_of, tiny_model

MANY = [(10, 10, 90, 70), (50, 40, 60, 52), (0, 0, 150, 120)]
OWN = ["noisy_anchor", "dr_loss"]
TRUTHS = [[MANY, []], [[], []]]
WORDS = ["MODEL.META_ARCHITECTURE", "OneStageDetector", "MODEL.BRANCHES", str(OWN)]


def losses_of(images: list[int], boxes: list[list]) -> dict[str, float]:
    """The losses of some images of a batch of two, with a gradient of all."""
    torch.manual_seed(0)
    model = tiny_model(*WORDS)
    inputs = [{"image": torch.rand(3, 128, 160) * 255} for _ in range(2)]
    predictions, grid = predictions_of(model.eval(), inputs)
    own = {
        name: type(part)(*([x[images] for x in levels] for levels in part))
        for name, part in predictions.items()
    }
    truth = [{"instances": instances(boxes[i], range(len(boxes[i])))} for i in images]
    losses = model.train()._divided(model._terms(own, grid, truth))
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.branches.parameters())
    return {name: loss.item() for name, loss in losses.items()}


def one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2
    )
    torch.save([losses_of([rank], x) for x in TRUTHS], folder / f"{rank}.pth")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    torch.multiprocessing.spawn(one_of_two, args=(folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pth") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(TRUTHS)))
def test_a_process_without_objects_goes_on(index, answers):
    """A ranking's loss is each process's own; what is summed is as in one process."""
    together = losses_of([0, 1], TRUTHS[index])
    for rank, answer in enumerate(answers):
        alone = losses_of([rank], TRUTHS[index])
        assert answer[index]["loss_dr_cls"] == pytest.approx(alone["loss_dr_cls"], rel=1e-5)
    for name in ("loss_dr_box_reg", "loss_noisy_cls", "loss_noisy_box_reg"):
        mean = sum(answer[index][name] for answer in answers) / 2
        assert mean == pytest.approx(together[name], rel=1e-5, abs=1e-9), name
