"""Runs of several processes on this machine's CPU, as torchrun starts them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from formats import write_voc

from fsaf_d2.data.reading.digits import make_digits

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TWO = [*TORCHRUN, "--standalone", "--nproc-per-node", "2"]
DIGITS = ["train_net.py", "--config-file", "configs/demo/digits.yaml"]
QUICK = ["SOLVER.IMS_PER_BATCH", "4", "SOLVER.WARMUP_ITERS", "1"]
# Learnt by heart within some steps, where no score is too low.
SCORABLE = ["DATASETS.TEST", "('digits_train',)", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]

# What every process has seen, when training with the demo's detector.
REPORTER = """
import json, sys
import torch
from detectron2.utils import comm
from fsaf_d2 import load_config
from fsaf_d2.training import Trainer, launch, prepare

def checksum(model):
    return [parameter.double().sum().item() for parameter in model.parameters()]

def main(cfg, folder):
    cfg.SEED = comm.get_rank()
    torch.manual_seed(cfg.SEED)
    trainer = Trainer(cfg)
    start = checksum(trainer.model)
    trainer.resume_or_load(resume=False)
    trainer.train()
    seen = {
        "rank": comm.get_rank(), "size": comm.get_world_size(),
        "local_rank": comm.get_local_rank(), "local_size": comm.get_local_size(),
        "start": start, "end": checksum(trainer.model),
    }
    with open(f"{folder}/{comm.get_rank()}.json", "w") as file:
        json.dump(seen, file)

folder, *overrides = sys.argv[1:]
cfg = load_config("configs/demo/digits.yaml", ["OUTPUT_DIR", folder, *overrides])
prepare(cfg, eval_only=False)
launch(main, device=cfg.MODEL.DEVICE, args=(cfg, folder))
assert not torch.distributed.is_initialized()
"""

# The second process fails while the first waits for it.
FAILURE = """
from detectron2.utils import comm
from fsaf_d2.training import launch
from fsaf_d2.commands.train_command import one_sentence

def main():
    with one_sentence():
        if comm.get_rank() == 1:
            raise ValueError("only the second process knows.")
    comm.synchronize()

