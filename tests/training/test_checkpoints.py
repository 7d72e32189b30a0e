import re
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from models import ROOT
from runs import run_cfg, run_trainer, same, weights_of
from torch import nn

from fsaf_d2.training import Trainer
from fsaf_d2.training.checkpoints import RunCheckpointer
from fsaf_d2.training.random_state import random_state, set_random_state
from fsaf_d2.weights.atomic_writing import find_damage, write_atomically


def checkpointer(folder, value=0.0) -> RunCheckpointer:
    model = nn.Linear(4, 3)
    nn.init.constant_(model.weight, value)
    return RunCheckpointer(model, str(folder))


def names(folder) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_a_checkpoint_is_whole_and_noted(tmp_path):
    checkpointer(tmp_path, 2.0).save("model_0000004", iteration=4)
    assert names(tmp_path) == {"model_0000004.pth", "last_checkpoint"}
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"
    saved = torch.load(tmp_path / "model_0000004.pth", weights_only=True)
    assert saved["iteration"] == 4 and (saved["model"]["weight"] == 2).all()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path, damage, caplog):
    one = checkpointer(tmp_path, 2.0)
    one.save("model_0000001")
    one.save("model_0000003")
    file = tmp_path / "model_0000003.pth"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        place = content.index(3 * b"\x00\x00\x00\x40")  # 2.0 three times
        content[place] ^= 1
    file.write_bytes(
        {"cut": content[:-50], "flip": content, "empty": b"", "text": b"no checkpoint"}[damage]
    )
    assert one.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")
    assert "model_0000003.pth" in caplog.text and "damaged" in caplog.text
    assert find_damage(tmp_path / "model_0000001.pth") is None


@pytest.mark.parametrize("content", [None, "", "gone.pth", b"\xff\xfe\x00"])
def test_without_a_good_note_the_newest_is_found(tmp_path, content):
    one = checkpointer(tmp_path)
    one.save("model_0000001")
    one.save("model_0000003")
    note = tmp_path / "last_checkpoint"
    note.unlink()
    if content is not None:
        note.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert one.get_checkpoint_file() == str(tmp_path / "model_0000003.pth")


def test_the_best_is_nothing_to_resume_from(tmp_path):
    one = checkpointer(tmp_path)
    one.save("model_best", tag=False)
    assert not one.has_checkpoint()


def test_old_ones_go_but_the_final_and_the_best_stay(tmp_path):
    one = checkpointer(tmp_path)
    for name in ("model_0000001", "model_0000003", "model_best", "model_0000010", "model_final"):
        one.save(name, tag=False)
    one.remove_old(0)
    assert len(names(tmp_path)) == 5
    one.remove_old(2)
    assert names(tmp_path) == {
        f"model_{name}.pth" for name in ("0000003", "0000010", "best", "final")
    }


def test_the_newest_stay_also_beside_those_of_a_longer_run(tmp_path):
    one = checkpointer(tmp_path)
    for name in ("model_0089999", "model_0000001", "model_0000003"):
        one.save(name)
    one.remove_old(2)
    assert {"model_0000001.pth", "model_0000003.pth"} == names(tmp_path) - {"last_checkpoint"}


def test_a_full_disk_is_seen_before_writing(tmp_path, monkeypatch):
    one = checkpointer(tmp_path)
    one.save("model_0000001")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"model_0000003\.pth.*1 MiB are needed, 0 MiB are free"):
        one.save("model_0000003")
    assert one.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")


