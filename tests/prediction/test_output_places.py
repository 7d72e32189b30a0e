"""Where predictions are written, and what they are made with, may not be as it should."""

import shutil

import pytest
import torch
from formats import write_image
from predictions import MORE, content_of

from fsaf_d2 import load_detector
from fsaf_d2.prediction import find_inputs, predict


@pytest.fixture
def inputs(tmp_path):
    for name in ("a", "b", "c"):
        write_image(tmp_path / f"in/{name}.png")
    return find_inputs([tmp_path / "in"])


def made(tmp_path, kind: str):
    place = tmp_path / "out"
    match kind:
        case "a file":
            place.write_text("mine")
        case "a link that leads nowhere":
            place.symlink_to(tmp_path / "nowhere")
        case "below a file":
            place.write_text("mine")
            place = place / "folder"
    return place


@pytest.mark.parametrize("kind", ["a file", "a link that leads nowhere", "below a file"])
def test_an_output_that_cannot_be_a_folder_is_named(detector, tmp_path, inputs, kind):
    place = made(tmp_path, kind)
    kind = kind.removeprefix("below ")
    words = rf"--output cannot be .*out' is {kind}: name a folder"
    with pytest.raises(ValueError, match=words) as error:
        predict(detector, inputs, place)
    assert "\n" not in str(error.value) and not (tmp_path / "nowhere").exists()
    if kind == "a file":
        assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("save", [["json"], ["pictures", "json"], ["csv", "yolo", "json"]])
def test_a_folder_that_vanishes_is_named(detector, tmp_path, inputs, monkeypatch, save):
    detect, place = detector.detect, tmp_path / "out"

    def vanishes(batch):
        shutil.rmtree(place, ignore_errors=True)
        return detect(batch)

    monkeypatch.setattr(detector, "detect", vanishes)
    with pytest.raises(OSError, match=r"out/") as error:
        predict(detector, inputs, place, save=save)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_checkpoint_that_is_being_written_is_named(tmp_path, share):
    file = tmp_path / "model.pth"
    torch.save({**content_of(tmp_path), **MORE}, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"model\.pth' (is|cannot)") as error:
        load_detector(file)
    assert "\n" not in str(error.value)