launch(main, device="cpu")
"""


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_digits(root, num_train=6, num_val=5, image_size=128)
    return root


@pytest.fixture
def start(data_root):
    """Starts a command in the project's folder; what is still running at the end is ended."""
    processes = []
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    places = {"DETECTRON2_DATASETS": str(data_root), "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}

    def start(*command: object) -> subprocess.Popen:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env={**os.environ, **places},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


@pytest.fixture
def run(start):
    """Runs a command to its end and gives its exit code, output and errors."""

    def run(*command: object) -> tuple[int, str, str]:
        process = start(*command)
        output, errors = process.communicate(timeout=120)
        return process.returncode, output, errors

    return run


def ap_line(output: str) -> str:
    """The figures of both branches together."""
    lines = [line.split("copypaste: ")[1] for line in output.splitlines() if "copypaste: " in line]
    return lines[lines.index("Task: bbox") + 2]


def detections(folder: Path) -> list[dict]:
    return json.loads((folder / "inference/digits_train/predictions.json").read_text())


def test_trains_resumes_and_evaluates_as_one_process_does(run, tmp_path):
    code, output, errors = run(*TWO, *DIGITS, "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 3, *QUICK)
    assert code == 0, errors
    assert output.count("No GPU found: running on the CPU.") == 1
    assert "Rank of current process: 0. World size: 2" in (tmp_path / "log.txt").read_text()
    assert "World size: 2" in (tmp_path / "log.txt.rank1").read_text()

    code, output, errors = run(
        *(*TWO, *DIGITS, "--resume", "OUTPUT_DIR", tmp_path, "SOLVER.MAX_ITER", 40, *QUICK),
        *("TEST.EVAL_PERIOD", 20),
    )
    assert code == 0, errors
    for log in ("log.txt", "log.txt.rank1"):
        assert "Starting training from iteration 3" in (tmp_path / log).read_text()
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 39
    assert checkpoint["trainer"]["_trainer"]["optimizer"]["state"][0]["step"] == 40

    weights = ["--eval-only", "MODEL.WEIGHTS", tmp_path / "model_final.pth", *SCORABLE]
    two = run(*TWO, *DIGITS, *weights, "OUTPUT_DIR", tmp_path / "two")
    one = run(sys.executable, *DIGITS, *weights, "OUTPUT_DIR", tmp_path / "one")
    assert (two[0], one[0]) == (0, 0), two[2] + one[2]
    assert float(ap_line(one[1]).split(",")[0]) > 1
    assert ap_line(two[1]) == ap_line(one[1])
    assert detections(tmp_path / "two") == detections(tmp_path / "one")
    for folder, count in (("two", 3), ("one", 6)):
        log = (tmp_path / folder / "log.txt").read_text()
        assert f"Start inference on {count} batches" in log


@pytest.mark.parametrize("machines", [1, 2])
def test_every_process_has_the_same_model(start, tmp_path, machines):
    """Two machines are two torchrun commands on this one."""
    script = tmp_path / "reporter.py"
    script.write_text(REPORTER)
    command = [script, tmp_path, "SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()", *QUICK]
    if machines == 1:
        runs = [start(*TWO, *command)]
    else:
        runs = [start(*machine, *command) for machine in two_machines()]
    for process in runs:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert (first["size"], second["size"]) == (2, 2)
    assert [first["local_size"], second["local_size"]] == [2 // machines] * 2
    assert [first["local_rank"], second["local_rank"]] == [0, 2 - machines]
    assert first["start"] == second["start"]
    assert first["end"] == second["end"] != first["start"]


def test_own_data_are_written_once_and_known_to_all(run, tmp_path):
    root = write_voc(tmp_path / "own")
    out, small = tmp_path / "out", ["--config-file", "configs/Base-FSAF-small.yaml"]
    code, output, errors = run(
        *(*TWO, "-m", "fsaf_d2", "train", *small, "--train-data", root, "--val-data", root),
        *("OUTPUT_DIR", out, "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 4),
        *("INPUT.MIN_SIZE_TEST", 96, "DATALOADER.NUM_WORKERS", 0),
    )
    assert code == 0, errors
    assert output.count("Training data ") == output.count("SOLVER.BASE_LR: ") == 1
    assert output.count("NUM_CLASSES: 80 -> 3") == 1
    assert (out / "model_final.pth").exists() and "AP50" in output


def two_machines() -> list[list[str]]:
    """The torchrun commands of two machines with a process each, which are both this one."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}"]
    return [[*TORCHRUN, "--nnodes", "2", "--node-rank", rank, *rendezvous] for rank in "01"]


def said_once(errors: str) -> str:
    """The one sentence of a run that failed; torchrun's own report stands below it."""
    errors, _, _ = errors.partition("torch.distributed.elastic.multiprocessing.errors")
    (message,) = (line for line in errors.splitlines() if ": error: " in line)
    # Whatever frames are left are those of torchrun itself.
    assert 'train_command.py", line' not in errors and 'launch.py", line' not in errors, errors
    return message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train-data", "nowhere"], ["'nowhere' does not exist"]),
        (["--num-gpus", "2"], ["--num-gpus 2", "torchrun", "(2)"]),
        (["MODEL.WEIGHTS", "nowhere.pth"], ["nowhere.pth"]),
        (["SOLVER.IMS_PER_BATCH", "3"], ["IMS_PER_BATCH 3", "multiple of 2"]),
        (["SOLVER.OPTIMIZER", "LION"], ["LION"]),
    ],
)
def test_a_mistake_is_named_once(run, tmp_path, arguments, words):
    output = [] if arguments[0].startswith("--") else ["OUTPUT_DIR", tmp_path]
    code, _, errors = run(*TWO, *DIGITS, *arguments, *output)
    assert code == 1
    message = said_once(errors)
    assert all(word in message for word in words), message


def test_a_process_that_fails_alone_ends_all(run, tmp_path):
    script = tmp_path / "failure.py"
    script.write_text(FAILURE)
    code, _, errors = run(*TWO, script)
    assert code == 1
    assert said_once(errors).endswith("error: only the second process knows.")


def test_a_mistake_on_one_machine_ends_the_others(start, tmp_path):
    (tmp_path / "weights.pth").touch()
    runs = [
        start(*machine, *DIGITS, "MODEL.WEIGHTS", tmp_path / name, "OUTPUT_DIR", tmp_path)
        for machine, name in zip(two_machines(), ("weights.pth", "nowhere.pth"))
    ]
    everything = ""
    for process in runs:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        everything += errors.partition("torch.distributed.elastic.multiprocessing.errors")[0]
    assert "nowhere.pth" in said_once(everything)
