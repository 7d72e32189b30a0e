"""Files as those of detectron2's model zoo give here what they give there."""

import logging
import pickle
import re

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from models import ROOT, tiny_model
from sklearn.datasets import load_sample_image

from fsaf_d2 import load_config, load_detector
from fsaf_d2.training import SafeCheckpointer, load_weights

CPU = ["MODEL.DEVICE", "cpu"]
SIZE = ["INPUT.MIN_SIZE_TEST", "256", "INPUT.MAX_SIZE_TEST", "427"]
ALL = ["TEST.DETECTIONS_PER_IMAGE", "1000"]
CHINA, FLOWER = (load_sample_image(f"{name}.jpg")[..., ::-1].copy() for name in ("china", "flower"))
IMAGES = (CHINA, FLOWER, FLOWER[40:300, 200:420].copy())


def random_retinanet(cfg) -> torch.nn.Module:
    """detectron2's RetinaNet with random weights that detect something on several levels."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for name, module in model.named_modules():
        if name.endswith("conv3.norm"):
            module.weight.fill_(0.1)
            module.running_mean.normal_(std=0.1)
    image = torch.as_tensor(CHINA.transpose(2, 0, 1)[:, :256, :256].copy())
    with torch.no_grad():
        image = model.preprocess_image([{"image": image}]).tensor
        fpn = model.backbone
        last = (fpn.fpn_output3, fpn.fpn_output4, fpn.fpn_output5, fpn.top_block.p6)
        for level, layer in zip(model.head_in_features, (*last, fpn.top_block.p7)):
            layer.weight.div_(fpn(image)[level].std())
        pyramid = fpn(image)
        outputs = model.head([pyramid[level] for level in model.head_in_features])
        for layer, levels, std in zip(
            (model.head.cls_score, model.head.bbox_pred), outputs, (1.5, 0.3)
        ):
            layer.weight.mul_(std / levels[1].std())
        model.head.cls_score.bias.normal_(-4, 0.5)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet_R_50_FPN_1x", "retinanet_R_101_FPN_3x"])
def test_detections_are_detectron2s(name, tmp_path):
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file(f"COCO-Detection/{name}.yaml"))
    file = tmp_path / "model_final.pkl"
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(file), *SIZE, *ALL])
    weights = {k: v.numpy() for k, v in random_retinanet(cfg).state_dict().items()}
    file.write_bytes(pickle.dumps({"model": weights, "__author__": "Detectron2 Model Zoo"}))

    theirs = DefaultPredictor(cfg)
    ours = load_detector(
        file, config_file=ROOT / f"configs/zoo/{name}.yaml", overrides=SIZE + ALL, device="cpu"
    )
    assert ours.class_names[0] == "person"
    levels = set()
    for image in IMAGES:
        expected = theirs(image)["instances"]
        found = ours(image, min_score=0)
        assert len(expected) > 300
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-3
        )
        assert torch.equal(found.pred_classes, expected.pred_classes)
        levels.update(found.pred_levels.tolist())
    assert len(levels) > 3


@pytest.mark.slow
def test_training_starts_from_it_with_four_fresh_tensors(tmp_path):
    theirs = [*CPU, "MODEL.META_ARCHITECTURE", "RetinaNet"]
    cfg = load_config(ROOT / "configs/zoo/retinanet_R_50_FPN_1x.yaml", theirs)
    weights = {k: v.numpy() for k, v in build_model(cfg).state_dict().items()}
    # Of files from before they were derived from the config.
    weights["anchor_generator.cell_anchors.0"] = weights["head.bbox_pred.bias"]
    (tmp_path / "net.pkl").write_bytes(pickle.dumps({"model": weights, "__author__": "zoo"}))
    model = build_model(load_config(ROOT / "configs/fsaf_R_50_FPN_1x.yaml", CPU))
    checkpointer = SafeCheckpointer(model)
    checkpointer.load(str(tmp_path / "net.pkl"))
    report = checkpointer.report
    assert sorted(report.missing) == sorted(
        f"branches.point.{layer}.{field}"
        for layer in ("cls_score", "bbox_pred")
        for field in ("weight", "bias")
    )
    assert not (report.unexpected or report.misshapen)
    count = len(weights) - 1
    assert len(report.loaded) + len(report.converted) == count
    assert set(report.converted.values()) == {x for x in weights if x.startswith("head.")}
    assert report.at_default == ["branches.anchor.loss_normalizer"]
    assert list(report.needless) == ["anchor_generator.cell_anchors.0"]
    assert report.summary() == (
        f"'{tmp_path / 'net.pkl'}': {count} of the model's {count + 4} "
        "tensors are loaded; 4 start fresh: branches.point.cls_score.{bias,weight}, "
        "branches.point.bbox_pred.{bias,weight}."
    )


def test_fine_tuning_begins_with_what_fits_and_says_so_in_a_line(tmp_path, caplog):
    zoo = tiny_model("MODEL.BRANCHES", "['anchor']").state_dict()
    torch.save(zoo, tmp_path / "net.pth")
    model = tiny_model("MODEL.RETINANET.NUM_CLASSES", "3")
    with caplog.at_level(logging.INFO):
        load_weights(SafeCheckpointer(model), str(tmp_path / "net.pth"), resume=False)
    (record,) = (x for x in caplog.records if "start fresh" in x.message)
    assert record.levelno == logging.INFO and "NUM_CLASSES" not in caplog.text
    assert re.search(
        r"6 start fresh: branches\.anchor\.cls_score\.\{bias,weight\}, branches\.point\.cls_score"
        r".*, as the file is of another number of classes and lacks a branch\.",
        record.message,
    )
