"""Numbers of a config that nothing can be done with are refused by key, value and place."""

import pytest
from models import tiny_cfg

from fsaf_d2 import load_config
from fsaf_d2.training.setup.ranges import lines_of_warm_up, require_ranges


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("SOLVER.IMS_PER_BATCH", "0", "must be 1 or more and finite, not 0"),
        ("SOLVER.MAX_ITER", "0", "must be 1 or more and finite, not 0"),
        ("SOLVER.CHECKPOINT_PERIOD", "0", "must be 1 or more"),
        ("SOLVER.BASE_LR", "0.0", "must be more than 0 and finite, not 0.0"),
        ("SOLVER.BASE_LR", "float('nan')", "must be more than 0"),
        ("SOLVER.BASE_LR", "float('inf')", "must be more than 0"),
        ("SOLVER.EMA_DECAY", "1.5", "must be 0 or more and less than 1, not 1.5"),
        ("SOLVER.WARMUP_ITERS", "-1", "must be 0 or more"),
        ("TEST.EVAL_PERIOD", "-5", "must be 0 or more"),
        ("INPUT.MIN_SIZE_TRAIN", "(800, 0)", "must be 1 or more and finite, not 0"),
        ("INPUT.MIN_SIZE_TRAIN", "()", r"must have a number, not \(\)"),
        ("INPUT.MAX_SIZE_TEST", "0", "must be 1 or more"),
        ("MODEL.PIXEL_STD", "[1.0, 0.0, 1.0]", "must be more than 0"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [0]]", "must be more than 0"),
        ("MODEL.RETINANET.NMS_THRESH_TEST", "1.5", "must be 0 or more and at most 1"),
        ("DATALOADER.NUM_WORKERS", "-1", "must be 0 or more"),
    ],
)
def test_numbers_out_of_range_are_named(key, value, words):
    cfg = tiny_cfg()
    section, _, name = key.rpartition(".")
    node = cfg
    for part in section.split("."):
        node = node[part]
    node[name] = eval(value)
    with pytest.raises(ValueError, match=rf"{key} {words}.*\(given by"):
        require_ranges(cfg)


def test_all_that_are_wrong_are_said_at_once_with_their_places():
    cfg = load_config("", ["SOLVER.IMS_PER_BATCH", "0", "TEST.PATIENCE", "-1"])
    with pytest.raises(ValueError) as error:
        require_ranges(cfg)
    first, second = str(error.value).splitlines()
    assert first.startswith("SOLVER.IMS_PER_BATCH") and "command line" in first
    assert second.startswith("TEST.PATIENCE")


def test_an_evaluation_does_not_ask_for_what_training_needs():
    cfg = load_config("", ["SOLVER.IMS_PER_BATCH", "0"])
    require_ranges(cfg, eval_only=True)
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH"):
        require_ranges(cfg)
    require_ranges(load_config(""))
    require_ranges(tiny_cfg())


@pytest.mark.parametrize(("warm_up", "is_named"), [(20, True), (100, True), (19, False)])
def test_a_warm_up_as_long_as_the_run_is_named(warm_up, is_named):
    words = ["SOLVER.MAX_ITER", "20", "SOLVER.WARMUP_ITERS", str(warm_up)]
    lines = lines_of_warm_up(load_config("", words))
    assert bool(lines) == is_named
    if lines:
        assert f"WARMUP_ITERS {warm_up} is not below SOLVER.MAX_ITER 20" in lines[0]
