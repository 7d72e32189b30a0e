"""Every tensor is accounted for, and another shape names the key that would fit it."""

import pickle
import re

import numpy as np
import pytest
import torch
from models import NUM_CLASSES, tiny_cfg, tiny_model

from fsaf_d2.training import SafeCheckpointer, load_weights
from fsaf_d2.weights.load_report import LoadReport, Misshapen, grouped


def save(tmp_path, weights):
    torch.save({"model": weights}, tmp_path / "net.pth")
    return str(tmp_path / "net.pth")


def report_of(file, *words):
    checkpointer = SafeCheckpointer(tiny_model(*words))
    checkpointer.load(file)
    return checkpointer.report


SIZES = "[[32.0], [64.0], [128.0], [256.0], [512.0]]"
SHAPES = {
    "classes": (["MODEL.RETINANET.NUM_CLASSES", "4"], f"MODEL.RETINANET.NUM_CLASSES {NUM_CLASSES}"),
    "anchors": (["MODEL.ANCHOR_GENERATOR.SIZES", SIZES], "with 9 boxes for each location"),
    "channels": (["MODEL.FPN.OUT_CHANNELS", "16"], "MODEL.FPN.OUT_CHANNELS 32"),
    "stem": (["MODEL.RESNETS.STEM_OUT_CHANNELS", "4"], "MODEL.RESNETS.STEM_OUT_CHANNELS 8"),
    "width": (["MODEL.RESNETS.WIDTH_PER_GROUP", "4"], "NUM_GROUPS 1, WIDTH_PER_GROUP 8"),
    "groups": (["MODEL.RESNETS.NUM_GROUPS", "2"], "NUM_GROUPS 1, WIDTH_PER_GROUP 8"),
    "backbone": (["MODEL.RESNETS.RES2_OUT_CHANNELS", "16"], "RES2_OUT_CHANNELS 32"),
}


@pytest.mark.parametrize("change", SHAPES)
def test_another_shape_names_both_and_the_key_that_fits(change, tmp_path):
    words, remedy = SHAPES[change]
    report = report_of(save(tmp_path, tiny_model().state_dict()), *words)
    assert report.misshapen and not report.complete
    text = " ".join(report.problems())
    assert remedy in text
    first = report.misshapen[0]
    assert f"{first.name} has the shape {first.in_file} in the file and {first.in_model}" in text
    if change == "anchors":
        assert "NUM_CLASSES" not in text
    # The remedy is one: with it everything fits.
    if change != "anchors":
        keys = re.findall(r"(?:MODEL\.[A-Z]+\.)?([A-Z0-9_]+) (\d+)", remedy)
        section = words[0].rpartition(".")[0]
        again = [word for key, value in keys for word in (f"{section}.{key}", value)]
        assert report_of(str(tmp_path / "net.pth"), *words, *again).complete


def test_another_depth_is_named(tmp_path):
    file = save(tmp_path, tiny_model().state_dict())
    report = report_of(file, "MODEL.RESNETS.DEPTH", "101")
    assert "The file's blocks are those of MODEL.RESNETS.DEPTH 34 or 50." in report.problems()
    assert all(".res4." in name for name in report.missing) and len(report.missing) > 100
    assert not any("DEPTH" in line for line in report_of(file).problems())


def test_every_tensor_is_in_exactly_one_list(tmp_path):
    weights = tiny_model().state_dict()
    del weights["towers.cls_subnet.0.bias"], weights["branches.anchor.loss_normalizer"]
    weights |= {"other.weight": torch.zeros(1), "pixel_mean": torch.zeros(3)}
    checkpointer = SafeCheckpointer(
        tiny_model("MODEL.RETINANET.NUM_CLASSES", "4"), str(tmp_path / "out")
    )
    load_weights(checkpointer, save(tmp_path, weights), resume=False)
    report = checkpointer.report
    assert report.missing == ["towers.cls_subnet.0.bias"]
    assert report.at_default == ["branches.anchor.loss_normalizer"]
    assert report.unexpected == ["other.weight"]
    assert list(report.needless) == ["pixel_mean"]
    mine = [*report.loaded, *report.converted, *report.missing, *report.at_default]
    mine += [item.name for item in report.misshapen]
    assert sorted(mine) == sorted(checkpointer.model.state_dict())
    theirs = [*report.loaded, *report.converted.values(), *report.unexpected, *report.needless]
    theirs += [item.name for item in report.misshapen]
    assert sorted(theirs) == sorted(weights)

    first, *lines = (tmp_path / "out/loaded_weights.txt").read_text().splitlines()
    assert first == report.summary() and len(lines) == len({*mine, *theirs})
    assert "at default  branches.anchor.loss_normalizer  not in the file, nor needed" in lines
    pattern = r"other shape +branches\.anchor\.cls_score\.weight .*"
    assert any(re.fullmatch(pattern, line) for line in lines)


