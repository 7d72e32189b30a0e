"""Images of detections."""

import sys

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from matplotlib.colors import to_rgb

from fsaf_d2.visualization import class_color, detection_grid, draw_detections, drawn_labels

CLASS_NAMES = tuple("0123456789")
LEVEL_NAMES = ("p3", "p4", "p5", "p6", "p7")


def make_instances(boxes, scores, levels, branches, classes=None, size=(100, 120)):
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.tensor(classes or [7] * len(scores), dtype=torch.int64)
    instances.pred_levels = torch.tensor(levels, dtype=torch.int64)
    instances.pred_branches = torch.tensor(branches, dtype=torch.int64)
    return instances


def draw(instances, image=None, **options):
    image = np.zeros((100, 120, 3), dtype=np.uint8) if image is None else image
    names = {"level_names": LEVEL_NAMES, "branch_names": ["anchor", "point"]}
    options = {"class_names": CLASS_NAMES, "scale": 4, **names, **options}
    return draw_detections(image, instances, **options)


def is_color(image, color):
    """Return where an image shows a colour, with tolerance for anti-aliasing."""
    difference = image.astype(float) - 255 * np.array(to_rgb(color))
    return np.abs(difference).max(axis=-1) < 20


BOX = [30.0, 40.0, 90.0, 80.0]


@pytest.mark.parametrize("k", [0, 3, 9])
def test_box_is_drawn_at_its_place_in_its_classes_colour(k):
    image = draw(make_instances([BOX], [0.8], [4], [0], classes=[k]))
    colored = is_color(image, class_color(k))
    # The edges of the box, magnified by 4: x 120 and 360, y 160 and 320.
    assert colored[165:315, 119:121].all(axis=1).mean() > 0.95
    assert colored[165:315, 359:361].all(axis=1).mean() > 0.95
    assert colored[319:321, 125:355].all(axis=0).mean() > 0.95
    assert not colored[165:315, 125:355].any()


def test_box_of_the_second_branch_is_dashed():
    image = draw(make_instances([BOX], [0.8], [2], [1]))
    right_edge = is_color(image, class_color(7))[165:315, 359:361].all(axis=1)
    assert 0.4 < right_edge.mean() < 0.8


def test_every_class_has_its_own_colour():
    assert len({class_color(k) for k in range(40)}) == 40
    # For readers to whom red and green are alike, too: their blue or their lightness differs.
    seen = np.array([to_rgb(class_color(k)) for k in range(8)]) @ [[0.3, 0], [0.6, 0], [0.1, 1]]
    gaps = np.abs(seen[:, None] - seen).max(axis=2) + np.eye(8)
    assert gaps.min() > 0.07


def test_every_detection_has_a_label():
    one = draw(make_instances([BOX], [0.8], [0], [0]))
    two = draw(make_instances([BOX, BOX], [0.8, 0.7], [0, 0], [0, 0]))
    areas = [is_color(image, class_color(7)).sum() for image in (one, two)]
    assert areas[1] > areas[0] + 500


def label_texts(instances, monkeypatch, **options):
    from matplotlib.axes import Axes

    texts = []
    write = Axes.text
    monkeypatch.setattr(
        Axes, "text", lambda *args, **kw: texts.append(args[3]) or write(*args, **kw)
    )
    draw(instances, **options)
    return texts


def test_label_tells_class_score_level_and_branch(monkeypatch):
    instances = make_instances([BOX, [0, 0, 20, 20]], [0.6, 0.834], [1, 4], [1, 0], classes=[7, 0])
    texts = label_texts(instances, monkeypatch)
    assert texts == ["0 0.83 P7 anchor", "7 0.60 P4 point"]


def test_labels_leave_out_what_detections_do_not_tell(monkeypatch):
    instances = make_instances([BOX], [0.6], [1], [1])
    for names, expected in (
        ({"branch_names": ["point"]}, "7 0.60 P4"),
        ({"level_names": [], "branch_names": []}, "7 0.60"),
    ):
        assert label_texts(instances, monkeypatch, **names) == [expected]
    instances.remove("pred_levels")
    instances.remove("pred_branches")
    assert label_texts(instances, monkeypatch, level_names=[], branch_names=[]) == ["7 0.60"]
    # Names alone tell nothing of a detection.
    assert label_texts(instances, monkeypatch) == ["7 0.60"]


THREE = ["anchor", "fcos", "point"]


def test_each_of_three_branches_has_its_line_and_its_name(monkeypatch):
    edges = []
    for branch in range(3):
        instances = make_instances([BOX], [0.8], [2], [branch])
        edge = is_color(draw(instances, branch_names=THREE), class_color(7))[165:315, 359:361]
        edges.append(edge.all(axis=1))
        (text,) = label_texts(instances, monkeypatch, branch_names=THREE)
        monkeypatch.undo()
        assert text == f"7 0.80 P5 {THREE[branch]}"
    # A solid line, and two of different dashes.
    assert edges[0].mean() > 0.95 > max(edges[1].mean(), edges[2].mean())
    changes = [np.count_nonzero(edge[1:] != edge[:-1]) for edge in edges[1:]]
    assert 0 < changes[0] < changes[1]


def test_the_legend_names_every_branch_where_there_are_several(monkeypatch):
    from matplotlib.figure import Figure

    shown = []
    legend = Figure.legend

    def noted(self, *args, **kwargs):
        shown.append([handle.get_label() for handle in kwargs["handles"]])
        return legend(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "legend", noted)
    image = np.zeros((60, 500, 3), dtype=np.uint8)
    detection_grid([image], branch_names=THREE)
    assert shown[-1] == ["anchor branch", "fcos branch", "point branch"]
    # A detector that does not tell has a grid without a legend.
    count = len(shown)
    for names in ([], ["fcos"]):
        assert detection_grid([image], branch_names=names).shape[0] == 60 + 8
    assert len(shown) == count