def test_a_write_that_fails_half_way_leaves_what_was_there(tmp_path):
    """A limit on the size of files stands in for a disk that is full."""
    file = tmp_path / "model_best.pth"
    write_atomically(file, {"x": torch.ones(3)})
    before = file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match=r"model_best\.pth' could not be written .* --resume"):
            write_atomically(file, {"x": torch.ones(1 << 20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert file.read_bytes() == before and names(tmp_path) == {"model_best.pth"}


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(OSError, match=r"gone/model_0000001\.pth.*OUTPUT_DIR"):
        checkpointer(tmp_path / "gone").save("model_0000001")


def test_random_states_go_on_where_they_were():
    import random

    import numpy as np

    state = random_state()
    drawn = [random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(1).item()]
    set_random_state(state)
    assert drawn == [random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(1).item()]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [{}, {"SOLVER__EMA_DECAY": 0.9}, {"SOLVER__FUSED": True}])
def test_resume_goes_on_bit_for_bit(digits, tmp_path, overrides):
    """Ended in step 6, the run resumes behind step 4."""
    whole = run_trainer(run_cfg(tmp_path / "whole", **overrides))
    whole.train()
    cut = run_trainer(run_cfg(tmp_path / "cut", **overrides))
    step = cut.run_step

    def run_step():
        step()
        if cut.iter == 5:
            raise SystemExit

    cut.run_step = run_step
    with pytest.raises(SystemExit):
        cut.train()
    rest = run_trainer(run_cfg(tmp_path / "cut", **overrides), resume=True)
    assert rest.start_iter == 4
    rest.train()
    assert same(weights_of(rest), weights_of(whole))


def test_resume_says_where_it_is_and_what_differs(digits, tmp_path, caplog):
    # Before a trainer is built: detectron2's sets up loggers of its own, unless there are some.
    caplog.set_level("INFO")
    run_trainer(run_cfg(tmp_path, SOLVER__MAX_ITER=4)).train()
    run_trainer(run_cfg(tmp_path, SOLVER__MOMENTUM=0.5), resume=True)
    assert f"Resuming '{tmp_path}/model_final.pth': 4 of 6 steps are done" in caplog.text
    assert "Unlike the saved run: SOLVER.MOMENTUM 0.9 -> 0.5, without effect" in caplog.text


def test_a_changed_learning_rate_has_no_effect_on_a_resumed_run_which_says_so(
    digits, tmp_path, caplog
):
    caplog.set_level("INFO")
    run_trainer(run_cfg(tmp_path / "one", SOLVER__MAX_ITER=4)).train()
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    one = run_trainer(run_cfg(tmp_path / "one"), resume=True)
    changed = {"SOLVER__BASE_LR": 0.5, "SOLVER__WEIGHT_DECAY": 0.5, "SOLVER__MOMENTUM": 0.0}
    other = run_trainer(run_cfg(tmp_path / "other", **changed), resume=True)
    assert re.search(r"SOLVER\.BASE_LR .* -> 0\.5, without effect", caplog.text)
    for run in (one, other):
        run.train()
    assert same(weights_of(one), weights_of(other))


def test_resume_without_a_checkpoint_is_refused(digits, tmp_path):
    with pytest.raises(ValueError, match="leave --resume out"):
        run_trainer(run_cfg(tmp_path), resume=True)


def test_a_checkpoint_tells_its_run(digits, tmp_path):
    run_trainer(run_cfg(tmp_path, SOLVER__MAX_ITER=2)).train()
    saved = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert saved["class_names"] == [str(digit) for digit in range(10)]
    assert "META_ARCHITECTURE: FSAF" in saved["config"]
    assert saved["versions"]["torch"] == str(torch.__version__)


def test_the_same_command_gives_the_same_twice(digits, tmp_path):
    trainers = [run_trainer(run_cfg(tmp_path / name, DETERMINISTIC=True)) for name in "ab"]
    try:
        for trainer in trainers:
            trainer.train()
        assert same(*map(weights_of, trainers))
    finally:
        torch.use_deterministic_algorithms(False)


def test_deterministic_needs_a_seed(tmp_path):
    with pytest.raises(ValueError, match="DETERMINISTIC needs a SEED"):
        Trainer(run_cfg(tmp_path, DETERMINISTIC=True, SEED=-1))


@pytest.mark.slow
def test_killed_runs_end_as_undisturbed_ones():
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "soak.py"), "--kills", "8"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "alone and killed: equal, bit for bit" in result.stdout
