"""What is written says what was found, and harms no program that reads it."""

import csv
import json
import math

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from predictions import MORE, photo
from pycocotools.coco import COCO

from fsaf_d2.prediction.detector import Prepared
from fsaf_d2.prediction.drawings import Crops, DrawnImages, folder_names
from fsaf_d2.prediction.output_tables import CsvTable, JsonTable, YoloFiles
from fsaf_d2.prediction.shots import MAX_RATE, MIN_RATE, Failure, Shot, Summary

SUMMARY = Summary(MORE["thresholds"])


def instances(boxes, scores, classes, levels, branches, size=(100, 200)) -> Instances:
    found = Instances(size)
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.tensor(scores, dtype=torch.float32)
    found.pred_classes = torch.tensor(classes, dtype=torch.int64)
    found.pred_levels = torch.tensor(levels, dtype=torch.int64)
    found.pred_branches = torch.tensor(branches, dtype=torch.int64)
    return found


def shot(file="in/a.jpg", stem="a", image=None, channels="BGR", **frame) -> Shot:
    image = photo(100, 200) if image is None else image
    return Shot(file, stem, Prepared(image, channels, torch.zeros(3, 9, 9)), **frame)


TWO = instances(
    [[20, 10, 60, 50], [100.5, 0, 200, 100]], [0.75, 0.5], [2, 0], [0, 3], [True, False]
)
NONE = instances([], [], [], [], [])


def written(output, *entries, summary=SUMMARY):
    for entry, found in entries:
        output.add(entry, found)
    output.finish(summary)


def test_json_is_a_data_set_and_a_list_of_results(detector, tmp_path):
    frame = shot("clip.mp4", "clip", frame=12, seconds=0.48, rate=25.0)
    summary = Summary(SUMMARY.least_scores, complete=True, failures=[Failure("x.jpg", "it is bad")])
    entries = [(shot(), TWO), (shot("in/b.jpg", "b"), NONE), (frame, TWO[:1])]
    written(JsonTable(tmp_path, detector), *entries, summary=summary)
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.json"]
    data = json.loads((tmp_path / "predictions.json").read_text())
    assert data["images"] == [
        {"id": 1, "file_name": "in/a.jpg", "height": 100, "width": 200},
        {"id": 2, "file_name": "in/b.jpg", "height": 100, "width": 200},
        {"id": 3, "file_name": "clip.mp4", "height": 100, "width": 200}
        | {"frame": 12, "seconds": 0.48},
    ]
    assert data["annotations"][0] == {
        **{"id": 1, "image_id": 1, "category_id": 20, "bbox": [20, 10, 40, 40], "area": 1600},
        **{"iscrowd": 0, "score": 0.75, "level": "p3", "branch": "point"},
    }
    assert data["annotations"][1]["bbox"] == [100.5, 0, 99.5, 100]
    assert [x["image_id"] for x in data["annotations"]] == [1, 1, 3]
    assert data["categories"][1] == {"id": 7, "name": "dog"}
    assert data["info"] == {
        "complete": True,
        "least_scores": SUMMARY.least_scores,
        "further_frames": {},
        "failed": [{"file": "x.jpg", "reason": "it is bad"}],
    }
    coco = COCO(str(tmp_path / "predictions.json"))
    assert len(coco.loadRes(data["annotations"]).getAnnIds(imgIds=[1])) == 2


def test_scores_and_boxes_keep_their_digits(detector, tmp_path):
    one = instances([[20.126, 10, 60.25, 50]], [0.123456], [2], [0], [True])
    written(JsonTable(tmp_path, detector), (shot(), one))
    written(CsvTable(tmp_path, detector), (shot(), one))
    (found,) = json.loads((tmp_path / "predictions.json").read_text())["annotations"]
    assert (found["score"], found["bbox"][0], found["bbox"][2]) == (0.12346, 20.126, 40.124)
    assert ",0.12346,20.13,10.00,60.25," in (tmp_path / "predictions.csv").read_text()


def test_json_without_detections(detector, tmp_path):
    written(JsonTable(tmp_path, detector), (shot(), NONE))
    data = json.loads((tmp_path / "predictions.json").read_text())
    assert data["annotations"] == [] and len(data["images"]) == 1
    assert data["info"]["complete"] is False


