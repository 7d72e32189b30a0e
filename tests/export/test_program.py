"""A file finds what the detector finds, whatever the sizes and numbers of images."""

import numpy as np
import pytest
import torch
from detectron2.layers import batched_nms
from exports import KINDS, export
from predictions import photo

from fsaf_d2.export import program
from fsaf_d2.export.comparison import compare_detections
from fsaf_d2.export.writing import write_program, write_sidecar
from fsaf_d2.inference.candidates import NONE, Candidates, joined, of_each_image
from fsaf_d2.inference.suppression import Suppression
from fsaf_d2.prediction.sidecar import read_sidecar, sidecar_file

# None is what the programs are traced with; the last is smaller than a cell of the coarsest level.
SIZES = [(90, 120), (120, 90), (61, 200), (300, 100), (128, 128), (33, 40), (9, 9)]
AS_IT_IS = {"INPUT__MIN_SIZE_TEST": 0}
VARIANTS = {
    "anchors_only": {"MODEL__FSAF__ANCHOR_FREE_BRANCH": False},
    "anchor_free_only": {"MODEL__FSAF__ANCHOR_BRANCH": False},
    "per_level": {"MODEL__FSAF__NMS_PER_LEVEL": True},
    "fcos": {"MODEL__META_ARCHITECTURE": "PointFCOS"},
    "gfl": {"MODEL__META_ARCHITECTURE": "OneStageDetector", "MODEL__BRANCHES": "['gfl']"},
    "atss": {"MODEL__META_ARCHITECTURE": "OneStageDetector", "MODEL__BRANCHES": "['atss']"},
    "autoassign": {
        "MODEL__META_ARCHITECTURE": "OneStageDetector",
        "MODEL__BRANCHES": "['autoassign']",
    },
    "joined": {"MODEL__BRANCHES": "['anchor', 'fcos', 'point']"},
    "few_candidates": {"MODEL__RETINANET__TOPK_CANDIDATES_TEST": 7},
}


@pytest.fixture(
    scope="module", params=["onnx", pytest.param("torchscript", marks=pytest.mark.slow)]
)
def joint(request, tmp_path_factory):
    return export(tmp_path_factory.mktemp("joint"), request.param, **AS_IT_IS)


def assert_same(expected, found, at_least=1):
    result = compare_detections(expected, found, "image", lowest=0.05, limit=100)
    assert not result.failures and result.num_detections >= at_least, result
    torch.testing.assert_close(expected.scores, found.scores, rtol=0, atol=1e-4)


def assert_same_in_images(exported, sizes=SIZES):
    other = exported.load()
    for seed, size in enumerate(sizes):
        expected, found = (x(photo(*size, seed), min_score=0) for x in (exported.detector, other))
        assert_same(expected, found, at_least=0)
    assert len(expected) < 100


def test_images_of_all_sizes(joint):
    assert_same_in_images(joint)
    assert len(joint.detector(photo(*SIZES[0]), min_score=0)) > 20


def test_images_of_all_sizes_in_one_batch(joint):
    images = [joint.detector.prepare(photo(*size, i)) for i, size in enumerate(SIZES[:5])]
    pairs = zip(joint.detector.detect(images), joint.load().detect(images))
    for expected, found in pairs:
        assert_same(expected, found)


def test_what_is_around_an_image_does_not_matter(joint):
    model = joint.load().model
    batch, sizes = torch.full((2, 3, 90, 130), 99.0), torch.tensor([[90, 120], [70, 130]])
    one = [torch.as_tensor(x) for x in model._program(batch, sizes)]
    batch[0, :, :, 120:] = 0.0
    batch[1, :, 70:] = 255.0
    other = [torch.as_tensor(x) for x in model._program(batch, sizes)]
    assert all(map(torch.equal, one, other))
    batch[0, :, :, :99] = 0.0
    changed = [torch.as_tensor(x) for x in model._program(batch, sizes)]
    assert not torch.equal(one[1][0], changed[1][0]) and torch.equal(one[1][1], changed[1][1])


