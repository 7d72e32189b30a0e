import json
import math
import subprocess
import sys
from pathlib import Path

import programs
import pytest
import torch
from formats import CLASSES, WRITERS, write_coco, write_yolo

from fsaf_d2.commands.train_command import stopped_in_a_sentence
from fsaf_d2.data.reading.digits import make_digits

ROOT = Path(__file__).parents[1]
QUICK = [
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "1", "SOLVER.CHECKPOINT_PERIOD", "3"),
    *("DATALOADER.NUM_WORKERS", "0"),
]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_digits(root, num_train=6, num_val=4, image_size=128)
    return root


def run(data_root: Path, *args: str) -> subprocess.CompletedProcess:
    return programs.run(ROOT / "train_net.py", *args, env={"DETECTRON2_DATASETS": str(data_root)})


def train(data_root: Path, output: Path, steps: int, *args: str) -> subprocess.CompletedProcess:
    """Train the demo's detector for a few steps."""
    result = run(
        data_root,
        *("--config-file", ROOT / "configs/demo/digits.yaml"),
        *args,
        *("OUTPUT_DIR", output, "SOLVER.MAX_ITER", steps, *QUICK),
    )
    assert result.returncode == 0, result.stderr
    return result


def iterations(output: Path) -> list[int]:
    lines = (output / "metrics.json").read_text().splitlines()
    return [json.loads(line)["iteration"] for line in lines]


@pytest.mark.slow
def test_trains_evaluates_and_resumes(data_root, tmp_path):
    first = train(data_root, tmp_path, 3)
    assert first.stdout.startswith("No GPU found: running on the CPU.\n")
    assert "AP50" in first.stdout
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 2
    momenta = checkpoint["trainer"]["_trainer"]["optimizer"]["state"]
    assert len(momenta) > 0 and momenta[0]["step"] == 3

    resumed = train(data_root, tmp_path, 6, "--resume")
    assert ": 3 of 6 steps are done" in resumed.stdout
    assert len(resumed.stdout.splitlines()) < 40
    log = (tmp_path / "log.txt").read_text().partition("Starting training from iteration 3")[2]
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 5
    # The optimizer went on, it did not start again.
    assert checkpoint["trainer"]["_trainer"]["optimizer"]["state"][0]["step"] == 6
    assert iterations(tmp_path) == sorted(iterations(tmp_path))

    evaluated = run(
        data_root,
        *("--config-file", ROOT / "configs/demo/digits.yaml", "--eval-only"),
        *("MODEL.WEIGHTS", tmp_path / "model_final.pth", "OUTPUT_DIR", tmp_path / "evaluated"),
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert (tmp_path / "report.html").exists() and (tmp_path / "training.png").exists()
    assert (tmp_path / "evaluated/inference/digits_val/predictions.json").exists()

    def ap_line(stdout: str) -> str:
        lines = [
            line.split("copypaste: ")[1] for line in stdout.splitlines() if "copypaste:" in line
        ]
        return lines[lines.index("Task: bbox") + 2]

    assert ap_line(evaluated.stdout) == ap_line(log)


@pytest.mark.slow
def test_one_command_evaluates_without_and_with_augmentation(data_root, tmp_path):
    trained = train(data_root, tmp_path, 1, "TEST.AUG.ENABLED", "True")
    assert "TEST.AUG.ENABLED is for --eval-only" in trained.stdout
    words = ("--config-file", ROOT / "configs/demo/digits.yaml", "--eval-only")
    keys = ("MODEL.WEIGHTS", tmp_path / "model_final.pth", "OUTPUT_DIR", tmp_path / "evaluated")
    sizes = ("TEST.AUG.MIN_SIZES", "(96, 128)", "TEST.AUG.MAX_SIZE", "160")
    evaluated = run(data_root, *words, *keys, "TEST.AUG.ENABLED", "True", *sizes)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "digits_val  once" in evaluated.stdout and "in 4 views" in evaluated.stdout
    wrong = run(data_root, *words, *keys, "TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "()")
    assert wrong.returncode == 1 and "TEST.AUG.MIN_SIZES must be" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.slow
def test_the_log_has_losses_levels_and_positives(data_root, tmp_path):
    train(data_root, tmp_path, 2)
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    record = {name: value for line in lines for name, value in json.loads(line).items()}
    for name in ("loss_cls", "loss_box_reg", "loss_point_cls", "loss_point_box_reg"):
        assert math.isfinite(record[name])
    assert {
        "num_pos_anchors",
        "num_pos_points",
        *(f"num_objects_p{i}" for i in range(3, 8)),
    } <= set(record)


@pytest.mark.slow
def test_it_starts_in_an_interpreter_of_its_own():
    result = subprocess.run(
        [sys.executable, str(ROOT / "train_net.py")], capture_output=True, text=True, timeout=300
    )
    assert "--config-file is missing" in refusal(result)


def refused(data_root: Path, *args) -> str:
    return refusal(run(data_root, *args))


def refusal(result: subprocess.CompletedProcess) -> str:
    """The one sentence."""
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    # A library may have warned before.
    _, message = result.stderr.split("train_net.py: error: ")
    return message


@pytest.mark.slow
def test_missing_data_set_is_named_with_the_remedy(data_root, tmp_path):
    message = refused(
        data_root,
        *("--config-file", ROOT / "configs/fsaf_R_50_FPN_1x.yaml", "--eval-only"),
        *("MODEL.WEIGHTS", "", "OUTPUT_DIR", tmp_path),
    )
    for word in ("coco_2017_val", "instances_val2017.json", "DETECTRON2_DATASETS", "DATASETS.TEST"):
        assert word in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--config-file", "nowhere.yaml"], ["nowhere.yaml"]),
        (["MODEL.FSAF.LOSS_WEIGTH", "1"], ["LOSS_WEIGTH"]),
        (["MODEL.WEIGHTS", "nowhere.pth"], ["nowhere.pth", "MODEL.WEIGHTS"]),
        (["DATASETS.TEST", "('digit_val',)"], ["digit_val", "digits_val"]),
        (["--num-gpus", "2"], ["--num-gpus 2"]),
        (["MODEL.FSAF.LEVEL_SELECTION", "best"], ["LEVEL_SELECTION"]),
        (["SOLVER.OPTIMIZER", "LION"], ["SOLVER.OPTIMIZER", "ADAMW"]),
        (["MODEL.RETINANET.NUM_CLASSES", "5"], ["NUM_CLASSES is 5", "10 classes"]),
    ],
)
def test_mistakes_end_in_one_sentence(data_root, tmp_path, args, words):
    config = [] if args[:1] == ["--config-file"] else ["--config-file"]
    config = config and [*config, ROOT / "configs/demo/digits.yaml"]
    output = ["OUTPUT_DIR", tmp_path] if args[0] != "--num-gpus" else []
    message = refused(data_root, *config, *args, *output)
    assert all(word in message for word in words), message


