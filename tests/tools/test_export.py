"""The command: what it writes, when it refuses, and that predict runs what it wrote."""

import json
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exports import KINDS
from models import ROOT
from predictions import MORE, content_of, photo

from fsaf_d2 import load_detector
from fsaf_d2.commands import export_command, predict_command
from fsaf_d2.export.comparison import compare
from fsaf_d2.prediction.sidecar import ENTRY

DOCS = ROOT / "docs" / "export.md"
OUTPUTS = ["boxes", "scores", "classes", "levels", "branches"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.save({**content_of(folder), **MORE}, folder / "model_final.pth")
    return folder / "model_final.pth"


@pytest.fixture(scope="module")
def exported(weights, tmp_path_factory) -> Path:
    """A folder with what the command writes as TorchScript."""
    folder = tmp_path_factory.mktemp("exported")
    words = ["--weights", weights, "--format", "torchscript"]
    words += ["--output", folder / "model_final.torchscript"]
    parser = export_command.argument_parser()
    assert export_command.run(parser.parse_args(list(map(str, words)))) == 0
    return folder


@pytest.fixture
def call(tmp_path, monkeypatch, weights, capsys):
    """Runs the command beside the weights alone; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "photos").mkdir()
    own = tmp_path / weights.name
    own.symlink_to(weights)
    for seed, size in enumerate([(90, 120), (120, 90), (61, 200)]):
        cv2.imwrite(f"photos/{seed}.png", photo(*size, seed))

    def run(*words: object) -> tuple[int, str, str]:
        parser = export_command.argument_parser()
        code = export_command.run(parser.parse_args(["--weights", str(own), *map(str, words)]))
        return code, *capsys.readouterr()

    return run


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} - {"photos", "model_final.pth"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_predict_finds_the_same_with_an_exported_file(call, tmp_path, weights, kind):
    code, output, errors = call("--format", kind, "--check", "photos")
    assert (code, errors) == (0, "") and "detections in 3 images: boxes differ by" in output
    file = f"model_final.{kind}"
    assert files(tmp_path) == {file, f"{file}.json"}
    found = []
    for path in (weights, file):
        words = ["--weights", path, "--input", "photos", "--output", f"found{len(found)}"]
        words += ["--save", "json"] + (["--trust-weights"] if kind == "torchscript" else [])
        parser = predict_command.argument_parser()
        assert predict_command.run(parser.parse_args(list(map(str, words)))) == 0
        text = (tmp_path / f"found{len(found)}" / "predictions.json").read_text()
        found.append(json.loads(text))
    one, other = found
    assert len(one["annotations"]) == len(other["annotations"]) > 20
    for key in ("images", "categories", "info"):
        assert one[key] == other[key]
    for expected, actual in zip(one["annotations"], other["annotations"]):
        for key, value in expected.items():
            assert actual[key] == pytest.approx(value, abs=2e-3 if key != "area" else 1)


@pytest.mark.slow
def test_an_onnx_file_runs_without_this_project(call, tmp_path):
    assert call("--format", "onnx")[0] == 0
    session = onnxruntime.InferenceSession("model_final.onnx")
    batch = torch.rand(3, 3, 70, 99).mul(255).numpy()
    sizes = torch.tensor([[70, 99], [50, 99], [70, 40]]).numpy()
    outputs = session.run(OUTPUTS, {"images": batch, "sizes": sizes})
    assert [x.shape for x in outputs] == [(3, 100, 4), *[(3, 100)] * 4]
    model = onnx.load("model_final.onnx")
    assert {entry.key for entry in model.metadata_props} == {ENTRY}
    assert model.metadata_props[0].value == Path("model_final.onnx.json").read_text()


@pytest.mark.slow
def test_a_torchscript_file_runs_without_this_project(exported):
    model = torch.jit.load(str(exported / "model_final.torchscript"))
    outputs = model(torch.rand(2, 3, 70, 99) * 255, torch.tensor([[70, 99], [50, 99]]))
    assert outputs[0].shape == (2, 100, 4) and not outputs[0].requires_grad


@pytest.mark.slow
def test_settings_of_the_command_are_exported(call):
    code, _, errors = call(
        *("--format", "torchscript", "--output", "deep/own.ts", "--no-nms"),
        *("--class-names", "a", "b", "c", "--", "INPUT.MIN_SIZE_TEST", "96"),
    )
    assert code == 0, errors
    said = json.loads(Path("deep/own.ts.json").read_text())
    assert said["class_names"] == ["a", "b", "c"]
    assert said["thresholds"] == pytest.approx([0.35, 0.4, 0.5])
    assert said["short_side"] == 96 and said["with_nms"] is False
    detector = load_detector("deep/own.ts", trust=True)
    assert min(detector.prepare(photo()).resized.shape[1:]) == 96


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_program_that_differs_is_not_written(call, tmp_path, monkeypatch, kind):
    write = export_command.write_program

    def write_another(detector, *args, **options):
        bias = detector.model.branches.point.bbox_pred.bias
        bias.data[0] += 0.01
        write(detector, *args, **options)
        bias.data[0] -= 0.01

    monkeypatch.setattr(export_command, "write_program", write_another)
    code, output, errors = call("--format", kind, "--check", "photos")
    assert code == 1 and "differs in 3 of 3 images; no file was written" in errors
    assert output.count("Differs: photos/") == 3
    assert files(tmp_path) == set()


def test_a_check_that_proves_nothing_fails(call, tmp_path):
    threshold = ("MODEL.RETINANET.SCORE_THRESH_TEST", "0.999")
    code, _, errors = call("--format", "torchscript", "--check", "photos", "--", *threshold)
    assert code == 1 and "prove nothing" in errors and files(tmp_path) == set()
    (tmp_path / "empty").mkdir()
    code, _, errors = call("--format", "torchscript", "--check", "empty")
    assert code == 1 and "no image in what --check names" in errors


def test_unreadable_images_are_compared_with_nothing(call, tmp_path, weights):
    detector = load_detector(weights, device="cpu")
    (tmp_path / "photos/1.png").write_bytes(b"no image")
    names = [str(tmp_path / f"photos/{i}.png") for i in range(3)]
    result = compare(detector, detector, names)
    assert result.num_images == 2 and not result.failures
    assert len(result.unreadable) == 1 and names[1] in result.unreadable[0]


@pytest.mark.slow
def test_unreadable_images_of_the_check_are_named_and_the_file_lies_beside_the_weights(
    call, tmp_path, monkeypatch
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    whole = (tmp_path / "photos/1.png").read_bytes()
    (tmp_path / "photos/1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "photos/2.jpg").write_bytes(b"no image")
    (tmp_path / "photos/notes.txt").write_text("none")
    monkeypatch.chdir(elsewhere)
    code, output, _ = call("--format", "torchscript", "--check", tmp_path / "photos")
    assert code == 0 and "in 2 images" in output
    skipped = [line for line in output.splitlines() if line.startswith("Skipped: ")]
    for name in ("1.png", "2.jpg", "notes.txt"):
        assert sum(name in line for line in skipped) == 1
    assert not list(elsewhere.iterdir()) and (tmp_path / "model_final.torchscript").is_file()


@pytest.mark.slow
def test_a_check_of_unreadable_images_fails(call, tmp_path):
    for file in (tmp_path / "photos").iterdir():
        file.write_bytes(b"no image")
    code, output, errors = call("--format", "torchscript", "--check", "photos")
    assert code == 1 and "none of the 3 images of --check can be read" in errors
    assert output.count("Skipped: ") == 3 and files(tmp_path) == set()


def test_mistakes_end_in_one_sentence(call, tmp_path, weights, exported):
    code, _, errors = call("--format", "onnx", "MODEL.RETINANET.NMS_THRESH_TEST", "1.5")
    assert code == 1 and "nms_thresh must be a number from 0 to 1, not 1.5" in errors
    code, _, errors = call("--format", "onnx", "--output", tmp_path)
    assert code == 1 and f"--output '{tmp_path}' is a folder" in errors
    before = weights.read_bytes()
    (tmp_path / "link.onnx").symlink_to(weights)
    (tmp_path / "hard.onnx").hardlink_to(weights)
    for output in (weights, "link.onnx", "hard.onnx"):
        code, _, errors = call("--format", "onnx", "--output", output)
        assert code == 1 and "is the file of the weights" in errors
        assert weights.read_bytes() == before
    assert (tmp_path / "link.onnx").is_symlink()
    for name in ("link.onnx", "hard.onnx"):
        (tmp_path / name).unlink()
    code, _, errors = call("--format", "onnx", "--check", "nowhere.jpg")
    assert code == 1 and "'nowhere.jpg' does not exist" in errors
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    again = ["--weights", "model_final.torchscript", "--format", "onnx", "--trust-weights"]
    code, _, errors = call(*again)
    assert code == 1 and "cannot be exported again" in errors
    assert files(tmp_path) == {"model_final.torchscript", "model_final.torchscript.json"}


@pytest.mark.slow
def test_the_program_in_the_docs_finds_the_same(call, weights, capsys):
    assert call("--format", "onnx")[0] == 0
    cv2.imwrite("photo.jpg", photo())
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), flags=re.DOTALL)
    exec(code, {})
    lines = capsys.readouterr().out.splitlines()
    found = load_detector(weights, device="cpu")("photo.jpg")
    assert len(lines) == len(found) > 3
    for line, box, score in zip(lines, found.pred_boxes.tensor, found.scores):
        assert float(line.split()[1]) == pytest.approx(score.item(), abs=2e-3)
        numbers = [float(x) for x in line.partition("[")[2].strip("]").split()]
        # Those over the border are not clipped there.
        assert np.clip(numbers, 0, [120, 90, 120, 90]) == pytest.approx(box.tolist(), abs=0.1)


@pytest.mark.slow
def test_missing_packages_are_named_with_the_remedy(call, tmp_path, monkeypatch, capsys):
    assert call("--format", "onnx")[0] == 0
    for package in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            words = ["--weights", "model_final.onnx", "--input", "photos", "--output", "found"]
            assert predict_command.run(predict_command.argument_parser().parse_args(words)) == 1
            errors = capsys.readouterr().err
            assert f"{package} " in errors and "pip install onnx onnxruntime" in errors
    (tmp_path / "model_final.onnx").unlink()
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, errors = call("--format", "onnx")
    assert code == 1 and "pip install onnx onnxruntime" in errors
    assert files(tmp_path) == {"model_final.onnx.json"}


def test_nothing_is_asked_of_an_exported_detector_that_it_cannot_do(exported, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def refused(**options) -> str:
        with pytest.raises(ValueError) as error:
            load_detector(exported / "model_final.torchscript", trust=True, **options)
        return str(error.value)

    for key, value in (
        ("overrides", ["INPUT.MIN_SIZE_TEST", "96"]),
        ("class_names", ["a", "b", "c"]),
        ("config_file", "some.yaml"),
    ):
        assert "takes no config, keys or class names" in refused(**{key: value})
    assert "no GPU is found" in refused(device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "runs on the CPU here" in refused(device="cuda")
