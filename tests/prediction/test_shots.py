"""Videos are read frame by frame, and only they are."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image
from predictions import photo, write_video

from fsaf_d2.data.reading import image_headers
from fsaf_d2.prediction import find_inputs, predict, shots
from fsaf_d2.prediction.inputs import InputFile
from fsaf_d2.prediction.shots import Failure, Shot, count_frames, read_image, read_video


def frames_of(detector, file) -> list:
    return list(read_video(detector, InputFile(str(file), "clip")))


@pytest.mark.parametrize(
    ("ending", "codec"), [("mp4", "mp4v"), ("avi", "MJPG"), ("mov", "mp4v"), ("mkv", "mp4v")]
)
def test_frames_come_with_number_and_time(detector, tmp_path, ending, codec):
    file = write_video(tmp_path / f"clip.{ending}", 12, codec=codec)
    found = frames_of(detector, file)
    assert count_frames(str(file)) == len(found) == 12
    for index, shot in enumerate(found):
        assert isinstance(shot, Shot) and shot.frame == index and shot.rate == 10
        assert shot.seconds == pytest.approx(index / 10, abs=1e-3)
        assert shot.size == (96, 128) and shot.prepared.channels == "BGR"
        difference = np.abs(shot.prepared.image.astype(int) - photo(96, 128, index))
        assert difference.mean() < 12
    other = np.abs(found[3].prepared.image.astype(int) - photo(96, 128, 4))
    assert other.mean() > 30


@pytest.mark.parametrize("data", [b"", b"no video", b"\0\0\0\x18ftypmp42" + bytes(500)])
def test_what_is_no_video_is_named(detector, tmp_path, data):
    (tmp_path / "clip.mp4").write_bytes(data)
    (failure,) = frames_of(detector, tmp_path / "clip.mp4")
    assert failure == Failure(
        str(tmp_path / "clip.mp4"),
        "it cannot be opened: it is broken, or no video of a known format.",
    )
    assert count_frames(str(tmp_path / "clip.mp4")) == 0


def test_a_video_that_breaks_off_gives_what_it_has(detector, tmp_path):
    content = write_video(tmp_path / "x.avi", 20, codec="MJPG").read_bytes()
    (tmp_path / "clip.avi").write_bytes(content[: len(content) // 2])
    *good, failure = frames_of(detector, tmp_path / "clip.avi")
    assert 5 < len(good) < 15 and all(isinstance(shot, Shot) for shot in good)
    assert f"breaks off after {len(good)} of about 20 frames" in failure.reason


def test_large_frames_are_refused(detector, tmp_path, monkeypatch):
    monkeypatch.setattr(detector, "max_pixels", 96 * 128 - 1)
    (failure,) = frames_of(detector, write_video(tmp_path / "clip.mp4", 3))
    assert "128 x 96 pixels" in failure.reason and "INPUT.MAX_PIXELS" in failure.reason


class Lying:
    """A capture whose header says what it likes."""

    def __init__(self, **values: float) -> None:
        self.values = {getattr(cv2, f"CAP_PROP_{name}"): x for name, x in values.items()}

    def get(self, key: int) -> float:
        return self.values[key]


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        (30.0, 30.0),
        (0.0, 25.0),
        (float("nan"), 25.0),
        (-1.0, 25.0),
        (1e9, 25.0),
        (1e-9, 25.0),
        (0.01, 0.01),
    ],
)
def test_impossible_rates_are_replaced(said, taken):
    assert shots.frame_rate(Lying(FPS=said)) == taken


@pytest.mark.parametrize(
    ("said", "taken"), [(30.0, 30), (-9.2e18, 0), (float("nan"), 0), (1e18, 0)]
)
def test_impossible_numbers_of_frames_are_none(said, taken):
    assert shots.num_frames(Lying(FRAME_COUNT=said)) == taken


def lists_of(file) -> dict[str, str]:
    """Files that lead FFmpeg to other files."""
    return {
        "concat": f"ffconcat version 1.0\nfile {file.name}\n",
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1.0,\n{file.name}\n#EXT-X-ENDLIST\n",
    }


@pytest.mark.parametrize("kind", ["concat", "hls"])
@pytest.mark.parametrize("ending", ["mp4", "m3u8"])
def test_a_video_does_not_lead_to_other_files(detector, tmp_path, monkeypatch, kind, ending):
    inner = write_video(tmp_path / "inner.mp4", 5)
    file = tmp_path / f"list.{ending}"
    file.write_text(lists_of(inner)[kind])
    (failure,) = frames_of(detector, file)
    assert "cannot be opened" in failure.reason
    if kind == "concat" or ending == "m3u8":
        # So they would otherwise.
        monkeypatch.setattr(shots, "_OPTIONS", {})
        found = frames_of(detector, file)
        assert len([x for x in found if isinstance(x, Shot)]) == 5


def test_the_environment_is_left_as_it_was(detector, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "own;1")
    monkeypatch.delenv("OPENCV_FFMPEG_LOGLEVEL", raising=False)
    frames_of(detector, write_video(tmp_path / "clip.mp4", 3))
    assert shots.os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] == "own;1"
    assert "OPENCV_FFMPEG_LOGLEVEL" not in shots.os.environ


def test_an_image_that_fails_is_a_failure(detector, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8")
    failure = read_image(detector, InputFile(str(tmp_path / "a.jpg"), "a"))
    assert failure.file == str(tmp_path / "a.jpg")
    assert failure.reason.startswith("cannot be read (")
    cv2.imwrite(str(tmp_path / "thin.png"), np.zeros((1, 60000, 3), np.uint8))
    failure = read_image(detector, InputFile(str(tmp_path / "thin.png"), "thin"))
    assert "60000 x 1 pixels cannot be resized" in failure.reason


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.tif", {}),
        ("a.tiff", {"compression": "tiff_lzw"}),
        ("a.gif", {}),
        ("a.webp", {}),
        ("a.png", {}),
        ("a.mpo", {}),
    ],
)
def test_further_frames_of_an_image_are_counted(detector, tmp_path, name, options):
    pages = [Image.fromarray(photo(60, 80, seed)) for seed in range(3)]
    pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:], **options)
    pages[0].save(tmp_path / f"one_{name}", "TIFF" if "tif" in name else None)
    assert read_image(detector, InputFile(str(tmp_path / name), "a")).frames == 3
    assert read_image(detector, InputFile(str(tmp_path / f"one_{name}"), "a")).frames == 1


def test_a_file_that_is_nothing_but_pages_takes_no_time_without_end(tmp_path):
    """A page of 8 bytes each, of which there are a million."""
    count = 1_000_000
    pages = bytearray(b"II*\0" + (8).to_bytes(4, "little"))
    for index in range(count):
        pages += b"\0\0" + (8 + 6 * (index + 1)).to_bytes(4, "little")
    (tmp_path / "a.tif").write_bytes(pages)
    assert image_headers.frames_of(str(tmp_path / "a.tif")) in (1, image_headers.MAX_FRAMES)


def test_frames_are_said_and_kept(detector, tmp_path, capsys):
    pages = [Image.fromarray(photo(60, 80, seed)) for seed in range(2)]
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:])
    inputs = find_inputs([tmp_path / "a.gif"])
    summary = predict(detector, inputs, tmp_path / "out", save=["json"])
    assert summary.frames == {str(tmp_path / "a.gif"): 2} and summary.exit_code == 0
    assert "of its 2 frames or pages the first alone is read" in capsys.readouterr().err
    info = json.loads((tmp_path / "out/predictions.json").read_text())["info"]
    assert info["further_frames"] == summary.frames
