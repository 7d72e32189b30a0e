"""A run of a Python config is as well guarded, looked at and kept as one of train_net.py."""

import argparse
import builtins
import json
import math
import os
import signal

import pytest
import torch
from detectron2.engine import HookBase
from models import RETINANET, ROOT, tiny_model
from runs import replay, same, weights_of

from fsaf_d2.training.hooks.saving import EXIT_RESUMABLE
from fsaf_d2.training.lazy import ConfigError, LazyTrainer, run
from fsaf_d2.training.lazy_config import load_lazy_config
from fsaf_d2.training.non_finite import NonFinite

CLASSES = ("MODEL.RETINANET.NUM_CLASSES", "10", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0")


def config(folder, *words: str):
    """The joint detector's, on the digits; the model is for the test to build."""
    return load_lazy_config(
        str(ROOT / "configs/lazy/fsaf_R_50_FPN_1x.py"),
        [
            f"train.output_dir={folder}",
            *("train.init_checkpoint=''", "train.max_iter=6", "train.eval_period=0"),
            *("train.log_period=1", "train.checkpointer.period=2", "train.device=cpu"),
            *("train.samples=0", "train.level_lens=0", "train.loss=False"),
            "dataloader.train.dataset.dataset_dicts.names=[runs_train]",
            "dataloader.test.dataset.names=[runs_val]",
            *("dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0"),
            *("dataloader.test.num_workers=0", "optimizer.lr=0.001"),
            "dataloader.train.mapper.augmentations.0.short_edge_length=[128]",
            "dataloader.test.mapper.augmentations.0.short_edge_length=[128]",
            *words,
        ],
    )


def trainer(folder, *words: str, overrides=(), resume: bool = False) -> LazyTrainer:
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    found = LazyTrainer(config(folder, *words), tiny_model(*CLASSES, *overrides))
    found.resume_or_load(resume=resume)
    return found


def saved(folder, name="model_final") -> dict:
    return torch.load(folder / f"{name}.pth", weights_only=True)


@pytest.mark.parametrize("overrides", [(), RETINANET], ids=["joint", "retinanet"])
def test_it_has_losses_thresholds_samples_lens_report_and_a_best_model(digits, tmp_path, overrides):
    words = ("train.loss=True", "train.samples=1", "train.level_lens=2", "train.max_iter=2")
    best = "train.best_metric=validation/total_loss"
    run = trainer(tmp_path, *words, best, "train.eval_period=1", overrides=overrides)
    run.train()
    lines = [json.loads(x) for x in (tmp_path / "metrics.json").read_text().splitlines()]
    names = {name for line in lines for name in line}
    assert {"bbox/AP", "validation/total_loss", "num_pos_anchors"} <= names
    assert ("point_branch/AP" in names) == (overrides == ())
    files = {x.name for x in tmp_path.iterdir()}
    assert {"report.html", "model_best.pth", "samples", "advice.txt"} <= files
    assert ("level_lens.json" in files) == (overrides == ())
    report = json.loads((tmp_path / "inference" / "runs_val" / "evaluation.json").read_text())
    expected = {x["name"]: x["best_f1"]["threshold"] for x in report["per_class"] if x["best_f1"]}
    content = saved(tmp_path)
    assert content["thresholds"] == expected != {}
    assert content["class_names"] == [str(digit) for digit in range(10)]
    assert "config" not in content and content["input_format"] == "BGR"
    assert "train.max_iter" in (tmp_path / "advice.txt").read_text()


def test_what_is_not_finite_stays_out_of_the_weights(digits, tmp_path):
    found = trainer(tmp_path)
    before = weights_of(found)
    with torch.no_grad():
        found.model.backbone.fpn_lateral3.weight[0] = math.nan
    with pytest.raises(NonFinite, match=r"the weights 'backbone\.fpn_lateral3\.weight' were not"):
        found.train()
    assert (tmp_path / "non_finite_0000000.pth").is_file()
    changed = weights_of(found)
    assert [name for name in before if not torch.equal(before[name], changed[name])] == [
        "backbone.fpn_lateral3.weight"
    ]
    with pytest.raises(NonFinite):
        skipping = trainer(tmp_path, "train.non_finite.action=skip", "train.non_finite.max_times=2")
        skipping.model.backbone.fpn_lateral3.weight.data[0] = math.nan
        skipping.train()
    assert skipping.iter == 2


def test_a_signal_saves_and_the_run_goes_on(digits, tmp_path):
    class Signal(HookBase):
        def after_step(self):
            if self.trainer.iter == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    found = trainer(tmp_path, "train.checkpointer.period=100")
    found._hooks.insert(0, hook := Signal())
    hook.trainer = found
    with pytest.raises(SystemExit) as stopped:
        found.train()
    assert stopped.value.code == EXIT_RESUMABLE
    # Its data can be had again.
    assert len(next(found.data_loader)) == 2
    weights = weights_of(found)
    rest = trainer(tmp_path, resume=True)
    assert rest.start_iter == 3 and same(weights, weights_of(rest))
    rest.train()
    assert saved(tmp_path)["iteration"] == 5
    steps = [json.loads(x)["iteration"] for x in (tmp_path / "metrics.json").open()]
    # The last evaluation is logged one behind the last step.
    assert steps == [0, 1, 2, 3, 4, 5, 6]


def test_it_stops_early_and_averages_weights(digits, tmp_path):
    words = ("train.patience=1", "train.eval_period=1", "train.ema_decay=0.5")
    found = trainer(tmp_path, *words)
    values = iter([0.5, 0.4, 0.9])
    found.evaluate_model = lambda: {"bbox": {"AP": next(values)}}
    found.train()
    assert list(values) == [0.9] and saved(tmp_path, "model_best")["iteration"] == 0
    assert not same(saved(tmp_path)["model"], weights_of(found))
    assert same(saved(tmp_path)["trainer"]["model"], weights_of(found))


def test_it_rolls_back_with_half_the_rate(digits, tmp_path):
    found = trainer(tmp_path, "train.non_finite.action=rollback", "train.max_iter=5")
    step, done, rates = found._trainer.run_step, [], []

    def run_step():
        rates.append((found.iter, found.optimizer.param_groups[0]["lr"]))
        if found.iter == 3 and not done:
            done.append(found.iter)
            raise FloatingPointError("Loss became infinite or NaN")
        step()

    found._trainer.run_step = run_step
    found.train()
    assert [number for number, _ in rates] == [0, 1, 2, 3, 2, 3, 4]
    first, again = [rate for number, rate in rates if number == 3]
    assert again == pytest.approx(first / 2)


def test_a_checkpoint_of_the_former_trainer_of_python_configs_goes_on(digits, tmp_path):
    trainer(tmp_path, "train.max_iter=2").train()
    content = saved(tmp_path)
    state = content["trainer"]
    content["trainer"] = {
        "iteration": 1,
        "optimizer": state["_trainer"]["optimizer"],
        "hooks": {"LRScheduler": state["hooks"]["LRScheduler"]},
    }
    torch.save(content, tmp_path / "model_final.pth")
    rest = trainer(tmp_path, "train.max_iter=3", resume=True)
    assert rest.start_iter == 2 and rest.optimizer.state_dict()["state"]
    rest.train()


def test_messages_name_the_keys_of_python_configs(digits, tmp_path):
    args = argparse.Namespace(eval_only=False, resume=False)
    cases = {
        r"train\.best_metric 'bbox/AP-x' is unknown": "train.best_metric=bbox/AP-x",
        r"train\.patience 1 counts .*: set train\.eval_period": "train.patience=1",
        r"train\.non_finite\.action must be one of": "train.non_finite.action=no",
        r"train\.ema_decay must be": "train.ema_decay=2.0",
    }
    for message, word in cases.items():
        cfg = config(tmp_path, word)
        cfg.model = {"_target_": f"{__name__}.small_model"}
        with pytest.raises(ConfigError, match=message):
            run(cfg, args)


def small_model():
    return tiny_model(*CLASSES)


def test_a_record_is_replayed_with_the_python_config(digits, tmp_path, capsys):
    found = trainer(tmp_path)
    with torch.no_grad():
        found.model.backbone.fpn_lateral3.weight.fill_(3e38)
    with pytest.raises(NonFinite):
        found.train()
    record = tmp_path / "non_finite_0000000.pth"
    with pytest.raises(SystemExit, match="of a run with a Python config: name it by --config-file"):
        replay(capsys, record)
    own = tmp_path / "own.py"
    own.write_text(
        "from detectron2.config import LazyConfig\n"
        f"globals().update(LazyConfig.load({str(ROOT / 'configs/lazy/fsaf_R_50_FPN_1x.py')!r}))\n"
        f"model = dict(_target_='{__name__}.small_model')\n"
    )
    assert "is the first to overflow" in replay(capsys, record, "--config-file", own)


def test_a_config_that_fails_leaves_python_as_it_was(tmp_path):
    """Its imports went through detectron2's from then on, which setuptools refuses."""
    (tmp_path / "broken.py").write_text("import torch\nassert False, 'no'\n")
    importing = builtins.__import__
    with pytest.raises(ValueError, match=r"broken\.py' cannot be run \(AssertionError: no\)"):
        load_lazy_config(str(tmp_path / "broken.py"), [])
    assert builtins.__import__ is importing