def test_a_file_describes_itself(joint):
    sidecar = sidecar_file(joint.file)
    said = read_sidecar(sidecar.read_text(), "x")
    assert said.class_names == ["cat", "dog", "bird"] and said.category_ids == [3, 7, 20]
    # To the last digit: a threshold is the score of a detection, which must not be lost.
    assert torch.equal(torch.tensor(said.thresholds), torch.tensor([0.35, 0.4, 0.5]))
    assert said.input_format == "BGR"
    assert said.level_names == ["p3", "p4", "p5", "p6", "p7"] and said.size_divisibility == 32
    text = sidecar.read_text()
    sidecar.unlink()
    try:
        again = joint.load()
    finally:
        sidecar.write_text(text)
    assert again.class_names == said.class_names
    assert_same(joint.detector(photo(), min_score=0), again(photo(), min_score=0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_found_in_some_images_or_all(tmp_path, kind):
    exported = export(tmp_path, kind, **AS_IT_IS)
    images = [exported.detector.prepare(photo(90, 120, seed)) for seed in range(4)]
    best = [x.scores[0].item() for x in exported.detector.detect(images)]
    for branch in exported.detector.model.branches.values():
        branch.score_thresh = sum(sorted(best)[1:3]) / 2
    write_program(exported.detector, exported.file, kind)
    expected, other = exported.detector.detect(images), exported.load()
    for one, found in zip(expected, other.detect(images)):
        assert_same(one, found, at_least=0)
    empty = [image for image, one in zip(images, expected) if not len(one)]
    assert len(empty) == 2
    assert [len(found) for found in other.detect(empty)] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_other_detectors(tmp_path, kind, variant):
    exported = export(tmp_path, kind, **AS_IT_IS, **VARIANTS[variant])
    assert_same_in_images(exported)


@pytest.mark.slow
@pytest.mark.parametrize("per_level", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_candidates_without_suppression(tmp_path, kind, per_level):
    key = {"MODEL__FSAF__NMS_PER_LEVEL": per_level}
    exported = export(tmp_path, kind, with_nms=False, **AS_IT_IS, **key)
    assert_same_in_images(exported)
    image = exported.detector.prepare(photo()).resized[None].float()
    outputs = exported.load().model._program(image, torch.tensor([image.shape[2:]]))
    assert (torch.as_tensor(outputs[1]) > 0).sum() > len(exported.detector(photo(), min_score=0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_resized_images_of_rgb_detectors(tmp_path, kind):
    exported = export(tmp_path, kind, INPUT__FORMAT="RGB", INPUT__MIN_SIZE_TEST=150)
    other = exported.load()
    assert other.input_format == "RGB"
    assert_same(exported.detector(photo(), min_score=0), other(photo(), min_score=0))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores(tmp_path, kind):
    """The first of equals comes first, in levels with more of them than candidates."""
    exported = export(tmp_path, kind, **AS_IT_IS)
    model = exported.detector.model
    for branch in model.branches.values():
        branch.cls_score.weight.data.zero_()
        branch.cls_score.bias.data.fill_(1.0)
    write_program(exported.detector, exported.file, kind)
    image = exported.detector.prepare(photo(300, 300)).resized[None].float()
    sizes = torch.tensor([image.shape[2:]])
    outputs = exported.load().model._program(image, sizes)
    parts = model.candidates(model.preprocess_image([{"image": image[0]}]).tensor, sizes)
    (expected,) = of_each_image(Suppression()._merge_jointly(joined(parts)))
    assert len(expected.scores.unique()) == 1
    np.testing.assert_allclose(outputs[0][0], expected.boxes.detach(), atol=1e-3)
    np.testing.assert_array_equal(outputs[2][0], expected.classes)


def doubtful_pairs(count: int) -> Candidates:
    """Of one image: pairs of an IoU about the threshold, in which rounding decides."""
    first = torch.rand(count // 2, 2) * 1200
    first = torch.cat([first, first + 10], dim=1)
    second = first.clone()
    # IoU 0.4995 to 0.5005
    second[:, 3] = second[:, 1] + 4.995 + torch.rand(count // 2) * 0.01
    boxes = torch.cat([first, second])
    scores = torch.linspace(0.9, 0.1, len(boxes))
    classes = (torch.arange(len(boxes)) % (count // 2)) % 80
    order = torch.arange(len(boxes)) // (count // 2)
    return Candidates(boxes[None], scores[None], classes[None], order[None], order[None])


@pytest.mark.parametrize("count", [200, 1500])
def test_boxes_are_rounded_as_detectron2_rounds_them(count):
    """Below MAX_SHIFTED alone."""
    found = doubtful_pairs(count)
    boxes, scores, classes = (field[0] for field in found[:3])
    shifted = program._shifted(found).boxes[0]
    assert torch.equal(shifted, boxes) == (count > 1000)
    kept = set(batched_nms(boxes, scores, classes, 0.5).tolist())
    assert kept == set(nms_by_hand(shifted, scores, classes, 0.5))
    if count < 1000:
        assert kept != set(nms_by_hand(boxes, scores, classes, 0.5))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [200, 1500])
def test_a_file_decides_as_detectron2_does_where_rounding_decides(
    tmp_path, monkeypatch, kind, count
):
    exported = export(tmp_path, kind)
    model, pairs = exported.detector.model, doubtful_pairs(count)

    def candidates(images, sizes):
        # Nothing, but of what comes in: a program of constants would lose its inputs.
        nothing = images.amax() * 0 + sizes.sum() * 0
        return [pairs._replace(boxes=pairs.boxes + nothing)]

    monkeypatch.setattr(model, "candidates", candidates)
    monkeypatch.setattr(model, "num_classes", 80)
    monkeypatch.setattr(model, "suppression", Suppression(max_detections=count))
    of_80 = {"class_names": [str(k) for k in range(80)], "category_ids": list(range(80))}
    for name, value in {**of_80, "thresholds": torch.zeros(80)}.items():
        monkeypatch.setattr(exported.detector, name, value)
    write_program(exported.detector, exported.file, kind)
    write_sidecar(exported.detector, exported.file, with_nms=True)
    image, sizes = torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]])
    outputs = exported.load().model._program(image, sizes)
    boxes, scores = (torch.as_tensor(x)[0] for x in outputs[:2])
    expected = batched_nms(*(field[0] for field in pairs[:3]), 0.5)
    assert torch.equal(scores[scores > 0], pairs.scores[0, expected])
    assert torch.equal(boxes[scores > 0], pairs.boxes[0, expected])


def nms_by_hand(boxes, scores, classes, thresh) -> list[int]:
    """One box after the other, in float32."""
    kept = []
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i in scores.argsort(descending=True).tolist():
        others = torch.tensor(kept, dtype=torch.int64)
        corners = boxes[others, :2].maximum(boxes[i, :2]), boxes[others, 2:].minimum(boxes[i, 2:])
        overlap = (corners[1] - corners[0]).clamp(min=0).prod(dim=1)
        iou = overlap / (areas[others] + areas[i] - overlap)
        if not ((iou > thresh) & (classes[others] == classes[i])).any():
            kept.append(i)
    return kept


def test_empty_places_are_not_shifted():
    found = Candidates(
        torch.tensor([[[0.0, 0, 9, 9], [0, 0, 999, 999]]]),
        torch.tensor([[0.5, NONE]]),
        torch.tensor([[2, 1]]),
        torch.zeros(1, 2, dtype=torch.int64),
        torch.zeros(1, 2, dtype=torch.int64),
    )
    # 2 * (9 + 1)
    assert program._shifted(found).boxes[0, :, 0].tolist() == [20, 0]
