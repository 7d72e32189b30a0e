"""Python configs build, train and evaluate what the YAML configs of the same names do."""

import random
import subprocess
from pathlib import Path

import numpy as np
import programs
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from models import ROOT, batch, random_instances

from fsaf_d2 import load_config
from fsaf_d2.data.loading.mapper import build_mapper
from fsaf_d2.data.reading.digits import make_digits
from fsaf_d2.training import Trainer
from fsaf_d2.training.lazy import load_lazy_config

LAZY = ROOT / "configs/lazy"
FILES = sorted(
    str(file.relative_to(LAZY).with_suffix(""))
    for file in LAZY.rglob("*.py")
    if file.parent.name != "common"
)
SIZE = (64, 96)
TOOL = ROOT / "tools/lazyconfig_train_net.py"


def yaml_config(name: str):
    return load_config(ROOT / f"configs/{name}.yaml", ["MODEL.DEVICE", "cpu"])


def test_the_files_are_there():
    assert len(FILES) >= 17 and "timm/hrnet_w18_FPN_1x" in FILES and "fsaf_R_50_FPN_1x" in FILES


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_model_is_that_of_the_yaml_config(name):
    lazy = instantiate(LazyConfig.load(str(LAZY / f"{name}.py")).model)
    model = build_model(yaml_config(name))
    state = model.state_dict()
    assert list(lazy.state_dict()) == list(state)
    lazy.load_state_dict(state)
    trained = ({n for n, p in x.named_parameters() if p.requires_grad} for x in (lazy, model))
    assert next(trained) == next(trained)
    assert lazy.traits.level_names == model.traits.level_names
    assert {x.score_thresh for one in (lazy, model) for x in one.branches.values()} == {0.05}
    inputs = batch(random_instances(3, SIZE), random_instances(2, SIZE))
    losses, found = [], []
    for one in (lazy, model):
        losses.append(one(inputs))
        for branch in one.branches.values():
            branch.score_thresh = 0.0
        # The steps before have changed the statistics of batch norm in both.
        found.append(one.eval()(inputs))
    assert losses[0].keys() == losses[1].keys()
    for key, loss in losses[0].items():
        torch.testing.assert_close(loss, losses[1][key], rtol=0, atol=0, msg=key)
    for one, other in zip(*found, strict=True):
        one, other = one["instances"], other["instances"]
        assert len(one) == len(other) > 0
        for field, value in one.get_fields().items():
            value, expected = (
                x.tensor if hasattr(x, "tensor") else x for x in (value, other.get(field))
            )
            assert torch.equal(value, expected), field


