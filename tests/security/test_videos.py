"""Videos of strangers: what they say of themselves is taken for granted in nothing."""

import math
import struct
from types import SimpleNamespace

import cv2
import pytest
from predictions import photo, write_video

from fsaf_d2.prediction.inputs import InputFile
from fsaf_d2.prediction.shots import MAX_RATE, MIN_RATE, Failure, count_frames, read_video

pytestmark = pytest.mark.usefixtures("soon", "little_memory")
DETECTOR = SimpleNamespace(
    max_pixels=2**27, prepare=lambda image, channels: SimpleNamespace(image=image)
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, bytes]:
    """Videos of 12 frames."""
    folder = tmp_path_factory.mktemp("clips")
    codecs = {"mp4": "mp4v", "avi": "MJPG", "mkv": "mp4v"}
    return {
        ending: write_video(folder / f"a.{ending}", 12, (24, 32), codec=codec).read_bytes()
        for ending, codec in codecs.items()
    }


def read(file, content: bytes) -> tuple[list, str]:
    """The shots of a video of these bytes, and what is said of it."""
    file.write_bytes(content)
    assert count_frames(str(file)) < 10**9
    *shots, last = read_video(DETECTOR, InputFile(str(file), "clip"))
    if not isinstance(last, Failure):
        return [*shots, last], ""
    assert "\n" not in last.reason
    return shots, last.reason


def patched(content: bytes, name: bytes, place: int, layout: str, *values: int) -> bytes:
    """Numbers written over, so many bytes behind a part's name."""
    result = bytearray(content)
    struct.pack_into(layout, result, content.index(name) + 4 + place, *values)
    return bytes(result)


@pytest.mark.parametrize("ending", ["mp4", "avi", "mkv"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.8])
def test_truncated_videos_are_named(tmp_path, clips, ending, share):
    whole = clips[ending]
    shots, reason = read(tmp_path / f"clip.{ending}", whole[: int(share * len(whole))])
    assert len(shots) < 12 and ("it cannot be opened" in reason or "it breaks off" in reason)


# Where, in which layout, and what; how many frames are read.
LIES = {
    "mp4's time scale": ("mp4", b"mvhd", 12, ">II", (0, 0), 12),
    "mp4's duration": ("mp4", b"mvhd", 12, ">II", (1, 2**32 - 1), 12),
    "mp4's rate of a track": ("mp4", b"mdhd", 12, ">II", (2**31 - 1, 1), 12),
    "mp4's time of a frame": ("mp4", b"stts", 12, ">I", (0,), 12),
    "mp4's number of frames of a time": ("mp4", b"stts", 4, ">III", (1, 2**31 - 1, 1), 12),
    "mp4's table of times": ("mp4", b"stts", 4, ">I", (2**31 - 1,), 0),
    "mp4's number of sizes": ("mp4", b"stsz", 8, ">I", (2**31 - 1,), 0),
    "mp4's frames of a byte": ("mp4", b"stsz", 4, ">II", (1, 10**6), 0),
    "avi's time of a frame": ("avi", b"avih", 4, "<I", (0,), 12),
    "avi's number of frames": ("avi", b"avih", 20, "<I", (2**32 - 1,), 12),
    "avi's rate, none": ("avi", b"strh", 24, "<II", (0, 0), 12),
    "avi's rate": ("avi", b"strh", 24, "<II", (1, 2**32 - 1), 12),
    "avi's rate, nearly none": ("avi", b"strh", 24, "<II", (2**32 - 1, 1), 12),
    "avi's length": ("avi", b"strh", 36, "<I", (2**32 - 1,), 12),
    "avi's size": ("avi", b"strf", 8, "<II", (2**20, 2**20), 12),
}


@pytest.mark.parametrize("kind", LIES)
def test_what_a_video_says_of_itself_is_not_believed(tmp_path, clips, kind):
    ending, name, place, layout, values, count = LIES[kind]
    content = patched(clips[ending], name, place, layout, *values)
    shots, reason = read(tmp_path / f"clip.{ending}", content)
    assert len(shots) == count and bool(reason) == (not count)
    assert all(0 <= shot.seconds < math.inf for shot in shots)
    assert all(MIN_RATE <= shot.rate <= MAX_RATE for shot in shots)
    assert all(shot.size == (24, 32) for shot in shots)


@pytest.mark.parametrize("count", [0, 200, 5000])
def test_thousands_of_streams_are_refused(tmp_path, clips, count):
    avi = clips["avi"]
    start = avi.index(b"strl") - 8
    stream = avi[start : start + 8 + int.from_bytes(avi[start + 4 : start + 8], "little")]
    content = bytearray(avi[:start] + count * stream + avi[start:])
    for place in (4, 16):
        size = int.from_bytes(avi[place : place + 4], "little") + count * len(stream)
        struct.pack_into("<I", content, place, size)
    shots, reason = read(tmp_path / "clip.avi", bytes(content))
    assert len(shots) == (12 if count < 1000 else 0) and ("cannot be opened" in reason) == (
        not shots
    )


@pytest.mark.parametrize("size", [(24, 32), (3, 5), (700, 900)])
def test_frames_that_change_size_have_that_of_the_first(tmp_path, clips, size):
    avi, frame = clips["avi"], cv2.imencode(".jpg", photo(*size))[1].tobytes()
    place = avi.index(b"00dc", avi.index(b"movi"))
    end = place + 8 + int.from_bytes(avi[place + 4 : place + 8], "little")
    end += end % 2
    chunk = b"00dc" + struct.pack("<I", len(frame)) + frame + bytes(len(frame) % 2)
    shots, reason = read(tmp_path / "clip.avi", avi[:end] + chunk + avi[end:])
    assert len(shots) == 13 and not reason and {shot.size for shot in shots} == {(24, 32)}


STRANGE = {
    "jpg.mp4": lambda: cv2.imencode(".jpg", photo())[1].tobytes(),
    "png.ts": lambda: cv2.imencode(".png", photo())[1].tobytes() * 20,
    "text.mp4": lambda: b"hello\n" * 999,
    "zeros.avi": lambda: bytes(10**5),
    "sync.ts": lambda: (b"\x47" + bytes(187)) * 500,
    "riff.avi": lambda: b"RIFF\xff\xff\xff\xffAVI LIST\xff\xff\xff\xff" + b"LIST" * 999,
    "ebml.mkv": lambda: b"\x1a\x45\xdf\xa3" + b"\xff" * 999,
    "boxes.mp4": lambda: struct.pack(">I4s", 8, b"free") * 100_000,
    "zip.webm": lambda: b"PK\3\4" + bytes(99),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_has_the_name_of_a_video_alone_is_refused(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(STRANGE[name]())
    assert count_frames(str(file)) == 0
    (failure,) = read_video(DETECTOR, InputFile(str(file), "clip"))
    assert failure.reason == "it cannot be opened: it is broken, or no video of a known format."