def test_class_name_with_dollars_is_drawn_as_it_is():
    names = ("$x_$",) * 10
    assert draw(make_instances([BOX], [0.8], [0], [0]), class_names=names).any()


@pytest.mark.parametrize(
    "box", [[0, 0, 120, 100], [110, 40, 120, 60], [0, 0, 10, 20], [50, 80, 60, 100]]
)
def test_label_stays_inside_the_image(box, monkeypatch):
    ((x1, y1, x2, y2),) = label_places(make_instances([box], [0.8], [1], [0]), monkeypatch)
    assert 0 <= x1 < x2 <= 480
    assert 0 <= y1 < y2 <= 400


def label_places(instances, monkeypatch, **options) -> list:
    places = []
    draw_label = drawn_labels.Labels.draw

    def spy(*arguments):
        places.append(draw_label(*arguments))
        return places[-1]

    monkeypatch.setattr(drawn_labels.Labels, "draw", spy)
    draw(instances, **options)
    return places


def test_labels_hide_no_small_object(monkeypatch):
    """In a crowd each box can be seen, whatever is said of it."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 90, (150, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(2, 9, (150, 2))], axis=1)
    crowd = make_instances(boxes.tolist(), rng.uniform(size=150).tolist(), [0] * 150, [0] * 150)
    found = [place for place in label_places(crowd, monkeypatch) if place is not None]
    assert 5 < len(found) < 150
    places, boxes = np.array(found), boxes * 4
    starts = np.maximum(places[:, None, :2], boxes[:, :2])
    ends = np.minimum(places[:, None, 2:], boxes[:, 2:])
    hidden = (ends - starts).clip(min=0).prod(axis=2) / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    assert hidden.max() <= drawn_labels.MAY_HIDE
    # A box that stands alone has its label outside.
    ((x1, y1, x2, y2),) = label_places(make_instances([BOX], [0.8], [0], [0]), monkeypatch)
    assert y2 <= 160 or y1 >= 320 or x2 <= 120 or x1 >= 360


def test_a_label_that_would_hide_others_says_the_score_alone(monkeypatch):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 90, (90, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(2, 9, (90, 2))], axis=1)
    crowd = make_instances(boxes.tolist(), [0.5] * 90, [0] * 90, [0] * 90)
    names = ["a name of some length"] * 10
    texts = label_texts(crowd, monkeypatch, class_names=names, level_names=[], branch_names=[])
    assert set(texts) == {"0.50", f"{names[0]} 0.50"}


def test_labels_of_one_place_do_not_cover_one_another():
    image = draw(make_instances([BOX] * 3, [0.9, 0.8, 0.7], [0] * 3, [0] * 3, classes=[0, 1, 2]))
    areas = [is_color(image, class_color(i)).sum() for i in range(3)]
    assert min(areas) > 500


def test_original_is_left_alone():
    image = np.full((100, 120, 3), 77, dtype=np.uint8)
    draw(make_instances([BOX], [0.8], [0], [0]), image)
    assert (image == 77).all()


def test_image_without_detections_stays_as_it_is():
    image = np.random.RandomState(0).randint(0, 255, (100, 120, 3)).astype(np.uint8)
    drawn = draw(make_instances([], [], [], []), image, scale=1)
    assert np.abs(drawn.astype(int) - image).max() <= 1


def test_ground_truth_is_white_and_below_the_detections():
    empty = make_instances([], [], [], [])
    truth = Boxes(torch.tensor([BOX]))
    image = draw(empty, gt_boxes=truth)
    assert image[165:315, 359:361].max(axis=(1, 2)).min() > 150
    covered = draw(make_instances([BOX], [0.8], [3], [0]), gt_boxes=truth)
    assert is_color(covered, class_color(7))[165:315, 359:361].all(axis=1).mean() > 0.95


@pytest.mark.parametrize("scale, size", [(1, (100, 120)), (4, (400, 480)), (2.5, (250, 300))])
def test_image_has_the_magnified_size(scale, size):
    image = draw(make_instances([BOX], [0.8], [0], [0]), scale=scale)
    assert image.shape == (*size, 3) and image.dtype == np.uint8


def test_small_images_are_magnified_and_large_ones_are_not():
    empty = make_instances([], [], [], [])
    assert draw(empty, scale=None).shape == (500, 600, 3)
    large = np.zeros((577, 1023, 3), dtype=np.uint8)
    assert draw(empty, large, scale=None).shape == large.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_instances_may_lie_on_a_gpu():
    instances = make_instances([BOX], [0.8], [0], [0])
    assert np.array_equal(draw(instances.to("cuda")), draw(instances))


def test_pyplot_is_not_used(tmp_path):
    assert "matplotlib.pyplot" not in vars(sys.modules[draw_detections.__module__])
    from matplotlib import _pylab_helpers

    draw(make_instances([BOX], [0.8], [0], [0]))
    assert not _pylab_helpers.Gcf.figs


def test_grid_holds_every_image_at_its_place():
    images = [np.full((300, 700, 3), 60 * i, dtype=np.uint8) for i in range(1, 4)]
    grid = detection_grid(images, columns=2)
    legend = grid.shape[0] - 2 * 308
    assert grid.shape[1] == 2 * 708 + 8
    assert (grid[legend : legend + 300, 8:708] == 60).all()
    assert (grid[legend : legend + 300, 716:1416] == 120).all()
    assert (grid[legend + 308 : legend + 608, 8:708] == 180).all()


def test_grid_without_images_is_refused():
    with pytest.raises(ValueError, match="0 images"):
        detection_grid([])
