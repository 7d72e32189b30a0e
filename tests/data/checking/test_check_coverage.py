"""Reach of a config's anchors over a data set."""

import pytest
from broken_data import sound_data, write_source
from models import ROOT

from fsaf_d2 import load_config
from fsaf_d2.data.checking.check_coverage import coverage
from fsaf_d2.data.checking.check_source import check_source
from fsaf_d2.data.checking.output import coverage_text


def check(folder, boxes, size=(640, 320)):
    """One image with boxes."""
    data = sound_data(1)
    data["images"][0].update(width=size[0], height=size[1])
    data["annotations"] = [
        {**data["annotations"][0], "id": i + 1, "bbox": box, "area": box[2] * box[3]}
        for i, box in enumerate(boxes)
    ]
    return check_source(write_source(folder, data), read_images=False)


def config(*overrides):
    return load_config(ROOT / "configs/Base-FSAF.yaml", list(overrides))


def test_objects_are_compared_at_the_size_that_a_test_has(tmp_path):
    # 16 x 16 pixels: a quarter of the smallest anchor, of 32 pixels.
    sound = check(tmp_path, [[128, 128, 16, 16]])
    same = config("INPUT.MIN_SIZE_TEST", "320", "INPUT.MAX_SIZE_TEST", "2000")
    found = coverage(sound, same)["groups"]
    assert found["all"]["no_anchor"] == found["small"]["no_anchor"] == 1
    # Its centre (136, 136) is half a cell from the nearest anchors': at least the IoU of a
    # smaller square within a larger one.
    assert found["all"]["mean_best_iou"] == pytest.approx(256 / 1024)
    # Twice as large it is an anchor of its own size; it stays a small object of the file.
    twice = config("INPUT.MIN_SIZE_TEST", "640", "INPUT.MAX_SIZE_TEST", "2000")
    assert coverage(sound, twice)["groups"]["small"]["no_anchor"] == 0
    # The long side may be 640: then the image stays as it is.
    limited = config("INPUT.MIN_SIZE_TEST", "640", "INPUT.MAX_SIZE_TEST", "640")
    assert coverage(sound, limited)["groups"]["all"]["no_anchor"] == 1
    assert coverage(sound, config("INPUT.MIN_SIZE_TEST", "0"))["groups"]["all"]["no_anchor"] == 1


def test_the_advice_names_the_side_at_which_most_are_reached(tmp_path):
    # Half a stride off at the most, the smallest anchor needs sides of 23 pixels and more.
    boxes = [[32 * i, 32 * j, 12, 12] for i in range(9) for j in range(9)]
    sound = check(tmp_path, boxes)
    cfg = config("INPUT.MIN_SIZE_TEST", "320", "INPUT.MAX_SIZE_TEST", "640")
    found = coverage(sound, cfg)
    assert [x["min_size_test"] for x in found["sides"]] == [480, 640, 960]
    reached = [x["no_anchor"]["small"] for x in found["sides"]]
    assert reached[-1] == 0 < reached[0] == found["groups"]["small"]["no_anchor"] == 81
    words = "100 % of the small objects are out of reach at 320 px; at "
    assert found["advice"].startswith(words) and "INPUT.MAX_SIZE_TEST" in found["advice"]
    assert coverage_text(found).splitlines()[-1] == found["advice"]
    # What it says comes true.
    settings = found["advice"].partition(" %: ")[2].split(" ")[:4]
    assert settings[0] == "INPUT.MIN_SIZE_TEST"
    larger = coverage(sound, config(*settings))
    assert "nothing is to be changed" in larger["advice"]
    chosen = [x for x in found["sides"] if str(x["min_size_test"]) == settings[1]]
    assert larger["groups"]["small"]["no_anchor"] == chosen[0]["no_anchor"]["small"]


