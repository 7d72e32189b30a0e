"""What a detector is told of the steps, and what it has counted in them, whatever it is."""

import pytest
import torch
from detectron2.engine import TrainerBase
from runs import run_cfg, run_trainer

from fsaf_d2.detectors.contract import DetectorContract, Traits, contract_of
from fsaf_d2.training.hooks import DetectorStep


class Fake(DetectorContract):
    """Counts its steps."""

    def __init__(self):
        self.steps = []

    traits = Traits()

    def loss_terms(self, batched_inputs):
        return {}

    def observed(self):
        return {}

    def compiled(self):
        return []

    def at_step(self, step):
        self.steps.append(step)

    def counts(self):
        count = torch.tensor(float(self.steps[-1]))
        return {"num_pos_anchors": count, "num_objects_p3": torch.tensor(7)}


class Loop(TrainerBase):
    def run_step(self):
        pass


def run(contract: DetectorContract | None, start: int = 0, end: int = 3) -> Loop:
    loop = Loop()
    loop.register_hooks([DetectorStep(contract)])
    loop.train(start, end)
    return loop


def test_it_is_told_every_step_and_its_counts_are_logged():
    contract = Fake()
    storage = run(contract).storage
    assert contract.steps == [0, 1, 2]
    assert storage.latest() == {"num_pos_anchors": (2.0, 2), "num_objects_p3": (7.0, 2)}
    # What is smoothed would not be a number of objects any more.
    assert storage.smoothing_hints() == {"num_pos_anchors": True, "num_objects_p3": False}


def test_a_run_that_goes_on_tells_the_step_before_at_first():
    """What was missed behind that step, such as its evaluation, is to be as it would have been."""
    contract = Fake()
    run(contract, 2, 4)
    assert contract.steps == [1, 2, 3]


def test_a_model_behind_no_contract_is_let_be():
    assert run(None).storage.latest() == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_scalars_of_a_gpu_are_logged_a_step_later_and_not_waited_for():
    class OnGpu(Fake):
        values = torch.arange(3.0, device="cuda")

        def counts(self):
            return {"num_pos_points": self.values[self.steps[-1]]}

    contract = OnGpu()
    torch.cuda.set_sync_debug_mode("error")
    try:
        storage = run(contract).storage
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    # Which values had arrived in time is for the GPU to say; the last is never waited for.
    logged = storage.latest().get("num_pos_points", (0.0, 1))
    assert logged in ((0.0, 1), (0.0, 2), (1.0, 2))


def test_schedules_of_a_detector_follow_the_trainer(digits, tmp_path):
    trainer = run_trainer(run_cfg(tmp_path, SOLVER__MAX_ITER=4, MODEL__FSAF__HEURISTIC_STEPS=2))
    trainer.test = lambda *_: {}
    branch = contract_of(trainer.model).branches["point"]
    seen, step = [], trainer._trainer.run_step

    def run_step():
        seen.append(branch._selects_by_size)
        step()

    trainer._trainer.run_step = run_step
    trainer.train()
    assert seen == [True, True, False, False]
    assert {f"num_objects_p{i}" for i in range(3, 8)} <= set(trainer.storage.latest())