SMALL = ["--config-file", ROOT / "configs/Base-FSAF-small.yaml"]


def train_own(output: Path, *args: object) -> subprocess.CompletedProcess:
    sizes = ["INPUT.MIN_SIZE_TRAIN", "(192,)", "INPUT.MIN_SIZE_TEST", "96"]
    keys = ["OUTPUT_DIR", output, "SOLVER.MAX_ITER", "2", *QUICK, *sizes]
    return run(output, *SMALL, *args, *keys)


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_own_data_of_every_format_train_and_are_evaluated(tmp_path, kind):
    root = WRITERS[kind](tmp_path / "own")
    result = train_own(tmp_path / "out", "--train-data", root, "--val-data", root)
    assert result.returncode == 0, result.stderr
    for words in (
        *(f"Training data '{root}' ({kind}): 4 images, 4 boxes, 3 classes", "2 images, 2 box"),
        "MODEL.RETINANET.NUM_CLASSES: 80 -> 3, as in data set 'own_train'.",
        # Base-FSAF-small.yaml has AdamW: 0.004 * sqrt(2 / 8)
        *("SOLVER.BASE_LR: 0.004 -> 0.002", "SOLVER.MAX_ITER: 2 stays"),
        "1 training images without objects are kept as background",
        "AP50",
    ):
        assert words in result.stdout
    saved = torch.load(tmp_path / "out/model_final.pth", weights_only=True)
    assert sorted(saved["class_names"]) == sorted(CLASSES)
    assert (tmp_path / "out/inference/own_val/predictions.json").exists()


@pytest.mark.slow
def test_own_data_without_validation_go_on_and_are_evaluated_later(tmp_path):
    root = write_coco(tmp_path / "own")
    out = tmp_path / "out"
    first = train_own(out, "--train-data", root)
    assert first.returncode == 0, first.stderr
    assert "trains without evaluation" in first.stdout and "AP50" not in first.stdout

    resumed = run(out, *SMALL, "--resume", "OUTPUT_DIR", out, "SOLVER.MAX_ITER", "3", *QUICK)
    assert resumed.returncode == 0, resumed.stderr
    assert "Going on with the data in " in resumed.stdout
    assert ": 2 of 3 steps are done" in resumed.stdout

    # An evaluation in its folder does not make it another run.
    evaluated = run(out, *SMALL, "--eval-only", "--resume", "--val-data", root, "OUTPUT_DIR", out)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "untrained network" not in evaluated.stdout and (out / "config_eval.yaml").is_file()
    resumed = run(out, *SMALL, "--resume", "OUTPUT_DIR", out, "SOLVER.MAX_ITER", "4", *QUICK)
    assert resumed.returncode == 0, resumed.stderr
    assert "Going on with the data in " in resumed.stdout

    # Data in another format, with other ids, are matched by name with what the weights say.
    other = write_yolo(tmp_path / "other")
    (other / "data.yaml").write_text("val: valid/images\nnames: [zebra, cat, white dog]\n")
    weights = ["MODEL.WEIGHTS", out / "model_final.pth", "OUTPUT_DIR", tmp_path / "evaluated"]
    evaluated = run(out, *SMALL, "--eval-only", "--val-data", other, *weights)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "do not say their classes" not in evaluated.stdout
    ids = json.loads((tmp_path / "evaluated/data/eval.json").read_text())["categories"]
    assert ids == [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    assert (tmp_path / "evaluated/inference/own_eval").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--train-data", "nowhere"], ["'nowhere' does not exist"]),
        (["--val-data", "{own}"], ["--val-data without --train-data"]),
        (["--eval-only", "--train-data", "{own}"], ["--eval-only needs --val-data"]),
        (["--train-data", "{own}", "MODEL.RETINANET.NUM_CLASSES", "80"], ["is 80", "3 classes"]),
        (["--train-data", "{own}", "DATASETS.TRAIN", "('a',)"], ["DATASETS.TRAIN was given by"]),
    ],
)
def test_mistakes_with_own_data_end_in_one_sentence(tmp_path, args, words):
    root = write_coco(tmp_path / "own")
    args = [arg.format(own=root) for arg in args]
    message = refused(tmp_path, *SMALL, *args, "OUTPUT_DIR", tmp_path / "out")
    assert all(word in message for word in words), message


def test_ctrl_c_ends_an_evaluation_in_a_sentence(capsys):
    with pytest.raises(SystemExit) as ended, stopped_in_a_sentence("evaluate"):
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert "evaluate: stopped; the evaluation is not complete." in capsys.readouterr().err