def test_csv_has_a_line_for_each_detection(detector, tmp_path):
    frame = shot("clip.mp4", "clip", frame=12, seconds=0.48, rate=25.0)
    written(CsvTable(tmp_path, detector), (shot(), TWO), (frame, TWO[:1]))
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines == [
        "file,class,score,x0,y0,x1,y1,level,branch,frame,seconds",
        "in/a.jpg,bird,0.75000,20.00,10.00,60.00,50.00,p3,point,,",
        "in/a.jpg,cat,0.50000,100.50,0.00,200.00,100.00,p6,anchor,,",
        "clip.mp4,bird,0.75000,20.00,10.00,60.00,50.00,p3,point,12,0.480",
    ]


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ('a "b", c.jpg', 'a "b", c.jpg'),
        ("two\nlines.jpg", "two\nlines.jpg"),
        ("=cmd|' /C calc'!A0.jpg", "./=cmd|' /C calc'!A0.jpg"),
        ("-1.jpg", "./-1.jpg"),
        ("@x.jpg", "./@x.jpg"),
        ("\rx.jpg", "./\rx.jpg"),
        ("\t=x.jpg", "./\t=x.jpg"),
        ("broken\udcff.jpg", "broken\\udcff.jpg"),
    ],
)
def test_no_file_name_breaks_a_table_or_is_run_by_it(detector, tmp_path, name, cell):
    written(CsvTable(tmp_path, detector), (shot(name), TWO))
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["file"] for row in table] == [cell, cell]
    assert [row["class"] for row in table] == ["bird", "cat"]
    written(JsonTable(tmp_path, detector), (shot(name), TWO))
    data = json.loads((tmp_path / "predictions.json").read_text())
    assert data["images"][0]["file_name"] == name


def test_no_class_name_is_run_by_a_table(detector, tmp_path, monkeypatch):
    monkeypatch.setattr(detector, "class_names", ["=1+1", "dog", "bird"])
    written(CsvTable(tmp_path, detector), (shot(), TWO[1:]))
    assert "in/a.jpg,'=1+1," in (tmp_path / "predictions.csv").read_text()


def test_yolo_has_shares_of_the_image(detector, tmp_path):
    frame = shot("x/clip.mp4", "x/clip", frame=12, seconds=0.48, rate=25.0)
    written(YoloFiles(tmp_path, detector), (shot(), TWO), (shot(stem="x/b"), NONE), (frame, TWO))
    # Centre (40, 30) of 200 x 100 pixels, sides 40 and 40; then (150.25, 50), 99.5 and 100.
    expected = "2 0.200000 0.300000 0.200000 0.400000 0.75000\n"
    expected += "0 0.751250 0.500000 0.497500 1.000000 0.50000\n"
    assert (tmp_path / "labels/a.txt").read_text() == expected
    assert (tmp_path / "labels/x/b.txt").read_text() == ""
    assert (tmp_path / "labels/x/clip.mp4/000012.txt").read_text() == expected
    assert (tmp_path / "classes.txt").read_text() == "cat\ndog\nbird\n"


@pytest.mark.parametrize("channels", ["BGR", "RGB"])
def test_crops_are_cut_out_at_their_place(detector, tmp_path, channels):
    image = np.zeros((100, 200, 3), np.uint8)
    image[10:50, 20:60] = (250, 120, 10) if channels == "BGR" else (10, 120, 250)
    found = instances(
        [[20, 10, 60, 50], [20, 10, 60, 50], [-5, -5, 30.5, 99], [205, 0, 220, 9], [0, 0, 9, 9]],
        [0.9, 0.8, 0.7, 0.6, 0.5],
        [2, 0, 2, 2, 1],
        [0] * 5,
        [True] * 5,
    )
    written(Crops(tmp_path, detector, [0, 2]), (shot(image=image, channels=channels), found))
    files = sorted(str(x.relative_to(tmp_path)) for x in tmp_path.rglob("*.jpg"))
    assert files == ["crops/bird/a_1.jpg", "crops/bird/a_2.jpg", "crops/cat/a_1.jpg"]
    crop = cv2.imread(str(tmp_path / "crops/bird/a_1.jpg"))
    assert crop.shape == (40, 40, 3)
    assert np.abs(crop.astype(int) - (250, 120, 10)).max() < 6
    assert cv2.imread(str(tmp_path / "crops/bird/a_2.jpg")).shape == (99, 31, 3)


def test_no_class_name_leads_out_of_the_folder():
    names = ["../../etc", "a/b", "a b", "A_B", "", "..", "C:\\x", "/", "ß 猫", "x" * 200, "nul\0l"]
    folders = folder_names(names)
    assert len({folder.casefold() for folder in folders}) == len(names)
    for folder in folders:
        assert folder and not set(folder) & set("/\\:\0 .") and len(folder.encode()) < 255
    assert folders[:3] == ["etc", "a_b", "a_b_2"] and folders[8] == "ß_猫"


