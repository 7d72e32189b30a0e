import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from models import (
    ANCHOR_FREE_ONLY,
    ANCHORS_ONLY,
    HEURISTIC,
    JOINT,
    batch,
    instances,
    tiny_cfg,
    tiny_model,
)
from runs import run_cfg, run_trainer, same, weights_of

from fsaf_d2.data.loading.mapper import build_labelled_mapper
from fsaf_d2.training.random_state import random_state
from fsaf_d2.training.validation import labelled_loader, validation_losses

FROZEN = ["MODEL.RESNETS.NORM", "FrozenBN"]
SIZE = (128, 160)


def images(count: int = 3) -> list[dict]:
    generator = torch.Generator().manual_seed(count)
    boxes = torch.rand(count, 4, 4, generator=generator) * 60
    boxes[..., 2:] += boxes[..., :2] + 2
    return batch(*(instances(x, range(4), SIZE) for x in boxes), instances([], [], SIZE))


def flat(state: dict) -> str:
    return str(
        {key: torch.as_tensor(x).tolist() if key == "torch" else x for key, x in state.items()}
    )


@pytest.mark.parametrize("overrides", [JOINT, ANCHORS_ONLY, ANCHOR_FREE_ONLY, HEURISTIC])
def test_they_are_those_of_training_with_all_images_as_one_batch(overrides):
    model = tiny_model(*FROZEN, *overrides)
    inputs = images()
    found = validation_losses(model, [[x] for x in inputs])
    with torch.no_grad():
        expected = {name: loss.item() for name, loss in model.train()(inputs).items()}
        if "anchor" in model.branches:
            # Training divides by the running mean in place of the number itself.
            positives = model.counts()["num_pos_anchors"].item() * len(inputs)
            for name in ("loss_cls", "loss_box_reg"):
                expected[name] *= model.branches["anchor"].loss_normalizer.item() / positives
    expected["total_loss"] = sum(expected.values())
    assert found == pytest.approx(expected, rel=1e-5)


def test_how_images_are_batched_does_not_matter():
    model, inputs = tiny_model(), images(5)
    one = validation_losses(model, [[x] for x in inputs])
    assert validation_losses(model, [inputs[:4], inputs[4:]]) == pytest.approx(one, rel=1e-5)


def test_images_without_annotations_are_left_out():
    model, inputs = tiny_model(), images()
    expected = validation_losses(model, [inputs])
    bare = [{"image": x["image"]} for x in inputs]
    assert validation_losses(model, [inputs, bare]) == expected
    assert validation_losses(model, [bare]) == {}


def test_they_leave_no_trace():
    model = tiny_model().train()
    model.backbone.bottom_up.eval()
    with EventStorage() as storage:
        sum(model(images()).values()).backward()
        logged = dict(storage.latest())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        gradients = [p.grad.clone() for p in model.parameters()]
        modes, state = [module.training for module in model.modules()], flat(random_state())

        def batches():
            torch.rand(1), np.random.rand()
            yield images()

        losses = validation_losses(model, batches())
        assert storage.latest() == logged
    assert all(np.isfinite(value) for value in losses.values())
    assert same(before, model.state_dict())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), gradients))
    assert modes == [module.training for module in model.modules()]
    assert state == flat(random_state())


def test_boxes_are_transformed_as_the_image_and_nothing_is_augmented(tmp_path):
    """An image of 100 x 60 becomes one of 200 x 120; in training it would be flipped by chance."""
    image = np.zeros((60, 100, 3), np.uint8)
    image[10:20, 30:70] = 255
    cv2.imwrite(str(tmp_path / "one.png"), image)
    box = {"bbox": [30, 10, 40, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2}
    crowd = {**box, "iscrowd": 1}
    record = {"file_name": str(tmp_path / "one.png"), "height": 60, "width": 100, "image_id": 1}
    records = [{**record, "annotations": [{**box, "iscrowd": 0}, crowd]}] * 8
    cfg = tiny_cfg("INPUT.MIN_SIZE_TEST", "120", "DATALOADER.NUM_WORKERS", "0")
    for ((x),) in labelled_loader(records, build_labelled_mapper(cfg)):
        assert x["image"].shape == (3, 120, 200)
        assert x["instances"].gt_boxes.tensor.tolist() == [[60, 20, 140, 40]]
        assert x["instances"].gt_classes.tolist() == [2]
        assert x["image"][:, 25:35, 70:130].min() == 255 and x["image"][:, 50:].max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_run_ends_bit_for_bit_as_one_without_a_closer_look(digits, tmp_path, decay):
    trainers = []
    for name, count in (("with", 3), ("without", 0)):
        looks = {"TEST__LOSS": count > 0, "TEST__LEVEL_LENS": count, "TEST__SAMPLES": count}
        options = {"TEST__EVAL_PERIOD": 2, "SOLVER__EMA_DECAY": decay}
        trainer = run_trainer(run_cfg(tmp_path / name, **looks, **options))
        trainer.test = lambda *_: {}
        trainer.train()
        trainers.append(trainer)
    assert same(*map(weights_of, trainers))
    states = [
        torch.load(tmp_path / name / "model_final.pth", weights_only=True)["trainer"]
        for name in ("with", "without")
    ]
    assert len({flat(state["random"][0]) for state in states}) == 1
    one, other = (state["_trainer"]["optimizer"]["state"] for state in states)
    assert all(same_values(one[key], other[key]) for key in one)


def same_values(one: dict, other: dict) -> bool:
    return all(torch.equal(torch.as_tensor(one[k]), torch.as_tensor(other[k])) for k in one)


def test_the_average_of_the_weights_is_validated_and_logged(digits, tmp_path):
    trainer = run_trainer(run_cfg(tmp_path, SOLVER__EMA_DECAY=0.5))
    trainer.test = lambda *_: {}
    trainer.train()
    last = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    logged = {
        key.partition("/")[2]: value for key, value in last.items() if key.startswith("validation/")
    }
    raw = trainer._examination.losses()["runs_val"]
    with trainer.checkpointer.average.applied():
        average = trainer._examination.losses()["runs_val"]
    assert logged == average != raw
    assert set(logged) == {
        *("loss_cls", "loss_box_reg", "loss_point_cls", "loss_point_box_reg"),
        "total_loss",
    }


def test_it_can_be_switched_off(digits, tmp_path):
    run_trainer(run_cfg(tmp_path, TEST__LOSS=False, SOLVER__MAX_ITER=2)).train()
    assert "validation/" not in (tmp_path / "metrics.json").read_text()


def of_two(rank: int, folder) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2
    )
    inputs = images()
    mine = inputs[:3] if rank == 0 else inputs[3:]
    torch.save(validation_losses(tiny_model(), [[x] for x in mine]), folder / f"{rank}.pth")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_unequal_parts_agree_with_one(tmp_path):
    torch.multiprocessing.spawn(of_two, args=(tmp_path,), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    assert one == other
    torch.manual_seed(0)
    inputs = images()
    assert validation_losses(tiny_model(), [inputs]) == pytest.approx(one, rel=1e-5)