def test_a_run_starts_from_a_part_and_evaluation_needs_all(tmp_path):
    file = save(tmp_path, tiny_model().state_dict())
    checkpointer = SafeCheckpointer(tiny_model("MODEL.RETINANET.NUM_CLASSES", "4"))
    load_weights(checkpointer, file, resume=False)
    with pytest.raises(ValueError, match=r"not have all.*start fresh.*RETINANET\.NUM_CLASSES 7"):
        load_weights(checkpointer, file, resume=False, complete=True)
    file = save(tmp_path, {"a.weight": torch.zeros(1), "a.bias": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"fits nothing.*2 tensors.*a\.\{bias,weight\}"):
        load_weights(checkpointer, file, resume=False)


@pytest.mark.parametrize("name", ["anchor", "point"])
def test_what_one_branch_has_is_evaluated_alone(tmp_path, name):
    weights = tiny_model().state_dict()
    of_other = tiny_model("MODEL.BRANCHES", f"['{name}']")
    file = save(tmp_path, {name: weights[name] for name in of_other.state_dict()})
    whole = SafeCheckpointer(tiny_model())
    words = rf"4 start fresh.* MODEL\.BRANCHES \"\['{name}'\]\" evaluates"
    with pytest.raises(ValueError, match=words):
        load_weights(whole, file, resume=False, complete=True)
    load_weights(SafeCheckpointer(of_other), file, resume=False, complete=True)


def test_names_of_a_module_are_written_together():
    assert grouped(["a.b.weight", "a.b.bias", "c"]) == ["a.b.{bias,weight}", "c"]


def test_a_config_that_the_backbone_does_not_heed_is_refused():
    words = ["MODEL.FPN.RELU_BEFORE_P7", "False", "MODEL.BACKBONE.NAME"]
    with pytest.raises(ValueError, match=r"RELU_BEFORE_P7 False does nothing for.*p6p7"):
        tiny_model(*words, "build_retinanet_resnet_fpn_backbone")
    assert tiny_cfg().MODEL.BACKBONE.NAME == "build_resnet_fpn_p6p7_backbone"


def test_names_and_shapes_of_strangers_do_no_harm(tmp_path):
    weights = tiny_model().state_dict()
    for name in list(weights)[::3]:
        weights[name] = torch.zeros(()) if weights[name].dim() else torch.zeros(2, 0)
    weights |= {f"x{index}\n\x1b[31m.weight": torch.zeros(()) for index in range(1000)}
    checkpointer = SafeCheckpointer(tiny_model(), str(tmp_path / "out"))
    load_weights(checkpointer, save(tmp_path, weights), resume=False)
    text = " ".join([checkpointer.report.summary(), *checkpointer.report.problems()])
    assert text.isprintable() and len(text) < 40_000
    assert "and 970 more modules" in text
    lines = (tmp_path / "out/loaded_weights.txt").read_text().splitlines()
    assert all(line.isprintable() for line in lines) and len(lines) > 1000


def test_weights_of_a_backbone_are_matched_by_detectron2s_heuristics(tmp_path):
    """As in detectron2://ImageNetPretrained/MSRA/R-50.pkl: names without what is around them."""
    prefix = "backbone.bottom_up."
    backbone = {k: v for k, v in tiny_model().state_dict().items() if k.startswith(prefix)}
    weights = {name.removeprefix(prefix): value.numpy() for name, value in backbone.items()}
    weights["stem.fc.weight"] = np.zeros((1000, 512), np.float32)
    content = {"model": weights, "__author__": "MSRA", "matching_heuristics": True}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content))
    report = report_of(str(tmp_path / "R-50.pkl"))
    assert sorted(report.loaded) == sorted(backbone) and list(report.needless) == ["stem.fc.weight"]
    assert not report.unexpected and "branches.anchor.cls_score.weight" in report.missing


def test_what_one_key_mends_is_one_sentence():
    names = [f"backbone.fpn_output{level}.weight" for level in (3, 4, 5)]
    report = LoadReport(
        *("file.pth", ["x"], {}, [], []),
        [Misshapen(name, (32, 32, 3, 3), (16, 16, 3, 3)) for name in names],
        *([], {}, {}, None),
    )
    assert report.problems() == [
        "backbone.fpn_output3.weight has the shape (32, 32, 3, 3) in the file and (16, 16, 3, 3) "
        "by the config (2 more differ likewise): MODEL.FPN.OUT_CHANNELS 32 fits it."
    ]
