"""What leaves the programs: no terminal, log or table is in the way of a name."""

import csv
import io
import json
import logging
import re
import sys

import numpy as np
import pytest
from detectron2.utils.events import EventStorage, JSONWriter, TensorboardXWriter
from formats import write_image
from models import ROOT

from fsaf_d2.commands import check_command as check_data
from fsaf_d2.evaluation import write_report
from fsaf_d2.texts import is_class_name, open_table, show_whatever_is_said, write_rows, write_text
from fsaf_d2.visualization.detections import draw_caption, draw_truth

STARTS = ["=1+1", "+cmd", "-cmd", "@SUM(1)", "\tx", "\r=1", "\n=1"]


@pytest.mark.parametrize("text", STARTS)
def test_no_cell_of_a_table_is_a_formula(tmp_path, text):
    with open_table(tmp_path / "t.csv") as stream:
        write_rows(stream, [["name", "x"], [text, -1.5], ["a-b", "-2.50"]])
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["name", "x"], [f"'{text}", "-1.5"], ["a-b", "-2.50"]]


def test_names_that_are_no_text_can_be_written(tmp_path):
    with open_table(tmp_path / "t.csv") as stream:
        write_rows(stream, [["caf\udce9"]])
    write_text(tmp_path / "t.txt", "caf\udce9 ü")
    assert (tmp_path / "t.csv").read_text(encoding="utf-8") == "caf\\udce9\n"
    assert (tmp_path / "t.txt").read_text(encoding="utf-8") == "caf\\udce9 ü"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_outputs_and_logs_show_what_they_can(monkeypatch, encoding):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(3)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    logger = logging.getLogger("fsaf_d2.test_texts")
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(streams[2])])
    show_whatever_is_said()
    for stream in streams:
        stream.write("螺 \udce9")
        stream.flush()
        told = stream.buffer.getvalue().decode(encoding)
        assert told == ("螺 \\udce9" if encoding == "utf-8" else "\\u87ba \\udce9")


PROGRAMS = sorted(
    x for x in ROOT.glob("tools/*.py") if x.stem not in ("install_detectron2", "soak")
)


@pytest.mark.parametrize("program", [*PROGRAMS, ROOT / "train_net.py"], ids=lambda x: x.stem)
def test_every_program_begins_so(program):
    """Itself, or in the module that does its work."""
    text = program.read_text(encoding="utf-8")
    for module in re.findall(r"from (fsaf_d2\.\w+\.\w+_command) import", text):
        text += (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    assert "show_whatever_is_said()" in text


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_class_that_the_terminal_cannot_show(tmp_path, monkeypatch, encoding):
    write_image(tmp_path / "images/照片.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/照片.txt").write_text("0 0.5 0.5 0.5 0.5\n", encoding="utf-8")
    (tmp_path / "classes.txt").write_text("螺栓\n", encoding="utf-8-sig")
    monkeypatch.setattr(check_data, "plot_statistics", lambda *args, **kwargs: None)
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", output)
    assert check_data.main([str(tmp_path), "--json", str(tmp_path / "report.json")]) == 0
    output.flush()
    assert b"\\u87ba\\u6813" in output.buffer.getvalue()
    assert json.loads((tmp_path / "report.json").read_text())["statistics"]["classes"] == {
        "螺栓": 1
    }


def test_report_and_checks_of_names_that_are_no_text(tmp_path):
    found = {"b\udcfc.png": {"severity": "error", "count": 1, "first": []}}
    (tmp_path / "data").mkdir()
    (tmp_path / "data/check_own.json").write_text(json.dumps({"findings": found}))
    (tmp_path / "config.yaml").write_text("SEED: 1\n")
    assert "b\\udcfc.png" in write_report(tmp_path).read_text(encoding="utf-8")


def test_nothing_that_is_no_letter_is_drawn(tmp_path):
    """Matplotlib ends in an error of its own over a name that is no text."""
    write_image(tmp_path / "in/images/a.png")
    (tmp_path / "in/labels").mkdir()
    (tmp_path / "in/labels/a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "in/classes.txt").write_text("cat\x1b[2J\n")
    folder = (tmp_path / "in").rename(tmp_path / "caf\udce9")
    assert check_data.main([str(folder), "--plot", str(tmp_path / "plot.png")]) == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert draw_caption("caf\udce9", 200).shape[1] == 200


NAMES = {
    "no text": "caf\udce9",
    "long": "x" * 65_536,
    "many words": "a b\n" * 16_384,
    "formulas": "$\\frac{$",
    "to the left": "\u202egnp.exe",
    "a page": "<script>alert(1)</script>",
}


@pytest.mark.parametrize("kind", NAMES)
def test_all_names_can_be_drawn(kind):
    box, one = np.array([[1, 1, 40, 40.0]]), np.zeros((60, 400, 3), np.uint8)
    found = draw_truth(one, box, [0], [NAMES[kind]])
    assert found.shape == one.shape and (found != draw_truth(one, box, [0], [""])).any()
    assert draw_caption(NAMES[kind], 200).shape[1] == 200


def test_of_a_long_label_both_ends_are_drawn():
    box, one = np.array([[1, 1, 40, 40.0]]), np.zeros((60, 900, 3), np.uint8)
    labels = [f"{'x' * 9999} 0.83", f"{'x' * 9999} 0.12", f"y{'x' * 9999} 0.83"]
    first, *others = (draw_truth(one, box, [0], [label]) for label in labels)
    assert all((first != other).any() for other in others)


def test_a_page_shows_names_and_runs_none(tmp_path):
    findings = {name: {"severity": "error", "count": 1, "first": []} for name in NAMES.values()}
    (tmp_path / "data").mkdir()
    (tmp_path / "data/check_own.json").write_text(json.dumps({"findings": findings}))
    (tmp_path / "config.yaml").write_text("SEED: 1\n")
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize("kind", [x for x in NAMES if is_class_name(NAMES[x])])
def test_names_in_the_records_of_a_training(tmp_path, kind):
    """What TensorBoard and metrics.json are told of a class."""
    tag = f"bbox/AP-{NAMES[kind]}"
    with EventStorage() as storage:
        storage.put_scalar(tag, 1.0)
        writers = [JSONWriter(str(tmp_path / "metrics.json")), TensorboardXWriter(str(tmp_path))]
        for writer in writers:
            writer.write()
            writer.close()
    assert json.loads((tmp_path / "metrics.json").read_text())[tag] == 1
