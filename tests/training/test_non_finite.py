import math

import programs
import pytest
import torch
from models import ROOT
from runs import run_cfg, run_trainer, same, weights_of

from fsaf_d2.training.non_finite import NonFinite


def poison(trainer, *, step: int, what: str) -> None:
    """Make one step not finite; the weights before it are in ``trainer.before``."""
    run_step, done = trainer._trainer.run_step, []
    model = trainer.model

    def poisoned():
        if trainer.iter != step or done:
            return run_step()
        done.append(step)
        trainer.before = weights_of(trainer)
        if what == "gradient":
            layer = model.head.anchor_free_cls_score.weight
            handle = layer.register_hook(lambda grad: grad * math.inf)
        else:
            handle = model.backbone.fpn_output3.register_forward_hook(
                lambda *args: args[-1] * math.nan
            )
        try:
            return run_step()
        finally:
            handle.remove()

    trainer._trainer.run_step = poisoned


@pytest.mark.parametrize("what", ["feature", "gradient"])
def test_stops_with_the_weights_as_they_were(digits, tmp_path, what):
    trainer = run_trainer(run_cfg(tmp_path))
    poison(trainer, step=3, what=what)
    with pytest.raises(NonFinite, match=r"Step 4 is not finite: .*tools/replay_step\.py"):
        trainer.train()
    assert same(weights_of(trainer), trainer.before)
    assert all(torch.isfinite(x).all() for x in weights_of(trainer).values())
    box = torch.load(tmp_path / "non_finite_0000003.pth", weights_only=True)
    assert same(box["model"], trainer.before) and len(box["batch"]) == 2
    assert box["batch"][0]["file_name"].endswith(".jpg")
    assert box["level_losses"].keys() == box["losses"].keys() != set()
    assert all(len(levels) == 5 for levels in box["level_losses"].values())


def test_the_first_module_that_overflows_is_named(digits, tmp_path):
    trainer = run_trainer(run_cfg(tmp_path))
    with torch.no_grad():
        trainer.model.backbone.fpn_lateral3.weight.fill_(3e38)
    with pytest.raises(NonFinite, match=r"'backbone\.fpn_lateral3.* is the first to overflow"):
        trainer.train()


def test_weights_that_were_broken_before_are_named(digits, tmp_path):
    trainer = run_trainer(run_cfg(tmp_path))
    with torch.no_grad():
        trainer.model.head.cls_score.bias[2] = math.nan
    with pytest.raises(NonFinite, match=r"the weights 'head\.cls_score\.bias' were not finite"):
        trainer.train()


def test_skips_so_often_and_trains_on(digits, tmp_path, caplog):
    cfg = run_cfg(tmp_path, SOLVER__NON_FINITE__ACTION="skip", SOLVER__NON_FINITE__MAX_TIMES=1)
    trainer = run_trainer(cfg)
    poison(trainer, step=2, what="feature")
    trainer.train()
    assert trainer.iter == 6 and "Step 3 is not finite" in caplog.text
    assert all(torch.isfinite(x).all() for x in weights_of(trainer).values())
    assert not same(weights_of(trainer), trainer.before)

    trainer = run_trainer(cfg)
    poison(trainer, step=2, what="feature")
    poison(trainer, step=4, what="gradient")
    with pytest.raises(NonFinite, match="Step 5"):
        trainer.train()


def test_rolls_back_with_half_the_rate(digits, tmp_path):
    cfg = run_cfg(tmp_path, SOLVER__NON_FINITE__ACTION="rollback", SOLVER__MAX_ITER=8)
    trainer = run_trainer(cfg)
    poison(trainer, step=5, what="gradient")
    rates = []
    trainer._trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: rates.append((trainer.iter, optimizer.param_groups[0]["lr"]))
    )
    trainer.train()
    steps = [step for step, _ in rates]
    assert steps in ([0, 1, 2, 3, 4, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 4, 5, 6, 7])
    first, again = [rate for step, rate in rates if step == 4]
    assert again == pytest.approx(first / 2)
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert saved["trainer"]["non_finite"] == {"times": 1, "halvings": 1}


def test_cannot_roll_back_before_the_first_checkpoint(digits, tmp_path):
    trainer = run_trainer(run_cfg(tmp_path, SOLVER__NON_FINITE__ACTION="rollback"))
    poison(trainer, step=1, what="feature")
    with pytest.raises(NonFinite, match="no checkpoint to roll back to"):
        trainer.train()


@pytest.mark.parametrize(("key", "value"), [("ACTION", "ignore"), ("MAX_TIMES", -1)])
def test_wrong_values_are_named(digits, tmp_path, key, value):
    with pytest.raises(ValueError, match=f"NON_FINITE.{key}.*{value}"):
        run_trainer(run_cfg(tmp_path, **{f"SOLVER__NON_FINITE__{key}": value}))


def test_the_step_can_be_replayed(digits, tmp_path):
    trainer = run_trainer(run_cfg(tmp_path))
    with torch.no_grad():
        trainer.model.backbone.fpn_lateral3.weight.fill_(3e38)
    with pytest.raises(NonFinite):
        trainer.train()
    script = ROOT / "tools" / "replay_step.py"
    result = programs.run(script, tmp_path / "non_finite_0000000.pth")
    assert result.returncode == 0, result.stderr
    assert "Now: 'backbone.fpn_lateral3" in result.stdout
    assert "not finite" in result.stdout and ".jpg" in result.stdout
