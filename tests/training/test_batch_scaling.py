import pytest
from models import ROOT

from fsaf_d2 import load_config
from fsaf_d2.training import prepare
from fsaf_d2.training.setup.batch_scaling import scale_to_batch

SOLVER = """SOLVER:
  OPTIMIZER: {optimizer}
  IMS_PER_BATCH: 16
  REFERENCE_BATCH: 16
  BASE_LR: 0.01
  WARMUP_ITERS: 1000
  STEPS: [6000, 8000]
  MAX_ITER: 9000
  CHECKPOINT_PERIOD: 500
TEST: {{EVAL_PERIOD: 250}}
"""


@pytest.fixture
def config(tmp_path):
    def read(*overrides: str, optimizer: str = "SGD", leaf: str = ""):
        (tmp_path / "base.yaml").write_text(SOLVER.format(optimizer=optimizer))
        (tmp_path / "leaf.yaml").write_text(f"_BASE_: base.yaml\n{leaf}\n")
        return load_config(tmp_path / "leaf.yaml", overrides)

    return read


def values(cfg) -> tuple:
    solver = cfg.SOLVER
    return (
        *(solver.BASE_LR, solver.WARMUP_ITERS, tuple(solver.STEPS), solver.MAX_ITER),
        *(solver.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD, solver.REFERENCE_BATCH),
    )


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (4, (0.0025, 4000, (24000, 32000), 36000, 2000, 1000, 4)),
        (32, (0.02, 500, (3000, 4000), 4500, 250, 125, 32)),
        (16, (0.01, 1000, (6000, 8000), 9000, 500, 250, 16)),
        # 9000 / 1.5
        (24, (0.015, 667, (4000, 5333), 6000, 333, 167, 24)),
    ],
)
def test_every_image_is_seen_as_often(config, batch, expected):
    cfg = config("SOLVER.IMS_PER_BATCH", str(batch))
    lines = scale_to_batch(cfg)
    assert values(cfg) == expected
    assert len(lines) == (0 if batch == 16 else 7)
    # Also where the config was written and read again.
    assert scale_to_batch(cfg) == [] and values(cfg) == expected


def test_lines_say_before_and_after(config):
    lines = scale_to_batch(config("SOLVER.IMS_PER_BATCH", "4"))
    assert "batches of 16 images to 4" in lines[0] and "REFERENCE_BATCH 0" in lines[0]
    assert lines[1:3] == [
        "  SOLVER.BASE_LR: 0.01 -> 0.0025",
        "  SOLVER.WARMUP_ITERS: 1000 -> 4000",
    ]


def test_adamw_has_the_square_root(config):
    cfg = config("SOLVER.IMS_PER_BATCH", "4", optimizer="ADAMW")
    scale_to_batch(cfg)
    # 0.01 * sqrt(4 / 16)
    assert values(cfg)[:2] == (0.005, 4000)


def test_what_was_given_for_this_run_stays(config):
    cfg = config(
        *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_LR", "0.01", "SOLVER.MAX_ITER", "3000"),
        *("TEST.EVAL_PERIOD", "100"),
    )
    cfg.SOLVER.CHECKPOINT_PERIOD = 50
    lines = scale_to_batch(cfg)
    # Warm-up at most as long as it was, or a tenth of the run.
    assert values(cfg) == (0.01, 1000, (24000, 32000), 3000, 50, 100, 4)
    assert "  SOLVER.BASE_LR: 0.01 stays (given by the command line)" in lines
    assert "  SOLVER.CHECKPOINT_PERIOD: 50 stays (given by Python code)" in lines


def test_warm_up_grows_to_a_tenth_of_a_run_whose_length_was_given(config):
    cfg = config("SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "20000")
    scale_to_batch(cfg)
    assert cfg.SOLVER.WARMUP_ITERS == 2000


def test_a_file_with_a_batch_of_its_own_is_for_that_batch(config):
    leaf = "SOLVER: {IMS_PER_BATCH: 4, BASE_LR: 0.003}"
    cfg = config(leaf=leaf)
    lines = scale_to_batch(cfg)
    assert values(cfg)[:2] == (0.003, 4000)
    assert any("BASE_LR: 0.003 stays (given by '" in line for line in lines)
    # Unless it says that it is for another one.
    cfg = config(leaf="SOLVER: {IMS_PER_BATCH: 4, BASE_LR: 0.004, REFERENCE_BATCH: 8}")
    scale_to_batch(cfg)
    assert values(cfg)[:2] == (0.002, 2000)


def test_a_file_that_leaves_the_batch_is_for_the_reference(config):
    cfg = config("SOLVER.IMS_PER_BATCH", "4", leaf="SOLVER: {BASE_LR: 0.004}")
    scale_to_batch(cfg)
    assert cfg.SOLVER.BASE_LR == 0.001


@pytest.mark.parametrize(
    "overrides", [("SOLVER.REFERENCE_BATCH", "0"), ("SOLVER.REFERENCE_WORLD_SIZE", "8")]
)
def test_it_can_be_switched_off(config, overrides):
    cfg = config("SOLVER.IMS_PER_BATCH", "4", *overrides)
    before = values(cfg)
    assert scale_to_batch(cfg) == [] and values(cfg) == before


def test_nothing_becomes_0_and_0_stays(config):
    cfg = config("SOLVER.IMS_PER_BATCH", "1600", leaf="SOLVER: {CHECKPOINT_PERIOD: 3}\nTEST: {}")
    derived = config("SOLVER.IMS_PER_BATCH", "4", leaf="TEST: {EVAL_PERIOD: 0}")
    scale_to_batch(cfg)
    scale_to_batch(derived)
    assert cfg.SOLVER.CHECKPOINT_PERIOD == 1 and derived.TEST.EVAL_PERIOD == 0


@pytest.mark.parametrize("batch", ["0", "-4"])
def test_a_batch_of_nothing(config, batch):
    with pytest.raises(ValueError, match=f"IMS_PER_BATCH {batch} .*must be above 0"):
        scale_to_batch(config("SOLVER.IMS_PER_BATCH", batch))


def test_the_projects_configs_are_for_their_own_batches():
    for file in (ROOT / "configs").rglob("*.yaml"):
        cfg = load_config(file)
        assert cfg.SOLVER.REFERENCE_BATCH == cfg.SOLVER.IMS_PER_BATCH > 0
        assert scale_to_batch(cfg) == []


def test_prepare_scales_and_says_so_but_not_to_evaluate(config, capsys):
    options = ("MODEL.DEVICE", "cpu", "SOLVER.IMS_PER_BATCH", "4")
    for eval_only in (False, True):
        cfg = config(*options)
        prepare(cfg, eval_only=eval_only)
        is_said = "SOLVER.BASE_LR: 0.01 -> 0.0025" in capsys.readouterr().out
        assert is_said != eval_only
        assert (cfg.SOLVER.BASE_LR == 0.0025) != eval_only
