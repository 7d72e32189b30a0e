"""Two runs or predictions never write to one folder."""

import json
import multiprocessing
import os
import signal

import pytest

from fsaf_d2.ownership import owned
from fsaf_d2.prediction.inputs import Inputs
from fsaf_d2.prediction.run import predict
from fsaf_d2.training.launch import owned_output


def hold(folder, ready, leave):
    with owned(folder):
        ready.set()
        leave.wait(60)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder, until it is told to leave or killed."""
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready, leave))
    process.start()
    assert ready.wait(30)
    yield process, leave
    process.kill()
    process.join()


def test_a_second_run_is_refused_with_the_first_ones_process(tmp_path, holder):
    process, leave = holder
    words = rf"Another run \(process {process.pid} on .* OUTPUT_DIR"
    with pytest.raises(ValueError, match=words), owned(tmp_path):
        pass
    leave.set()
    process.join()
    with owned(tmp_path):
        assert json.loads((tmp_path / "running.json").read_text())["process"] == os.getpid()
    assert not (tmp_path / "running.json").exists()


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_the_folder_of_a_run_that_was_killed_is_taken_over(tmp_path, holder, signal_number):
    process, _ = holder
    os.kill(process.pid, signal_number)
    process.join()
    assert json.loads((tmp_path / "running.json").read_text())["process"] == process.pid
    with owned(tmp_path):
        assert json.loads((tmp_path / "running.json").read_text())["process"] == os.getpid()


def test_a_damaged_description_is_no_reason_to_fail(tmp_path, holder):
    (tmp_path / "running.json").write_bytes(b"\xff{")
    words = r"Another run writes to train\.output_dir"
    with pytest.raises(ValueError, match=words), owned(tmp_path, "train.output_dir"):
        pass


@pytest.mark.parametrize("error", [NotImplementedError, PermissionError])
def test_what_cannot_be_locked_is_left_to_those_who_write(tmp_path, monkeypatch, error):
    def fails(*_args, **_options):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", fails)
    entered = False
    with owned(tmp_path / "out"):
        entered = True
    assert entered and os.listdir(tmp_path / "out") == []


@pytest.mark.parametrize("output", ["found", "link"])
def test_a_second_prediction_is_refused(tmp_path, holder, output):
    (tmp_path / "found").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "found")
    words = r"Another run \(process .* writes to --output"
    with pytest.raises(ValueError, match=words):
        predict(None, Inputs([], [], []), tmp_path / output)


def test_of_torchruns_processes_the_first_owns_the_folder(tmp_path, monkeypatch, holder):
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("RANK", "1")
    with owned_output(tmp_path):
        pass
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="OUTPUT_DIR"), owned_output(tmp_path):
        pass


@pytest.mark.parametrize("kind", ["a file", "a link that leads nowhere"])
@pytest.mark.parametrize("below", ["", "run"])
def test_what_cannot_be_a_folder_is_said_with_its_key(tmp_path, kind, below):
    place = tmp_path / "out"
    if kind == "a file":
        place.write_text("")
    else:
        place.symlink_to(tmp_path / "nowhere")
    words = rf"OUTPUT_DIR cannot be '{place / below}': '{place}' is {kind}: name a folder"
    with pytest.raises(ValueError, match=words), owned_output(place / below):
        pytest.fail("It was taken.")
    assert os.listdir(tmp_path) == ["out"]