@pytest.mark.parametrize("channels", ["BGR", "RGB"])
def test_images_are_drawn(detector, tmp_path, channels):
    image = np.full((100, 200, 3), 90, np.uint8)
    image[:, :, 0] = 200
    written(DrawnImages(tmp_path, detector), (shot(image=image, channels=channels), TWO))
    drawn = cv2.imread(str(tmp_path / "pictures/a.jpg")).astype(int)
    # Magnified three times. The middle of a box shows the image, its edge the class's colour.
    assert drawn.shape == (300, 600, 3)
    inside = (200, 90, 90) if channels == "BGR" else (90, 90, 200)
    assert np.abs(drawn[90, 120] - inside).max() < 9
    assert np.abs(drawn[50:130, 59:62] - (0x73, 0x9E, 0x00)).sum(axis=2).min() < 60


@pytest.mark.parametrize("size", [(100, 200), (101, 203)])
def test_videos_keep_their_frames_and_pace(detector, tmp_path, size, monkeypatch):
    monkeypatch.setattr(detector, "draw", lambda image, *_, **__: image)
    output = DrawnImages(tmp_path, detector)
    for stem in ("clip", "x/other"):
        for index in range(7):
            image = np.full((*size, 3), 30 * index, np.uint8)
            frame = shot(f"{stem}.avi", stem, image, frame=index, seconds=index / 5, rate=5.0)
            output.add(frame, NONE)
    output.add(shot(), NONE)
    output.finish(SUMMARY)
    for stem in ("clip", "x/other"):
        capture = cv2.VideoCapture(str(tmp_path / "pictures" / f"{stem}.mp4"))
        assert capture.get(cv2.CAP_PROP_FPS) == 5
        frames = []
        while (read := capture.read())[0]:
            frames.append(read[1])
        assert len(frames) == 7
        assert frames[0].shape == tuple(2 * math.ceil(side / 2) for side in size) + (3,)
        for index, frame in enumerate(frames):
            assert abs(frame.mean() - 30 * index) < 4
    assert (tmp_path / "pictures/a.jpg").exists()


@pytest.mark.parametrize("rate", [MIN_RATE, math.e, 30000 / 1001, MAX_RATE])
def test_videos_of_any_rate_are_written(detector, tmp_path, rate):
    output = DrawnImages(tmp_path, detector)
    for index in range(3):
        output.add(shot("a.avi", "a", frame=index, seconds=index / rate, rate=rate), NONE)
    output.finish(SUMMARY)
    capture = cv2.VideoCapture(str(tmp_path / "pictures" / "a.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(rate, rel=0.01)


def test_a_video_that_cannot_be_written_is_named(detector, tmp_path):
    output = DrawnImages(tmp_path, detector)
    (tmp_path / "pictures" / "clip.mp4").mkdir(parents=True)
    with pytest.raises(OSError, match=r"clip\.mp4' cannot be written"):
        output.add(shot("clip.mp4", "clip", frame=0, seconds=0.0, rate=5.0), NONE)


def test_labels_tell_level_and_branch_on_request(detector, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        "fsaf_d2.prediction.detector.draw_detections",
        lambda image, *_, level_names, branch_names, **__: (
            told.append((list(level_names), list(branch_names))) or image
        ),
    )
    for show in ((), ("level",), ("level", "branch")):
        written(DrawnImages(tmp_path, detector, show), (shot(), TWO))
    levels, branches = detector.level_names, detector.branch_names
    assert told == [([], []), (levels, []), (levels, branches)]


def test_suppression_over_classes_keeps_the_surest_that_counts(detector, monkeypatch):
    boxes = [[0, 0, 100, 100], [2, 0, 100, 100], [0, 0, 100, 100], [300, 0, 400, 100]]
    found = instances(boxes, [0.9, 0.8, 0.7, 0.6], [0, 1, 2, 1], [0] * 4, [False] * 4)
    monkeypatch.setattr(detector, "thresholds", torch.tensor([0.95, 0.5, 0.5]))
    assert len(detector.choose(found, 0)) == 4
    monkeypatch.setattr(detector, "agnostic_nms", True)
    assert detector.choose(found, 0).scores.tolist() == pytest.approx([0.9, 0.6])
    # What does not reach the score of its class suppresses nothing.
    assert detector.choose(found).scores.tolist() == pytest.approx([0.8, 0.6])
    monkeypatch.setattr(detector, "nms_thresh", 0.99)
    assert detector.choose(found).scores.tolist() == pytest.approx([0.8, 0.7, 0.6])
