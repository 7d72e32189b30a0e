"""The command: what it does with a folder of all kinds of files, what it says, how it ends."""

import csv
import json
import os
import re
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
import torch
from models import ROOT
from PIL import Image
from predictions import MORE, NAMES, content_of, photo, write_video

from fsaf_d2.commands import predict_command
from fsaf_d2.prediction import run as run_module


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.save({**content_of(folder), **MORE}, folder / "model_final.pth")
    return folder / "model_final.pth"


@pytest.fixture
def call(tmp_path, monkeypatch, weights, capsys):
    """Runs the command in an empty folder; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def run(*words: object, weights=weights) -> tuple[int, str, str]:
        parser = predict_command.argument_parser()
        try:
            code = predict_command.run(
                parser.parse_args(["--weights", str(weights), *map(str, words)])
            )
        except SystemExit as error:
            code = error.code
        return code, *capsys.readouterr()

    return run


def black_png(side: int) -> bytes:
    """A black image of one bit a pixel; Pillow takes seconds to write a large one."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + -(-side // 8)) * side, 1)
    chunks = [b"IHDR" + header, b"IDAT" + rows, b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


def write_mixture(folder) -> None:
    """The folder of all that goes wrong, with some that goes right."""
    folder.mkdir()
    (folder / "notes.txt").write_text("Not an image.\n")
    cv2.imwrite(str(folder / "good.jpg"), photo())
    whole = (folder / "good.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    deep = photo()[:, :, 0].astype(np.uint16) * 257
    cv2.imwrite(str(folder / "deep.png"), deep)
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise
    Image.fromarray(photo()[:, :, ::-1]).rotate(90, expand=True).save(
        folder / "turned.png", exif=exif
    )
    (folder / "huge.png").write_bytes(black_png(20000))
    write_video(folder / "clip.mp4", 7)


def check_mixture(output) -> None:
    """What is right in the mixture is done, the rest is named."""
    data = json.loads((output / "predictions.json").read_text())
    images = {os.path.basename(x["file_name"]): x for x in data["images"] if "frame" not in x}
    assert set(images) == {"good.jpg", "turned.png"}
    # Both are the same image, once it is upright.
    assert (images["turned.png"]["height"], images["turned.png"]["width"]) == (90, 120)
    assert [x["frame"] for x in data["images"] if "frame" in x] == list(range(7))
    failed = {os.path.basename(x["file"]): x["reason"] for x in data["info"]["failed"]}
    assert set(failed) == {"truncated.jpg", "deep.png", "huge.png"}
    assert "truncated" in failed["truncated.jpg"] and "more than 8 bits" in failed["deep.png"]
    assert "20000 x 20000 pixels" in failed["huge.png"]
    found = sorted(str(x.relative_to(output)) for x in output.rglob("*") if x.is_file())
    assert found == [
        ".lock",
        "pictures/clip.mp4",
        "pictures/good.jpg",
        "pictures/turned.jpg",
        "predictions.csv",
        "predictions.json",
    ]
    drawn = cv2.imread(str(output / "pictures" / "turned.jpg"))
    assert drawn.shape == (450, 600, 3)


def test_a_folder_of_all_kinds_of_files(call, tmp_path):
    write_mixture(tmp_path / "in")
    code, output, errors = call("--input", "in", "--output", "out", "--min-score", 0.6)
    assert code == 3
    check_mixture(tmp_path / "out")
    assert "Skipped: in/notes.txt" in output and "notes" not in errors
    for name in ("truncated.jpg", "deep.png", "huge.png"):
        assert f"Failed: in/{name}: " in errors
    assert "3 of 6 files (9 images) done" in output and "3 failed, named above" in output
    assert "images/s" in errors


@pytest.mark.slow
def test_the_program_from_outside(tmp_path, weights):
    """No display, no window, no compiler's or FFmpeg's noise; the exit code arrives."""
    write_mixture(tmp_path / "in")
    content = (tmp_path / "in" / "clip.mp4").read_bytes()
    (tmp_path / "broken.mp4").write_bytes(content[: len(content) // 2])
    environment = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    environment |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tools" / "predict.py"), "--weights", str(weights)]
    result = subprocess.run(
        [*command, "--input", "in", "broken.mp4", "--output", "out"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 3, result.stderr
    assert "Failed: broken.mp4: it cannot be opened" in result.stderr
    assert "moov" not in result.stderr and "Traceback" not in result.stderr
    data = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(data["info"]["failed"]) == 4 and len(data["images"]) == 9


def test_images_of_all_kinds(call, tmp_path):
    (tmp_path / "in").mkdir()
    kinds = {
        "png": ["RGB", "L", "LA", "P", "RGBA", "1"],
        "jpg": ["RGB", "L", "CMYK"],
        "tif": ["RGB", "CMYK"],
        **{ending: ["RGB"] for ending in ("webp", "bmp", "gif", "jp2", "ppm")},
    }
    for ending, modes in kinds.items():
        for mode in modes:
            image = Image.fromarray(photo()).convert(mode)
            image.save(tmp_path / "in" / f"{mode}.{ending}")
    frames = [Image.fromarray(photo(seed=seed)) for seed in range(3)]
    frames[0].save(tmp_path / "in" / "moving.gif", save_all=True, append_images=frames[1:])
    assert call("--input", "in", "--output", "out", "--save", "json")[0] == 0
    data = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(data["images"]) == sum(map(len, kinds.values())) + 1
    # Those that lose nothing are found alike; of what moves the first image is taken.
    ids = {x["file_name"]: x["id"] for x in data["images"]}
    scores = {
        name: [x["score"] for x in data["annotations"] if x["image_id"] == number]
        for name, number in ids.items()
    }
    for name in ("RGBA.png", "RGB.tif", "RGB.bmp", "RGB.ppm"):
        assert scores[f"in/{name}"] == pytest.approx(scores["in/RGB.png"], abs=1e-3)
    assert scores["in/moving.gif"] == pytest.approx(scores["in/RGB.gif"], abs=1e-3)


def write_images(folder, count: int) -> None:
    folder.mkdir()
    for index in range(count):
        size = (90, 120) if index % 3 else (120, 90)
        cv2.imwrite(str(folder / f"{index:03d}.png"), photo(*size, index))


def rows_of(file) -> list[dict]:
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


def test_all_is_done(call, tmp_path):
    write_images(tmp_path / "in", 7)
    code, output, _ = call("--input", "in", "--output", "out", "--save", "yolo", "json", "csv")
    assert code == 0 and "7 of 7 files done" in output
    assert "Classes: cat, dog, bird. Least score: 0.35 to 0.50, by class. Running on cpu" in output
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 7
    files = [row["file"] for row in rows_of("out/predictions.csv")]
    assert files == sorted(files) and len(set(files)) == 7


def test_the_number_of_threads_and_the_batch_change_nothing(call, tmp_path):
    write_images(tmp_path / "in", 9)
    tables = []
    for number, options in enumerate([(1, 1), (4, 3), (9, 2)]):
        words = ["--batch-size", options[0], "--workers", options[1], "--save", "csv"]
        assert call("--input", "in", "--output", f"out{number}", *words)[0] == 0
        tables.append(rows_of(f"out{number}/predictions.csv"))
    for table in tables[1:]:
        assert [row["file"] for row in table] == [row["file"] for row in tables[0]]
        scores = [[float(row["score"]) for row in x] for x in (table, tables[0])]
        assert scores[0] == pytest.approx(scores[1], abs=2e-4)


def test_one_least_score_for_all(call, tmp_path):
    write_images(tmp_path / "in", 2)
    for number, score in enumerate(["0", "0.6", "1"]):
        words = ["--min-score", score, "--save", "csv", "json"]
        code, output, _ = call("--input", "in", "--output", f"out{number}", *words)
        assert code == 0
    lengths = [len(rows_of(f"out{number}/predictions.csv")) for number in range(3)]
    assert lengths[0] > lengths[1] > lengths[2] == 0
    assert all(float(row["score"]) >= 0.6 for row in rows_of("out1/predictions.csv"))
    info = json.loads((tmp_path / "out1" / "predictions.json").read_text())["info"]
    assert info["least_scores"] == dict.fromkeys(NAMES, 0.6) and info["complete"]
    assert re.search(r"Nothing reached the least score; the highest was 0\.[6-9]", output)


def test_crops_of_chosen_classes(call, tmp_path):
    write_images(tmp_path / "in", 2)
    words = ["--save", "csv", "--crops", "dog"]
    assert call("--input", "in", "--output", "out", *words)[0] == 0
    assert os.listdir(tmp_path / "out" / "crops") == ["dog"]
    dogs = [row for row in rows_of("out/predictions.csv") if row["class"] == "dog"]
    assert len(list((tmp_path / "out" / "crops" / "dog").iterdir())) == len(dogs) > 0
    assert call("--input", "in", "--output", "all", "--save", "csv", "--crops")[0] == 0
    assert sorted(os.listdir(tmp_path / "all" / "crops")) == sorted(NAMES)


def test_overrides_at_the_end(call, tmp_path):
    write_images(tmp_path / "in", 1)
    words = ["TEST.DETECTIONS_PER_IMAGE", 3]
    assert call("--input", "in", "--min-score", 0, "--output", "out", *words)[0] == 0
    assert len(rows_of("out/predictions.csv")) == 3
    assert call("--min-score", 0, "--output", "o2", "--input", "in", "--", *words)[0] == 0
    assert len(rows_of("o2/predictions.csv")) == 3
    code, _, errors = call("--output", "o3", "--input", "in", *words)
    assert code == 1 and "'TEST.DETECTIONS_PER_IMAGE' is taken for an input" in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "in"], "required: --output"),
        (["--input", "none.jpg", "--output", "out"], "'none.jpg' does not exist"),
        (["--input", "in/*.gif", "--output", "out"], "No file matches"),
        (["--input", "in", "--output", "in"], "input folder and the output folder"),
        (["--input", "in", "--output", "in/000.png"], "is a file"),
        (["--input", "empty", "--output", "out"], "no image and no video"),
        (["--input", "in", "--output", "out", "--save", "xml"], "invalid choice: 'xml'"),
        (["--input", "in", "--output", "out", "--crops", "cats"], "no class 'cats' to crop"),
        (["--input", "in", "--output", "out", "--min-score", "50"], "from 0 to 1, not 50"),
        (["--input", "in", "--output", "out", "--batch-size", "0"], "--batch-size must be 1"),
        (["--input", "in", "--output", "out", "--device", "cuda"], "no GPU is found"),
        (["--input", "in", "--output", "out", "--config-file", "c.yaml"], "'c.yaml' does not"),
        (["--input", "in", "--output", "out", "INPUT.X", "3"], "INPUT.X"),
        (["--input", "in", "--output", "out", "INPUT.X"], "KEY VALUE"),
    ],
)
def test_a_wrong_command_is_one_sentence(call, tmp_path, words, message):
    write_images(tmp_path / "in", 1)
    (tmp_path / "empty").mkdir()
    code, _, errors = call(*words)
    # What argparse says comes with the exit.
    said = errors + (code if isinstance(code, str) else "")
    assert message in said and "Traceback" not in said
    assert code == 1 or isinstance(code, str)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_wrong_weights_are_one_sentence(call, tmp_path):
    write_images(tmp_path / "in", 1)
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    code, _, errors = call("--input", "in", "--output", "out", weights="bad.pth")
    assert code == 1 and errors.startswith("predict: error: 'bad.pth' is no whole checkpoint")
    code, _, errors = call("--input", "in", "--output", "out", weights="none.pth")
    assert code == 1 and "'none.pth' do not exist" in errors


def test_results_are_not_replaced_in_silence(call, tmp_path):
    write_images(tmp_path / "in", 1)
    assert call("--input", "in", "--output", "out")[0] == 0
    before = (tmp_path / "out" / "predictions.csv").read_bytes()
    code, _, errors = call("--input", "in", "--output", "out", "--min-score", 0)
    assert code == 1 and "holds predictions already" in errors and "--overwrite" in errors
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == before
    assert call("--input", "in", "--output", "out", "--min-score", 0, "--overwrite")[0] == 0
    assert (tmp_path / "out" / "predictions.csv").read_bytes() != before


def test_an_output_that_leads_to_the_weights_is_refused(call, tmp_path, weights):
    write_images(tmp_path / "in", 1)
    before = weights.read_bytes()
    (tmp_path / "out").symlink_to(weights)
    for words in ([], ["--overwrite"]):
        code, _, errors = call("--input", "in", "--output", "out", *words)
        assert code == 1 and "'out' is a file: name a folder" in errors
    assert (tmp_path / "out").is_symlink() and weights.read_bytes() == before


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_drawn_images_are_no_input_of_the_same_folder(call, tmp_path, overwrite):
    write_images(tmp_path / "in", 1)
    assert call("--input", "in", "--output", "out")[0] == 0
    before = (tmp_path / "out" / "pictures" / "000.jpg").read_bytes()
    words = ["--input", "out/pictures", "--output", "out", *overwrite]
    code, _, errors = call(*words)
    assert code == 1 and "lies where the output is written" in errors
    assert (tmp_path / "out" / "pictures" / "000.jpg").read_bytes() == before


def test_none_done_is_exit_code_1(call, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    code, output, errors = call("--input", "a.jpg", "--output", "out")
    assert code == 1 and "Failed: a.jpg: cannot be read" in errors and "0 of 1 files" in output


def test_a_full_disk_ends_it_with_a_sentence(call, tmp_path, monkeypatch):
    write_images(tmp_path / "in", 5)

    def full(file, _):
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr("fsaf_d2.prediction.drawings.write_image", full)
    code, _, errors = call("--input", "in", "--output", "out")
    assert code == 1 and "No space left on device: 'out/pictures/000.jpg'" in errors
    info = json.loads((tmp_path / "out" / "predictions.json").read_text())["info"]
    assert info["complete"] is False


def test_stopped_by_hand(call, tmp_path, monkeypatch):
    write_images(tmp_path / "in", 5)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module.Detector, "detect", stop)
    code, _, errors = call("--input", "in", "--output", "out")
    assert code == 130 and "stopped" in errors
    assert not json.loads((tmp_path / "out" / "predictions.json").read_text())["info"]["complete"]


def test_names_do_not_steer_the_terminal(call, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "\x1b[2Jgone\n.jpg").write_bytes(b"")
    (tmp_path / "in" / "x\x1b[2J.txt").write_bytes(b"")
    code, output, errors = call("--input", "in", "--output", "out")
    assert code == 1 and "\x1b[2J" not in output + errors
    assert "Failed: in/?[2Jgone?.jpg" in errors
