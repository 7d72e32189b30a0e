import sys

import cv2
import pytest
from toy_sets import coco_set, detections_of, random_set, truth_of

from fsaf_d2.evaluation.plots import MAX_CLASSES, plot_confusion, plot_precision_recall
from fsaf_d2.evaluation.summary import summarize


def evaluation_of(data: dict, predictions: list[dict], tmp_path) -> dict:
    truth = truth_of(data, tmp_path)
    found = {"joint": detections_of(predictions, truth)}
    return summarize("toy", truth, found, max_detections=100)


@pytest.mark.parametrize("num_classes", [1, 3, 30, MAX_CLASSES + 20])
def test_images_for_few_and_many_classes(num_classes, tmp_path):
    """Their sides in pixels are such that a person can look at them."""
    data, predictions = random_set(category_ids=tuple(range(1, num_classes + 1)), num_images=20)
    evaluation = evaluation_of(data, predictions, tmp_path)
    for draw in (plot_precision_recall, plot_confusion):
        draw(evaluation, tmp_path / "plot.png")
        height, width, _ = cv2.imread(str(tmp_path / "plot.png")).shape
        assert 400 < height < 2200 and 400 < width < 2200, draw


def test_names_are_no_formulas_and_pyplot_is_left_alone(tmp_path, monkeypatch):
    """Within dollars matplotlib would refuse it; pyplot would keep the figures for ever."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for category_ids in ((1, 2), tuple(range(1, 25))):
        data, predictions = random_set(category_ids=category_ids)
        for category in data["categories"]:
            category["name"] = rf"$\frac{{{category['id']}$"
        evaluation = evaluation_of(data, predictions, tmp_path)
        for draw in (plot_precision_recall, plot_confusion):
            file = tmp_path / f"{draw.__name__}_{len(category_ids)}.png"
            draw(evaluation, file)
            # White paper with something on it.
            assert 0 < (cv2.imread(str(file)) < 128).mean() < 0.5
    assert sys.modules["matplotlib.pyplot"] is None


def test_no_objects(tmp_path):
    evaluation = evaluation_of(coco_set([]), [], tmp_path)
    plot_precision_recall(evaluation, tmp_path / "curves.png")
    plot_confusion(evaluation, tmp_path / "confusion.png")
    assert (tmp_path / "curves.png").exists() and (tmp_path / "confusion.png").exists()
