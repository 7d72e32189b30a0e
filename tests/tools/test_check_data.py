"""tools/check_data.py: what it says, its exit code, and what --fix makes, for each kind of flaw."""

import json
import os
import re

import pytest
from broken_data import BREAKS, sound_data, write_images, write_source
from PIL import Image

from fsaf_d2.commands import check_command as check_data
from fsaf_d2.data.checking.findings import KINDS
from fsaf_d2.data.checking.images import read_image_file
from fsaf_d2.data.reading.image_folder import ImageFolder
from fsaf_d2.data.reading.image_headers import image_size


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Sound data with images, and no histograms, which take most of the time."""
    monkeypatch.setattr(check_data, "plot_statistics", lambda *args, **kwargs: None)
    write_images(tmp_path / "images", sound_data())
    return tmp_path


def run(folder, data, *options):
    """Exit code and report of a check."""
    source = write_source(folder, data)
    code = check_data.main([source.path, "--json", str(folder / "report.json"), *options])
    return code, json.loads((folder / "report.json").read_text())


def test_sound_data(folder, capsys):
    code, report = run(folder, sound_data())
    assert code == 0 and report["findings"] == {}
    assert "Nothing is wrong." in capsys.readouterr().out


@pytest.mark.parametrize("name", BREAKS)
def test_each_flaw_is_found(folder, capsys, name):
    case, data = BREAKS[name], sound_data()
    case.apply(data, folder / "images")
    code, report = run(folder, data)
    found = report["findings"]
    assert set(found) - case.others == {case.kind}
    assert found[case.kind]["severity"] == case.severity == KINDS[case.kind][0]
    first = found[case.kind]["first"][0]
    assert re.search(case.value, first["value"]) and first["remedy"] == KINDS[case.kind][1]
    assert code == (case.severity == "error")
    told = capsys.readouterr().out
    assert f"{case.severity}: {case.kind} ({found[case.kind]['count']})" in told
    assert first["value"][:300] in told and str(first["annotation_id"] or "") in told


def rounded(data):
    """Data in which boxes are compared to a thousandth of a pixel."""
    for annotation in data["annotations"]:
        annotation["bbox"] = pytest.approx(annotation["bbox"], abs=2e-3)
    return data


@pytest.mark.parametrize("name", [name for name in BREAKS if BREAKS[name].mended])
def test_what_is_mended_passes_with_nothing_else_changed(folder, name):
    case, data = BREAKS[name], {**sound_data(), "info": {"year": 2026}}
    case.apply(data, folder / "images")
    out = folder / "mended.json"
    code, _ = run(folder, data, "--fix", str(out), "--allow-loss")
    assert code == 0
    # The file that was checked is as it was.
    assert (folder / "own.json").read_text() == json.dumps(data)
    mended = json.loads(out.read_text())
    expected = {**case.mended(sound_data()), "info": {"year": 2026}}
    assert mended == rounded(expected)
    assert check_data.main([f"{out}:{folder / 'images'}", "--json", str(folder / "r.json")]) == 0
    assert json.loads((folder / "r.json").read_text())["findings"] == {}


@pytest.mark.parametrize(
    "name", [name for name, x in BREAKS.items() if not x.mended and x.severity == "error"]
)
def test_what_is_not_certain_stays(folder, capsys, name):
    case, data = BREAKS[name], sound_data()
    case.apply(data, folder / "images")
    out = folder / "mended.json"
    code, _ = run(folder, data, "--fix", str(out), "--allow-loss")
    assert code == 1
    outcome = capsys.readouterr().out.rpartition("Errors are left: ")[2]
    assert f" x {case.kind}" in outcome


@pytest.fixture
def two_sets(folder):
    """Training and validation data with other images."""
    for image in (val := sound_data())["images"]:
        image["file_name"] = f"v{image['file_name']}"
    write_images(folder / "images", val, seed=1)
    return folder, write_source(folder, val, "val.json")


def leaks(folder, val, *options):
    code, report = run(folder, sound_data(), "--val", val.path, *options)
    return code, {kind: x["first"] for kind, x in report["findings"].items()}


def test_no_leak(two_sets):
    assert leaks(*two_sets) == (0, {})


def test_the_same_file_in_training_and_validation(two_sets):
    folder, val = two_sets
    (folder / "images/vp3.png").write_bytes((folder / "images/p1.png").read_bytes())
    code, found = leaks(folder, val, "--fix", str(folder / "mended.json"), "--allow-loss")
    assert code == 0 and list(found) == ["leak"]
    assert found["leak"][0]["file"] == "p1.png" and "vp3.png" in found["leak"][0]["value"]
    assert leaks(folder, val)[0] == 1
    mended = json.loads((folder / "mended.json").read_text())
    assert [image["id"] for image in mended["images"]] == [1, 3, 4]
    assert {x["image_id"] for x in mended["annotations"]} == {1, 3, 4}


def test_files_of_equal_length_are_not_the_same(two_sets):
    folder, val = two_sets
    content = bytearray((folder / "images/p1.png").read_bytes())
    content[-20] ^= 1
    (folder / "images/vp3.png").write_bytes(content)
    assert "leak" not in leaks(folder, val)[1]


def test_the_same_name_and_boxes_with_other_contents(two_sets):
    folder, val = two_sets
    (folder / "images/val").mkdir()
    for i in range(4):
        (folder / f"images/vp{i}.png").rename(folder / f"images/val/p{i}.png")
        val.data["images"][i]["file_name"] = f"val/p{i}.png"
    # Many sets number their images from 1: other boxes are of other images.
    for index in (0, 4, 8):
        val.data["annotations"][index]["bbox"][0] += 5
    code, found = leaks(folder, write_source(folder, val.data, "val.json"))
    assert code == 0 and list(found) == ["same name in validation"]
    assert [x["file"] for x in found["same name in validation"]] == ["p3.png"]
    # So is another number of boxes.
    val.data["annotations"].pop()
    assert leaks(folder, write_source(folder, val.data, "val.json")) == (0, {})


@pytest.mark.parametrize("name", ["own.json", "copy.json"])
def test_one_data_set_for_both(folder, name):
    val = write_source(folder, sound_data(), name)
    assert leaks(folder, val)[0] == 0
    assert list(leaks(folder, val)[1]) == ["same data for validation"]


@pytest.fixture
def yolo(folder):
    """Both splits of one YAML file, of which the images differ, with the text that checks give."""
    for split, seed in (("train", 2), ("valid", 3)):
        data = sound_data()
        write_images(folder / "set" / split / "images", data, seed=seed)
        for i, image in enumerate(data["images"]):
            label = folder / "set" / split / "labels" / image["file_name"].replace(".png", ".txt")
            label.parent.mkdir(exist_ok=True)
            label.write_text(f"0 0.5 0.{3 + i} 0.3 0.{1 + seed}\n")
    text = "train: train/images\nval: valid/images\nnames: [a]\n"
    (folder / "set/data.yaml").write_text(text)
    return folder / "set"


@pytest.mark.parametrize("given", ["", "data.yaml"])
def test_splits_of_one_yaml_file_are_two_data_sets(yolo, capsys, given):
    path = str(yolo / given)
    assert check_data.main([path, "--val", path]) == 0
    assert "same data" not in capsys.readouterr().out
    leaking = (yolo / "train/images/p2.png").read_bytes()
    (yolo / "valid/images/p0.png").write_bytes(leaking)
    assert check_data.main([path, "--val", path]) == 1
    told = capsys.readouterr().out
    assert "error: leak (1)" in told and "p2.png" in told and "same data" not in told


def test_one_split_is_the_same_as_itself(yolo, capsys):
    path = str(yolo)
    assert check_data.main([path, "--split", "val", "--val", path]) == 0
    assert "same data for validation" in capsys.readouterr().out


def test_a_sound_set_takes_a_screen(two_sets, capsys):
    folder, val = two_sets
    (folder / "config.yaml").write_text("MODEL: {META_ARCHITECTURE: FSAF}\n")
    options = ("--val", val.path, "--config-file", str(folder / "config.yaml"))
    run(folder, sound_data(), *options)
    assert capsys.readouterr().out.count("\n") <= 32
    names = [f"{'long ' * 30}{i}" for i in range(40)]
    data = sound_data()
    for x in (data, val.data):
        x["categories"] += [{"id": 10 + i, "name": name} for i, name in enumerate(names)]
    write_source(folder, val.data, "val.json")
    run(folder, data, *options)
    told = capsys.readouterr().out
    assert names[0] in told and told.count("\n") <= 46


def test_classes_that_only_validation_has_are_named(two_sets, capsys):
    folder, val = two_sets
    val.data["categories"][0]["name"] = "another"
    val = write_source(folder, val.data, "val.json")
    code, report = run(folder, sound_data(), "--val", val.path)
    words = f"'{val.path}' has a class that the training data lack: 'another'"
    assert code == 1 and f"error: {words}" in capsys.readouterr().out
    assert report["validation"]["unmatched_classes"].startswith(words)


def test_validation_data_are_checked_too(two_sets, capsys):
    folder, val = two_sets
    val.data["annotations"][4]["bbox"][2] = 0
    val = write_source(folder, val.data, "val.json")
    code, report = run(folder, sound_data(), "--val", val.path)
    assert code == 1 and report["findings"] == {}
    assert list(report["validation"]["findings"]) == ["zero-sized box"]
    # Mending the training data does not mend these.
    assert run(folder, sound_data(), "--val", val.path, "--fix", str(folder / "m.json"))[0] == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "but no file"),
        ("{", "is not JSON"),
        ("[]", "not in COCO format"),
        ('{"images": []}', "it has no list 'annotations'"),
    ],
)
def test_what_cannot_be_read_takes_one_sentence(folder, capsys, content, words):
    if content:
        (folder / "own.json").write_text(content)
    assert check_data.main([f"{folder}/own.json:{folder}/images"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("check_data: error: ") and words in told and told.count("\n") == 1


def test_a_config_that_is_missing(folder, capsys):
    source = write_source(folder, sound_data())
    assert check_data.main([source.path, "--config-file", "nowhere.yaml"]) == 2
    assert "nowhere.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["own.json", "link.json", "images"])
def test_fix_never_writes_over_what_is_there(folder, capsys, name):
    source = write_source(folder, sound_data())
    (folder / "link.json").symlink_to(folder / "own.json")
    before = (folder / "own.json").read_bytes()
    assert check_data.main([source.path, "--fix", str(folder / name)]) == 2
    assert "--fix" in capsys.readouterr().err and (folder / "own.json").read_bytes() == before


def test_decoding_finds_what_headers_do_not_say(folder):
    file = folder / "images/p1.png"
    content = bytearray(file.read_bytes())
    content[5000:5100] = bytes(100)
    file.write_bytes(content)
    assert run(folder, sound_data())[0] == 0
    code, report = run(folder, sound_data(), "--decode")
    assert code == 1 and list(report["findings"]) == ["damaged image"]


def test_config_gives_the_limit_of_pixels_and_what_is_reached(folder, capsys):
    config = folder / "config.yaml"
    text = "INPUT: {MAX_PIXELS: 3000, MIN_SIZE_TEST: 48}\nMODEL: {META_ARCHITECTURE: FSAF}\n"
    config.write_text(text)
    code, report = run(folder, sound_data(), "--config-file", str(config))
    assert code == 1 and list(report["findings"]) == ["huge image"]
    groups = report["coverage"]["groups"]
    assert groups["all"]["objects"] == groups["small"]["objects"] == 12
    # detectron2's own anchors begin at 32 pixels, the boxes have 15 at the most.
    assert groups["all"]["no_anchor"] == 12 and groups["all"]["least_locations"] == 1
    assert "12 (100.0 %)" in capsys.readouterr().out


def test_only_the_first_twenty_are_shown_and_all_are_in_the_file(folder, capsys):
    data = sound_data()
    data["annotations"] += [{**data["annotations"][4], "id": 100 + i} for i in range(30)]
    _, report = run(folder, data)
    assert len(report["findings"]["duplicate box"]["first"]) == 30
    told = capsys.readouterr().out
    assert "duplicate box (30)" in told and " 100: " in told and "and 29 more" in told
    run(folder, data, "-v")
    told = capsys.readouterr().out
    assert "the first 20 of 30" in told and " 119 " in told and " 120 " not in told


def test_histograms_are_written(tmp_path, capsys, monkeypatch):
    write_images(tmp_path / "images", sound_data())
    source = write_source(tmp_path, sound_data(), "train.json")
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir())
    assert check_data.main([source.path]) == 0
    assert sorted(os.listdir()) == before
    assert check_data.main([source.path, "--json", str(tmp_path / "out/f.json")]) == 0
    assert (tmp_path / "out/data_train.png").read_bytes().startswith(b"\x89PNG")
    options = ["--json", str(tmp_path / "report/f.json"), "--plot", str(tmp_path / "plot.png")]
    assert check_data.main([source.path, *options]) == 0
    assert (tmp_path / "plot.png").is_file()
    assert "Histograms: " in capsys.readouterr().out


# -- what --fix leaves out ----------------------------------------------------------------------


def missing_images(folder, count: int, total: int = 20) -> dict:
    """Data of which so many images are not there."""
    data = sound_data(total)
    write_images(folder / "images", data)
    for image in data["images"][:count]:
        (folder / "images" / image["file_name"]).unlink()
    return data


@pytest.mark.parametrize(("count", "is_written"), [(1, True), (2, True), (3, False), (20, False)])
def test_more_than_a_tenth_is_not_left_out_unasked(folder, capsys, count, is_written):
    data, out = missing_images(folder, count), folder / "mended.json"
    code, _ = run(folder, data, "--fix", str(out))
    told = capsys.readouterr().out
    words = f"out {count} of 20 images and {3 * count} of 60 boxes"
    assert words in told.splitlines()[0] and out.exists() == is_written
    assert code == (not is_written) and ("passes" in told) == is_written
    code, _ = run(folder, data, "--fix", str(out), "--allow-loss")
    assert words in capsys.readouterr().out.splitlines()[0]
    # Without any image nothing is left that could be wrong.
    assert out.exists() and code == 0
    assert len(json.loads(out.read_text())["images"]) == 20 - count


def test_boxes_that_are_lost_count_too(folder, capsys):
    data = sound_data()
    for annotation in data["annotations"][::6]:
        annotation["bbox"][2] = 0
    code, _ = run(folder, data, "--fix", str(folder / "mended.json"))
    assert code == 1 and not (folder / "mended.json").exists()
    assert "2 of 12 boxes, more than a tenth" in capsys.readouterr().out.splitlines()[0]


def test_what_was_there_twice_is_not_lost(folder, capsys):
    data = sound_data()
    data["annotations"] += [{**x, "id": 100 + x["id"]} for x in data["annotations"]]
    assert run(folder, data, "--fix", str(folder / "mended.json"))[0] == 0
    assert "leaves out" not in capsys.readouterr().out
    assert len(json.loads((folder / "mended.json").read_text())["annotations"]) == 12


def test_images_that_the_reader_could_not_read_are_lost(folder, capsys):
    for name in ("p0", "p1", "p2"):
        label = folder / f"labels/{name}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text("0 0.5 0.5 0.5 0.5\n")
    for name in ("p1", "p2", "p3"):
        (folder / f"images/{name}.png").write_bytes(b"")
    (folder / "classes.txt").write_text("a\n")
    assert check_data.main([str(folder), "--fix", str(folder / "m.json")]) == 1
    assert "3 of 4 images" in capsys.readouterr().out.splitlines()[0]
    assert not (folder / "m.json").exists()


@pytest.mark.parametrize("change", [{"category_id": 2}, {"iscrowd": 1}, {"image_id": 2}])
def test_the_same_box_of_another_class_or_as_a_crowd_is_no_double(folder, change):
    data = sound_data()
    data["annotations"].append({**data["annotations"][0], "id": 50, **change})
    code, report = run(folder, data, "--fix", str(folder / "mended.json"))
    assert code == 0 and report["findings"] == {}
    assert json.loads((folder / "mended.json").read_text()) == data


def test_an_image_with_crowds_alone_stays(folder):
    data = sound_data()
    for annotation in data["annotations"][3:6]:
        annotation["iscrowd"] = 1
    del data["annotations"][0]["area"]
    run(folder, data, "--fix", str(folder / "mended.json"))
    mended = json.loads((folder / "mended.json").read_text())
    assert len(mended["images"]) == 4 and len(mended["annotations"]) == 12


def test_an_image_that_loses_its_objects_is_left_out_though_a_crowd_stays(folder):
    data = sound_data(20)
    write_images(folder / "images", data)
    *objects, crowd = [x for x in data["annotations"] if x["image_id"] == 2]
    crowd["iscrowd"] = 1
    for annotation in objects:
        annotation["bbox"][2] = 0
    run(folder, data, "--fix", str(folder / "mended.json"))
    mended = json.loads((folder / "mended.json").read_text())
    assert 2 not in {x["id"] for x in mended["images"]} and len(mended["images"]) == 19
    assert 2 not in {x["image_id"] for x in mended["annotations"]}


@pytest.mark.parametrize("change", [lambda x: f"images\\{x}", str.upper, lambda x: f"./a/{x}"])
def test_near_names_are_told_and_written(folder, capsys, change):
    data = sound_data()
    for image in data["images"]:
        image["file_name"] = change(image["file_name"])
    code, report = run(folder, data, "--fix", str(folder / "mended.json"))
    found = report["findings"]["missing image"]["first"]
    assert code == 0 and "'p0.png' lies in" in found[0]["value"]
    assert json.loads((folder / "mended.json").read_text()) == sound_data()


@pytest.mark.parametrize("number", [float, lambda x: x])
def test_whole_numbers_with_a_point(folder, number):
    data = sound_data()
    for image in data["images"]:
        image.update(width=number(image["width"]), height=number(image["height"]))
    for annotation in data["annotations"]:
        annotation.update({key: number(annotation[key]) for key in ("id", "image_id")})
    code, report = run(folder, data)
    assert code == 0 and report["findings"] == {} and report["statistics"]["boxes"] == 12


def test_a_size_that_is_no_whole_number_is_shown(folder):
    data = sound_data()
    data["images"][1]["width"] = 64.5
    _, report = run(folder, data)
    assert (
        "above 0 in whole pixels: 64.5"
        in report["findings"]["image size missing"]["first"][0]["value"]
    )


def test_the_config_says_what_is_too_thin(folder):
    data = sound_data()
    Image.new("RGB", (1, 400)).save(folder / "images/p1.png")
    data["images"][1].update(width=1, height=400)
    data["annotations"] = [x for x in data["annotations"] if x["image_id"] != 2]
    assert list(run(folder, data)[1]["findings"]) == ["thin image"]
    (folder / "config.yaml").write_text("INPUT: {MAX_SIZE_TRAIN: 128}\n")
    _, report = run(folder, data, "--config-file", str(folder / "config.yaml"))
    assert list(report["findings"]) == ["image too thin"]


def test_small_images_are_not_thin(folder):
    data = sound_data()
    Image.new("RGB", (3, 2)).save(folder / "images/p1.png")
    data["images"][1].update(width=3, height=2)
    data["annotations"] = [x for x in data["annotations"] if x["image_id"] != 2]
    assert run(folder, data)[1]["findings"] == {}


@pytest.mark.parametrize("turn", list(range(1, 9)))
def test_exif_turns_swap_the_sides_from_5_on(folder, turn):
    exif = Image.Exif()
    exif[274] = turn
    Image.new("RGB", (30, 20), "gray").save(folder / "images/p1.png", "JPEG", exif=exif)
    expected = (20, 30) if turn >= 5 else (30, 20)
    assert read_image_file(str(folder / "images/p1.png")).size == expected
    assert image_size(ImageFolder(str(folder / "images")), "p1.png") == expected
    data = sound_data()
    data["images"][1].update(width=30, height=20)
    data["annotations"] = [x for x in data["annotations"] if x["image_id"] != 2]
    wanted = {} if turn == 1 else {"EXIF-rotated image"}
    assert run(folder, data)[1]["findings"].keys() == (
        {"size before EXIF rotation"} if turn >= 5 else wanted or set()
    )


def test_a_file_of_another_ending_or_folder_is_told_and_not_taken(folder):
    data = sound_data(20)
    write_images(folder / "images", data)
    data["images"][0]["file_name"] = "p0.jpg"
    (folder / "images/day2").mkdir()
    (folder / "images/p1.png").rename(folder / "images/day2/p1.png")
    data["images"][1]["file_name"] = "day1/p1.png"
    _, report = run(folder, data, "--fix", str(folder / "mended.json"))
    first, second = report["findings"]["missing image"]["first"]
    assert "'p0.png' lies in" in first["value"] and "'day2/p1.png' lies in" in second["value"]
    mended = json.loads((folder / "mended.json").read_text())
    assert [x["id"] for x in mended["images"]] == list(range(3, 21))
