"""The switches that make training faster leave its results alone, up to rounding."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from models import batch, random_instances, tiny_cfg

from fsaf_d2.training import Trainer


def losses_and_gradients(model, inputs):
    with EventStorage():
        losses = model(inputs)
    model.zero_grad()
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def with_switch(model, *overrides):
    """The same weights in a model that is built with a switch."""
    switched = Trainer.build_model(tiny_cfg(*overrides))
    switched.load_state_dict(model.state_dict())
    return switched


@pytest.mark.parametrize("clip", ["False", "True"])
@pytest.mark.parametrize("name", ["SGD", "ADAMW"])
def test_a_fused_optimizer_takes_the_same_steps(name, clip):
    weights = []
    for fused in ("False", "True"):
        cfg = tiny_cfg("SOLVER.OPTIMIZER", name, "SOLVER.FUSED", fused)
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = (
            clip == "True",
            0.5,
        )
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.BatchNorm2d(8))
        optimizer = Trainer.build_optimizer(cfg, model)
        assert {bool(group.get("fused")) for group in optimizer.param_groups} == {fused == "True"}
        for _ in range(5):
            optimizer.zero_grad()
            (model(torch.randn(2, 3, 8, 8)) ** 3).sum().backward()
            optimizer.step()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*weights)


def test_a_grad_scaler_unscales_before_a_fused_step_clips():
    steps = []
    for fused in ("False", "True"):
        cfg = tiny_cfg("SOLVER.FUSED", fused, "SOLVER.CLIP_GRADIENTS.ENABLED", "True")
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        optimizer = Trainer.build_optimizer(cfg, model)
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(model(torch.full((1, 3), 0.1)).sum()).backward()
        scaler.step(optimizer)
        steps.append(model.weight.detach())
    torch.testing.assert_close(*steps)


def test_bfloat16_trains_close_to_float32_and_evaluates_in_it():
    plain = Trainer.build_model(tiny_cfg())
    half = with_switch(plain, "SOLVER.BFLOAT16", "True")
    dtypes = []
    half.branches["anchor"].cls_score.register_forward_hook(
        lambda *args: dtypes.append(args[-1].dtype)
    )
    inputs = batch(random_instances(5), random_instances(3))
    expected, _ = losses_and_gradients(plain, inputs)
    found, gradients = losses_and_gradients(half, inputs)
    assert set(dtypes) == {torch.bfloat16}
    assert {loss.dtype for loss in found.values()} == {torch.float32}
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.01)
    assert found != expected
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    dtypes.clear()
    with torch.no_grad():
        half.eval()(inputs)
    assert set(dtypes) == {torch.float32}


def test_two_kinds_of_mixed_precision_are_refused():
    cfg = tiny_cfg("SOLVER.BFLOAT16", "True", "SOLVER.AMP.ENABLED", "True")
    with pytest.raises(ValueError, match=r"SOLVER\.BFLOAT16 and SOLVER\.AMP\.ENABLED"):
        Trainer.build_model(cfg)


def test_compiling_without_a_compiler_names_the_key(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"MODEL\.COMPILE .*'no-such-compiler'"):
        Trainer.build_model(tiny_cfg("MODEL.COMPILE", "True"))


@pytest.mark.slow
def test_a_compiled_model_is_the_same_at_every_size(monkeypatch):
    # What is traced, without the minutes that a compiler takes; benchmarks/speed.py compiles.
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module: compile_module(module, backend="aot_eager")
    )
    torch._dynamo.reset()
    norm = ("MODEL.RESNETS.NORM", "FrozenBN")
    plain = Trainer.build_model(tiny_cfg(*norm))
    compiled = with_switch(plain, "MODEL.COMPILE", "True", *norm)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    graphs = []
    for size in [(256, 320), (320, 256), (288, 448), (384, 288), (352, 320)]:
        inputs = batch(random_instances(5, size))
        expected = losses_and_gradients(plain, inputs)
        found = losses_and_gradients(compiled, inputs)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    # The first sizes teach it which sides vary.
    assert graphs[2] == graphs[-1]
    with torch.no_grad():
        found, expected = compiled.eval()(inputs), plain.eval()(inputs)
    for one, other in zip(found, expected):
        torch.testing.assert_close(
            one["instances"].scores, other["instances"].scores, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.RETINANET.IN_FEATURES", "['p3', 'p4']"),
        ("MODEL.FPN.IN_FEATURES", "['res9']"),
        ("MODEL.FPN.NORM", "XX"),
        ("MODEL.BACKBONE.NAME", "nope"),
        ("MODEL.META_ARCHITECTURE", "FSAV"),
        ("MODEL.RESNETS.DEPTH", "51"),
        ("MODEL.DEVICE", "cuda:99"),
    ],
)
def test_values_that_nothing_can_be_built_of_are_a_mistake_of_the_config(key, value):
    with pytest.raises(ValueError, match="The config builds no model"):
        Trainer.build_model(tiny_cfg(key, value))


def test_a_level_that_the_backbone_lacks_is_named():
    with pytest.raises(ValueError, match=r"IN_FEATURES \['p2', 'p3'\] names 'p2', which MODEL"):
        Trainer.build_model(tiny_cfg("MODEL.RETINANET.IN_FEATURES", "['p2', 'p3']"))