def test_long_objects_need_anchors_of_their_shape(tmp_path):
    sound = check(tmp_path, [[10, 8 + 16 * i, 400, 10] for i in range(15)])
    advice = coverage(sound, config("INPUT.MIN_SIZE_TEST", "320"))["advice"]
    assert 'ASPECT_RATIOS "[[0.03, 0.5, 1, 2]]"' in advice
    key, value = advice[advice.index("MODEL.") : -1].split(' "')
    better = config("INPUT.MIN_SIZE_TEST", "0", key, value)
    assert coverage(sound, better)["groups"]["all"]["no_anchor"] == 0


def test_groups_and_what_is_left_out(tmp_path):
    boxes = [[0, 0, 20, 20], [100, 100, 50, 50], [200, 100, 200, 200], [30, 30, 0, 5]]
    sound = check(tmp_path, boxes)
    sound.entries.is_crowd[2] = True
    found = coverage(sound, config())["groups"]
    assert [found[x]["objects"] for x in ("all", "small", "medium", "large")] == [2, 1, 1, 0]
    assert found["large"]["mean_best_iou"] is None and found["all"]["least_locations"] == 1
    assert "n/a" in coverage_text(coverage(sound, config()))


def test_objects_that_hide_behind_smaller_ones(tmp_path):
    boxes = [[100, 100, 30, 30], [106, 106, 18, 18], [400, 100, 30, 30]]
    same = config("INPUT.MIN_SIZE_TEST", "320", "INPUT.MAX_SIZE_TEST", "2000")
    found = coverage(check(tmp_path, boxes), same)["groups"]["all"]
    assert found["shared"] == found["covered"] == 1


def test_no_objects(tmp_path):
    found = coverage(check(tmp_path, []), config())["groups"]["all"]
    assert found["objects"] == 0 and found["mean_best_iou"] is None


def test_images_of_many_sizes_are_not_mixed(tmp_path):
    data = sound_data(40)
    for i, image in enumerate(data["images"]):
        image.update(width=64 + 17 * i, height=48 + 11 * (i * 7 % 40))
    whole = coverage(check_source(write_source(tmp_path, data), read_images=False), config())
    counts = []
    for image in data["images"]:
        own = [x for x in data["annotations"] if x["image_id"] == image["id"]]
        one = write_source(tmp_path, {**data, "images": [image], "annotations": own})
        counts.append(coverage(check_source(one, read_images=False), config())["groups"]["all"])
    for key in ("objects", "no_anchor", "shared", "covered"):
        assert whole["groups"]["all"][key] == sum(count[key] for count in counts)


def test_levels_of_unknown_stride(tmp_path):
    cfg = config("MODEL.RETINANET.IN_FEATURES", "['stage3']")
    with pytest.raises(ValueError, match="IN_FEATURES has 'stage3'"):
        coverage(check(tmp_path, [[0, 0, 20, 20]]), cfg)


def test_a_detector_of_two_stages_has_the_anchors_of_its_proposals(tmp_path):
    sound = check(tmp_path, [[124, 92, 32, 32]])
    words = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"]
    words += ["[[1.0]]", "MODEL.ANCHOR_GENERATOR.SIZES", "[[32]]", "INPUT.MIN_SIZE_TEST", "0"]
    # The object's centre is (140, 108): on the grid of stride 4, 4 pixels from that of stride 8.
    for levels, no_offset in (("['p2']", 1.0), ("['p3']", (28 * 28) / (2 * 1024 - 28 * 28))):
        cfg = config(*words, "MODEL.RPN.IN_FEATURES", levels)
        found = coverage(sound, cfg)
        assert found["groups"]["all"]["mean_best_iou"] == pytest.approx(no_offset)
    # It counts no locations, of which nothing is said.
    text = coverage_text(found)
    assert "the anchors' reach" in text and "location" not in text and "n/a" in text
    cfg = config(*words, "MODEL.RPN.IN_FEATURES", "['x']")
    with pytest.raises(ValueError, match=r"MODEL\.RPN\.IN_FEATURES has 'x'"):
        coverage(sound, cfg)
