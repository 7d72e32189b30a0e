"""Nothing waits for a device: sizes are known beforehand, and copies do not block.

On the meta device a tensor has a shape but no values: whatever would have to read one, or to copy
it to the CPU, fails there. That needs no GPU, but sees nothing of copies to the device.
"""

import copy

import pytest
import torch
from detectron2.utils.events import EventStorage
from models import (
    ANCHOR_FREE_ONLY,
    ANCHORS_ONLY,
    HEURISTIC,
    JOINT,
    batch,
    instances,
    random_instances,
    tiny_model,
)

SIZE = (128, 160)
ALL = ["MODEL.BRANCHES", "['anchor', 'point', 'fcos', 'noisy_anchor', 'dr_loss']"]
MODELS = [JOINT, ANCHORS_ONLY, ANCHOR_FREE_ONLY, HEURISTIC, ALL]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def crowd() -> list[dict]:
    return batch(random_instances(30, SIZE), instances([], [], SIZE), random_instances(2, SIZE))


@pytest.mark.parametrize("overrides", MODELS)
def test_training_reads_nothing_from_the_device(overrides):
    model = tiny_model(*overrides).to("meta").train()
    losses = model(crowd())
    assert all(loss.device.type == "meta" for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize("overrides", MODELS)
def test_decoding_reads_nothing_from_the_device(overrides):
    model = tiny_model(*overrides, "MODEL.DEVICE", "cpu").to("meta").eval()
    images = torch.zeros(2, 3, *SIZE, device="meta")
    parts = model.candidates(images, torch.tensor([SIZE, (100, 160)], device="meta"))
    assert len(parts) == 5 * len(model.branches)
    assert all(part.scores.device.type == "meta" for part in parts)


@needs_gpu
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("overrides", MODELS)
def test_training_never_waits_for_a_gpu(overrides, amp):
    model = tiny_model(*overrides).cuda().train()
    inputs = crowd()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with EventStorage():
            for _ in range(3):
                with torch.autocast("cuda", dtype=torch.bfloat16, enabled=amp):
                    losses = model(inputs)
                sum(losses.values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(loss) for loss in losses.values())


@needs_gpu
@pytest.mark.parametrize("overrides", MODELS)
def test_losses_and_gradients_on_a_gpu_are_the_cpus(overrides):
    model = tiny_model(*overrides).double().train()
    other = copy.deepcopy(model).cuda()
    inputs = crowd()
    expected, losses = model(inputs), other(inputs)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4), name
    sum(expected.values()).backward()
    sum(losses.values()).backward()
    for one, two in zip(model.parameters(), other.parameters()):
        torch.testing.assert_close(two.grad.cpu(), one.grad, rtol=1e-3, atol=1e-5)


@needs_gpu
@pytest.mark.parametrize("overrides", MODELS)
def test_detections_on_a_gpu_are_the_cpus(overrides):
    model = tiny_model(*overrides, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0").double().eval()
    inputs = crowd()
    with torch.no_grad():
        expected = [x["instances"] for x in model(inputs)]
        found = [x["instances"].to("cpu") for x in model.cuda()(inputs)]
    for one, two in zip(expected, found):
        torch.testing.assert_close(two.scores, one.scores, rtol=1e-4, atol=1e-6)
