"""What every detector must do for those who use it, or refuse in one clear sentence."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.layers import batched_nms
from every_detector import ALL
from exports import KINDS
from models import NUM_CLASSES, tiny_cfg
from predictions import photo

from fsaf_d2 import load_detector
from fsaf_d2.detectors import contract_of
from fsaf_d2.detectors.building import build_detector
from fsaf_d2.export.comparison import compare_detections
from fsaf_d2.export.writing import ENDINGS, write_program, write_sidecar
from fsaf_d2.inference.augmented import AugmentedDetector
from fsaf_d2.prediction import find_inputs, predict

# Something is found in every image, whose pixels are those of the network's input.
EVERYTHING = [
    *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
    *("TEST.DETECTIONS_PER_IMAGE", "20", "INPUT.MIN_SIZE_TEST", "0"),
]


@pytest.fixture(scope="module", params=ALL.values(), ids=ALL)
def loaded(request, tmp_path_factory):
    """Each detector in turn, from a checkpoint as a training writes it."""
    torch.manual_seed(0)
    cfg = tiny_cfg(*request.param, *EVERYTHING)
    names = [f"class {i}" for i in range(NUM_CLASSES)]
    model = build_detector(cfg)
    for name, parameter in model.named_parameters():
        if name.endswith("cls_score.weight"):
            torch.nn.init.normal_(parameter, std=0.02)  # scores that differ
        if name.endswith("bbox_pred.bias"):
            parameter.data.clamp_(min=0.1)
    content = {"model": model.state_dict(), "config": cfg.dump(), "class_names": names}
    weights = tmp_path_factory.mktemp("checkpoint") / "model.pth"
    torch.save(content, weights)
    return load_detector(weights, device="cpu")


def test_its_checkpoint_predicts_draws_and_writes_what_the_model_finds(loaded, tmp_path):
    image = photo(96, 128)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    inputs = find_inputs([str(tmp_path / "a.png")])
    summary = predict(loaded, inputs, tmp_path / "out", save=("pictures", "json"), min_score=0)
    assert summary.complete and summary.num_detections > 0
    (drawn,) = (tmp_path / "out/pictures").iterdir()
    small = cv2.resize(cv2.imread(str(drawn)), (128, 96), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - image).max() > 50
    pixels = {"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}
    with torch.no_grad():
        expected = loaded.model.eval()([pixels])[0]["instances"]
    found = json.loads((tmp_path / "out/predictions.json").read_text())["annotations"]
    assert [x["score"] for x in found] == pytest.approx(expected.scores.tolist(), abs=1e-4)


def test_one_view_of_augmentation_is_suppressed_once_more_or_refused(loaded):
    """Once more changes nothing, but for RetinaNet, whose boxes are clipped behind the first."""
    views = {"min_sizes": (96,), "max_size": 999, "flip": False}
    suppression = contract_of(loaded.model).suppression
    if suppression is None:
        with pytest.raises(ValueError, match=r"TEST.AUG.ENABLED must be False for detectron2's"):
            AugmentedDetector(loaded.model, **views)
        return
    pixels = {"image": torch.from_numpy(photo(96, 128).transpose(2, 0, 1).copy())}
    with torch.no_grad():
        expected, found = (
            model([pixels])[0]["instances"]
            for model in (loaded.model, AugmentedDetector(loaded.model, **views))
        )
    boxes = expected.pred_boxes.tensor
    kept = batched_nms(boxes, expected.scores, expected.pred_classes, suppression.nms_thresh)
    assert len(kept) > 0 and torch.equal(found.scores, expected.scores[kept])
    torch.testing.assert_close(found.pred_boxes.tensor, boxes[kept])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_its_file_finds_what_it_finds_or_is_refused(loaded, kind, tmp_path):
    file = tmp_path / f"model{ENDINGS[kind]}"
    if contract_of(loaded.model).suppression is None:
        with pytest.raises(ValueError, match=r"detectron2's .* cannot be exported: it has no"):
            write_program(loaded, file, kind)
        assert not file.exists()
        return
    write_program(loaded, file, kind)
    write_sidecar(loaded, file, with_nms=True)
    other = load_detector(file, trust=kind == "torchscript")
    expected, found = (x(photo(96, 128), min_score=0) for x in (loaded, other))
    result = compare_detections(expected, found, "image", lowest=0.0, limit=20)
    assert not result.failures and result.num_detections > 0
