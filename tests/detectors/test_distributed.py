"""N processes with a batch of B are one process with a batch of N * B."""

from pathlib import Path

import pytest
import torch
from every_detector import OURS, THEIRS, train_step
from models import batch, instances, predictions_of, tiny_model

from fsaf_d2.detectors import BRANCHES

MANY = [(10, 10, 90, 70), (50, 40, 60, 52), (0, 0, 150, 120)]
TRUTHS = [[MANY, MANY[:1]], [MANY, []], [[], []]]
# A ranking is that of a process's batch: the tests of these branches say what is shared.
OF_A_PROCESS = {"ap_loss", "dr_loss"}
# All others at once: each has its own way to count.
NAMES = sorted(set(BRANCHES) - OF_A_PROCESS)
ALL = ["MODEL.META_ARCHITECTURE", "OneStageDetector", "MODEL.BRANCHES", str(NAMES)]


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


def step(images: list[int], *words: str) -> tuple[dict, dict]:
    """Losses and gradients of a whole detector's step with some images of a batch of two."""
    torch.manual_seed(0)
    # Batch norm's statistics would be those of a process.
    model = tiny_model(*words, "MODEL.RESNETS.NORM", "FrozenBN")
    sets = [instances(x, range(len(x)), size=(64, 96)) for x in (MANY, MANY[1:2])]
    inputs = batch(*sets)
    losses = train_step(model, [inputs[i] for i in images])
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {name: loss.item() for name, loss in losses.items()}, gradients


def one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2
    )
    torch.save([losses_and_gradients([rank], x) for x in TRUTHS], folder / f"{rank}.pth")
    steps = {name: step([rank], *words) for name, words in {**OURS, **THEIRS}.items()}
    torch.save(steps, folder / f"{rank}_steps.pth")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What both processes say, of everything, as starting them takes longest."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(one_of_two, args=(folder,), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def answers(folder):
    return [torch.load(folder / f"{rank}.pth") for rank in range(2)]


@pytest.fixture(scope="module")
def steps(folder):
    return [torch.load(folder / f"{rank}_steps.pth") for rank in range(2)]


@pytest.mark.parametrize("index", range(len(TRUTHS)))
def test_two_processes_equal_one(index, answers):
    # DistributedDataParallel averages gradients, and the log averages losses.
    losses = torch.tensor([answer[index][0] for answer in answers]).mean(dim=0)
    gradients = torch.cat([answer[index][1] for answer in answers]) / 2
    expected_losses, expected_gradients = losses_and_gradients([0, 1], TRUTHS[index])
    torch.testing.assert_close(losses, torch.tensor(expected_losses), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-5, atol=1e-8)


def average(one: dict, other: dict) -> dict:
    return {name: (value + other[name]) / 2 for name, value in one.items()}


# What ranks a process's batch takes part, but equals one process only in the average.
@pytest.mark.parametrize("name", [x for x in OURS if not OF_A_PROCESS & set(x.split("+"))])
def test_a_step_of_two_processes_is_that_of_one(name, steps):
    losses, gradients = (average(*pair) for pair in zip(*(answer[name] for answer in steps)))
    expected_losses, expected = step([0, 1], *OURS[name])
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for parameter, gradient in gradients.items():
        limit = 1e-5 * expected[parameter].abs().max().item() + 1e-9
        torch.testing.assert_close(gradient, expected[parameter], rtol=1e-4, atol=limit)


@pytest.mark.parametrize("name", THEIRS)
def test_detectron2s_detectors_do_in_a_process_what_they_would_alone(name, steps):
    """They count and sample on their own: only the average over processes is promised."""
    for rank, answer in enumerate(steps):
        losses, gradients = step([rank], *THEIRS[name])
        assert answer[name][0] == pytest.approx(losses, rel=1e-5)
        torch.testing.assert_close(answer[name][1], gradients, rtol=1e-4, atol=1e-6)
