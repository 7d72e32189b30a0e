"""Data sets with random mistakes: no traceback, no hang, and no file or object lost in silence.

Some dozens are tried here; 10,000 by

    FUZZ_ROUNDS=2500 python -m pytest -q tests/security/test_random_sets.py
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from formats import WRITERS
from random_sets import make_set

from fsaf_d2.data.checking.check_source import check_source
from fsaf_d2.data.checking.fix import fix
from fsaf_d2.data.checking.output import as_text, error_text, fixed_text, loss_text, to_dict
from fsaf_d2.data.reading.sources import Source, SourceError, open_source

ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "6"))
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))
SECONDS = 20
UNREAD = ("unreadable annotation file", "unreadable image", "image with two annotation files")


@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_is_lost_in_silence(tmp_path, kind):
    root = tmp_path / "set"
    for seed in range(FIRST, FIRST + ROUNDS):
        what = make_set(root, kind, seed)
        try:
            with _limited(SECONDS):
                _try(root)
        except BaseException as error:
            error.add_note(what) if hasattr(error, "add_note") else None
            print(what)
            raise
        shutil.rmtree(root)


@contextlib.contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"it takes more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _try(root: Path) -> None:
    known: set[str] = set()
    is_refused = False
    for split in ("train", "val"):
        try:
            source = open_source(root, split)
        except SourceError as error:
            # Nothing of it is used, and the message names what is meant.
            assert str(root) in str(error) and str(error).endswith((".", "'", "dent"))
            is_refused = True
            continue
        _require_objects(source)
        known |= _known(source)
        check = check_source(source)
        as_text(to_dict(check))
        if check.num_errors:
            error_text(check, "It", "check_data.py")
        fixed = fix(check)
        loss_text(fixed, "x.json", is_allowed=False)
        fixed_text(fixed, "x.json", is_written=True)
        _require_losses(check, fixed)
    if not is_refused:
        there = {os.path.join(parent, x) for parent, _, files in os.walk(root) for x in files}
        assert there <= known, sorted(there - known)


def _known(source: Source) -> set[str]:
    """The files that were used, are named by a finding, or counted by a note."""
    names = [x.get("file_name") for x in source.data["images"] if isinstance(x, dict)]
    used = [os.path.join(source.image_root, x) for x in names if isinstance(x, str)]
    used += [*source.used, *source.left_out, source.annotation_file]
    used += [re.sub(r":\d+$|, object \d+$", "", x.file) for x in source.findings]
    if source.left_out:
        assert source.notes
    return {os.path.abspath(x) for x in used}


def _require_objects(source: Source) -> None:
    """Every line of a label file and every element is an object or a finding."""
    if source.format not in ("yolo", "voc"):
        return
    by_file: dict[str, int] = {}
    places = [x.file for x in source.findings if x.kind == "unreadable object"]
    # Two images that share labels, which is an error, have them both.
    for place in {*source.places.values(), *places}:
        file = re.sub(r":\d+$|, object \d+$", "", place)
        by_file[file] = by_file.get(file, 0) + 1
    assert len(source.places) == len(source.data["annotations"])
    for file, count in by_file.items():
        content = Path(file).read_bytes()
        if source.format == "voc":
            assert count == len(re.findall(rb"<object>", content.replace(b"\0", b"")))
        else:
            encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
            lines = re.split(r"\r\n|\r|\n", content.decode(encoding))
            assert count == len([line for line in lines if line.strip()])


def _require_losses(check: object, fixed: object) -> None:
    """What a mended file lacks is told."""
    if not fixed.changes:
        return
    for section, loss in zip(("images", "annotations"), fixed.losses):
        before, after = (x.source.data.get(section, []) for x in (check, fixed.check))
        kinds = ("duplicate image id", "duplicate file name", "duplicate box")
        doubles = sum(fixed.changes[kind] for kind in kinds)
        assert len(before) - len(after) <= loss.lost + doubles * (1 + len(before))