@pytest.mark.parametrize("name", ["fsaf_R_50_FPN_1x", "fsaf_R_50_FPN_3x_ms"])
def test_the_schedule_is_that_of_the_yaml_config(name):
    cfg, lazy_cfg = yaml_config(name), LazyConfig.load(str(LAZY / f"{name}.py"))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.BatchNorm2d(8))
    lazy_cfg.optimizer.params.model = model
    optimizers = instantiate(lazy_cfg.optimizer), Trainer.build_optimizer(cfg, model)
    options = [
        [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        for optimizer in optimizers
    ]
    for group, expected in zip(*options, strict=True):
        keys = ("lr", "momentum", "weight_decay", "nesterov", "dampening", "fused")
        assert {k: group[k] for k in keys} == {k: expected[k] for k in keys}
    assert lazy_cfg.train.max_iter == cfg.SOLVER.MAX_ITER
    assert lazy_cfg.dataloader.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert lazy_cfg.train.init_checkpoint == cfg.MODEL.WEIGHTS
    multiplier = instantiate(lazy_cfg.lr_multiplier)
    expected = build_lr_scheduler(cfg, optimizers[1])._multiplier
    steps = [0, 1, 500, 999, 1000, 59_999, 60_000, 80_000, 89_999]
    steps += [step for step in (209_999, 210_000, 250_000) if step < cfg.SOLVER.MAX_ITER]
    for step in steps:
        where = step / cfg.SOLVER.MAX_ITER
        assert multiplier(where) == pytest.approx(expected(where)), step


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_digits(root, num_train=6, num_val=4, image_size=128)
    return root


@pytest.mark.parametrize("name", ["fsaf_R_50_FPN_3x_ms", "timm/hrnet_w18_FPN_1x"])
def test_images_are_those_of_the_yaml_config(name, data_root):
    cfg, lazy_cfg = yaml_config(name), LazyConfig.load(str(LAZY / f"{name}.py"))
    file = next(iter(sorted((data_root / "digits/train").iterdir())))
    annotation = {"bbox": [10, 20, 30, 40], "bbox_mode": 1, "category_id": 3, "iscrowd": 0}
    record = {"file_name": str(file), "height": 128, "width": 128, "annotations": [annotation]}
    for part, is_train in ((lazy_cfg.dataloader.train, True), (lazy_cfg.dataloader.test, False)):
        mappers = instantiate(part.mapper), build_mapper(cfg, is_train=is_train)
        for seed in range(4):
            found = []
            for mapper in mappers:
                random.seed(seed)
                np.random.seed(seed)
                found.append(mapper(record))
            assert torch.equal(found[0]["image"], found[1]["image"])
            if is_train:
                boxes = [x["instances"].gt_boxes.tensor for x in found]
                assert torch.equal(*boxes)


def tool(data_root: Path, *args: object) -> subprocess.CompletedProcess:
    return programs.run(TOOL, *args, env={"DETECTRON2_DATASETS": str(data_root)})


@pytest.mark.slow
def test_trains_evaluates_and_resumes(data_root, tmp_path):
    words = [
        *("train.init_checkpoint=''", "train.eval_period=2", "train.log_period=1"),
        *("dataloader.train.dataset.dataset_dicts.names=[digits_train]", "model.num_classes=10"),
        *("dataloader.test.dataset.names=[digits_val]", "dataloader.train.total_batch_size=2"),
        *("dataloader.train.num_workers=0", "dataloader.test.num_workers=0"),
        *("dataloader.train.mapper.augmentations.0.short_edge_length=[128]",),
        *("dataloader.test.mapper.augmentations.0.short_edge_length=[128]",),
        *("model.backbone.bottom_up.name=hrnet_w18_small", "model.backbone.out_channels=32"),
        *("model.towers.conv_dims=[32]", "model.backbone.bottom_up.norm=GN"),
        *(f"train.output_dir={tmp_path}", "train.best_metric=validation/total_loss"),
    ]
    config = tmp_path / "tiny.py"
    config.write_text(
        "from detectron2.config import LazyConfig\n"
        f"globals().update(LazyConfig.load({str(LAZY / 'timm/hrnet_w18_HRFPN_1x.py')!r}))\n"
    )
    first = tool(data_root, "--config-file", config, *words, "train.max_iter=2")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("No GPU found: running on the CPU.\n")
    assert "AP50" in first.stdout + first.stderr
    assert (tmp_path / "inference/digits_val/evaluation.json").is_file()
    assert (tmp_path / "report.html").is_file() and (tmp_path / "model_best.pth").is_file()
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert saved["trainer"]["iteration"] == 1 and saved["trainer"]["_trainer"]["optimizer"]["state"]
    again = tool(data_root, "--config-file", config, "--resume", *words, "train.max_iter=3")
    assert again.returncode == 0, again.stderr
    resumed = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert resumed["trainer"]["iteration"] == 2
    assert any(not torch.equal(x, saved["model"][k]) for k, x in resumed["model"].items())
    weights = f"train.init_checkpoint={tmp_path / 'model_final.pth'}"
    evaluated = tool(data_root, "--config-file", config, "--eval-only", *words[1:], weights)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "AP50" in evaluated.stdout + evaluated.stderr


def test_yaml_programs_do_not_run_python_configs(tmp_path):
    marker = tmp_path / "marker"
    (tmp_path / "x.py").write_text(f"open({str(marker)!r}, 'w')\n")
    with pytest.raises(ValueError, match=r"Python code, which is not run.*lazyconfig_train_net"):
        load_config(tmp_path / "x.py")
    (tmp_path / "x.yaml").write_text("_BASE_: x.py\n")
    with pytest.raises(ValueError):
        load_config(tmp_path / "x.yaml")
    assert not marker.exists()


def refusals() -> dict[str, tuple[str, list[str], str]]:
    file = str(LAZY / "fsaf_R_50_FPN_1x.py")
    return {
        "yaml": (str(ROOT / "configs/fsaf_R_50_FPN_1x.yaml"), [], "train_net.py' takes YAML"),
        "no file": (str(LAZY / "none.py"), [], "does not exist"),
        "pair": (file, ["train.max_iter", "3"], "written key=value"),
        "misspelt": (file, ["train.maxiter=3"], "no 'maxiter' in the config"),
        "section": (file, ["optimiser.lr=3"], "no 'optimiser'"),
        "below a number": (file, ["train.max_iter.foo=5"], "'train.max_iter' has no parts"),
        "unclosed": (file, ["train.max_iter=[1"], "An override cannot be read"),
        "parts": (str(LAZY / "common/fsaf.py"), [], "does not define dataloader, optimizer"),
    }


@pytest.mark.parametrize("case", refusals())
def test_what_is_refused(case):
    file, words, message = refusals()[case]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_lazy_config(file, words)


@pytest.mark.parametrize("line", ["import nosuch", "from .none import x", "x = ("])
def test_a_config_that_does_not_run_is_named(tmp_path, line):
    (tmp_path / "own.py").write_text(f"{line}\n")
    with pytest.raises((ValueError, OSError), match=r"own\.py|none"):
        load_lazy_config(str(tmp_path / "own.py"), [])


def test_arguments_at_their_defaults_can_be_given():
    words = ["model.branches.anchor.smooth_l1_beta=0.5", "train.best_metric=bbox/AP50"]
    words += ["model.branches.anchor.box_reg_loss_type=giou", "train.max_iter=3"]
    cfg = load_lazy_config(str(LAZY / "fsaf_R_50_FPN_1x.py"), words)
    anchor = cfg.model.branches.anchor
    assert (anchor.smooth_l1_beta, anchor.box_reg_loss_type) == (0.5, "giou")
    assert (cfg.train.max_iter, cfg.train.best_metric) == (3, "bbox/AP50")


@pytest.mark.slow
def test_what_is_missing_for_a_run_is_said_in_a_sentence(tmp_path):
    config = ("--config-file", LAZY / "fsaf_R_50_FPN_1x.py")
    cases = {
        "--num-gpus 8 was asked for, but 0 GPUs": ("--num-gpus", 8),
        "error: train.ema_decay must be 0 or more and less than 1": ("train.ema_decay=1.5",),
        "train.init_checkpoint 'none.pth' could not be": (
            *("--eval-only", "train.init_checkpoint=none.pth"),
        ),
        "instances_train2017.json' does not exist: data sets are": ("train.init_checkpoint=''",),
    }
    for message, words in cases.items():
        done = tool(tmp_path, *config, *words, f"train.output_dir={tmp_path}")
        assert message in done.stderr and "Traceback" not in done.stderr
        assert done.returncode == 1
