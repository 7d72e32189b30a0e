"""Numbers of a Python config that nothing can be done with are refused by their names there."""

import pytest
from models import ROOT

from fsaf_d2.training.lazy_config import ConfigError, load_lazy_config
from fsaf_d2.training.lazy_ranges import _PLACES, lines_of_lazy_warm_up, require_lazy_ranges
from fsaf_d2.training.setup.ranges import ranges_of

LAZY = ROOT / "configs/lazy"
FILES = [LAZY / "fsaf_R_50_FPN_3x_ms.py", LAZY / "timm/hrnet_w18_HRFPN_1x.py"]


def config(*words: str):
    return load_lazy_config(str(FILES[0]), list(words))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("dataloader.train.total_batch_size", "0", "must be 1 or more and finite, not 0."),
        ("train.max_iter", "0", "must be 1 or more and finite, not 0."),
        ("train.checkpointer.period", "0", "must be 1 or more and finite, not 0."),
        ("train.log_period", "0", "must be 1 or more and finite, not 0."),
        ("train.eval_period", "-1", "must be 0 or more and finite, not -1."),
        ("optimizer.lr", "0.0", "must be more than 0 and finite, not 0.0."),
        ("optimizer.lr", "nan", "must be more than 0 and finite, not nan."),
        ("optimizer.lr", "1e-2x", "must be a number, not '1e-2x'."),
        ("optimizer.momentum", "1.0", "must be 0 or more and less than 1, not 1.0."),
        ("train.ema_decay", "1.5", "must be 0 or more and less than 1, not 1.5."),
        ("lr_multiplier.warmup_length", "-0.1", "must be 0 or more and finite, not -0.1."),
        (
            "dataloader.train.mapper.augmentations.0.short_edge_length",
            "[800,0]",
            "must be 1 or more and finite, not 0.",
        ),
        (
            "dataloader.train.mapper.augmentations.0.short_edge_length",
            "[]",
            "must have a number, not [].",
        ),
        ("dataloader.test.num_workers", "-1", "must be 0 or more and finite, not -1."),
        ("model.suppression.nms_thresh", "1.5", "must be 0 or more and at most 1, not 1.5."),
        ("model.branches.point.topk_candidates", "0", "must be 1 or more and finite, not 0."),
    ],
)
def test_numbers_out_of_range_are_named(name, value, words):
    with pytest.raises(ConfigError) as error:
        require_lazy_ranges(config(f"{name}={value}"))
    assert str(error.value) == f"{name} {words}"


def test_an_evaluation_does_not_ask_for_what_training_needs():
    cfg = config("optimizer.lr=0", "train.log_period=0", "train.ema_decay=2")
    require_lazy_ranges(cfg, eval_only=True)
    with pytest.raises(ConfigError) as error:
        require_lazy_ranges(cfg)
    assert len(str(error.value).splitlines()) == 3


def test_every_place_belongs_to_a_key_and_is_in_a_config():
    assert set(_PLACES) <= set(ranges_of(eval_only=False))
    for file in FILES:
        require_lazy_ranges(load_lazy_config(str(file), []))


@pytest.mark.parametrize(("share", "is_named"), [("1", True), ("3.5", True), ("0.99", False)])
def test_a_warm_up_as_long_as_the_run_is_named(share, is_named):
    lines = lines_of_lazy_warm_up(config(f"lr_multiplier.warmup_length={share}"))
    assert bool(lines) == is_named
    if lines:
        assert f"lr_multiplier.warmup_length {share} is a share of the run" in lines[0]
