"""The plot of a training's losses and levels."""

import json

import cv2
import numpy as np
import pytest

from fsaf_d2.visualization import level_color, plot_training, read_metrics
from fsaf_d2.visualization.training_curves import level_shares

LEVEL_NAMES = ("p3", "p4", "p5", "p6", "p7")


def write_metrics(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def training(levels=True, iterations=range(19, 200, 20)):
    for iteration in iterations:
        record = {"iteration": iteration, "total_loss": 3.0, "loss_cls": 2.0, "loss_box_reg": 1.0}
        if levels:
            record |= {f"num_objects_{name}": 2.0 for name in LEVEL_NAMES}
        yield record


def test_records_come_in_the_order_of_their_iterations(tmp_path):
    records = list(training())
    assert read_metrics(write_metrics(tmp_path / "metrics.json", records)) == records


def test_resumed_run_replaces_what_it_repeats(tmp_path):
    lines = [{"iteration": i, "total_loss": 1.0} for i in (10, 20, 30, 40)]
    lines += [{"iteration": i, "total_loss": 2.0} for i in (25, 30)]
    records = read_metrics(write_metrics(tmp_path / "metrics.json", lines))
    losses = {record["iteration"]: record["total_loss"] for record in records}
    assert losses == {10: 1.0, 20: 1.0, 25: 2.0, 30: 2.0}


def test_two_lines_of_one_iteration_are_merged_and_the_later_wins(tmp_path):
    lines = [
        {"iteration": 10, "total_loss": 1.0, "lr": 0.1},
        {"iteration": 10, "bbox/AP50": 50.0, "lr": 0.2},
    ]
    records = read_metrics(write_metrics(tmp_path / "metrics.json", lines))
    assert records == [{"iteration": 10, "total_loss": 1.0, "lr": 0.2, "bbox/AP50": 50.0}]


def test_truncated_last_line_is_ignored(tmp_path):
    path = write_metrics(tmp_path / "metrics.json", training())
    path.write_text(path.read_text() + '{"iteration": 999, "total_l')
    assert read_metrics(path) == list(training())


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing_here\.json"):
        plot_training(tmp_path / "nothing_here.json", tmp_path / "plot.png")


@pytest.mark.parametrize("records", [[], [{"iteration": 1, "lr": 0.1}]])
def test_file_without_losses_is_refused(tmp_path, records):
    path = write_metrics(tmp_path / "metrics.json", records)
    with pytest.raises(ValueError, match="holds no losses"):
        plot_training(path, tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()


def test_shares_count_the_objects_of_a_window_together():
    counts = [(1, 0), (0, 3), (2, 2), (0, 0), (0, 0), (0, 0)]
    records = [
        {"iteration": i, "num_objects_p3": a, "num_objects_p4": b}
        for i, (a, b) in enumerate(counts)
    ]
    iterations, shares = level_shares(records, ("p3", "p4"), window=3)
    assert iterations.tolist() == [0, 1, 2, 3, 4, 5]
    # p3: 1 of 1+3, 3 of 4+4, 2 of 3+4, 2 of 4, then none in the window.
    expected = [1 / 4, 3 / 8, 2 / 7, 2 / 4, np.nan, np.nan]
    np.testing.assert_allclose(shares[0], expected)
    np.testing.assert_allclose(shares.sum(axis=0), [1, 1, 1, 1, np.nan, np.nan])


def test_plot_shows_every_level_in_its_colour(tmp_path):
    path = write_metrics(tmp_path / "metrics.json", training())
    plot_training(path, tmp_path / "new" / "plot.png")
    image = cv2.imread(str(tmp_path / "new" / "plot.png"))[:, :, ::-1]
    for i in range(5):
        color = [int(level_color(i)[j : j + 2], 16) for j in (1, 3, 5)]
        # Equal counts: a fifth of the panel each.
        assert 0.05 < (image == color).all(axis=2).mean() < 0.12


def test_level_panel_is_left_out_where_levels_are_not_logged(tmp_path):
    heights = []
    for levels in (True, False):
        path = write_metrics(tmp_path / "metrics.json", training(levels))
        plot_training(path, tmp_path / "plot.png")
        heights.append(cv2.imread(str(tmp_path / "plot.png")).shape[0])
    assert heights[1] < 0.6 * heights[0]


def test_evaluation_and_nan_losses_do_not_stop_the_plot(tmp_path):
    records = [*training(), {"iteration": 199, "bbox/AP50": 51.2, "total_loss": float("nan")}]
    plot_training(write_metrics(tmp_path / "metrics.json", records), tmp_path / "plot.png")
    assert cv2.imread(str(tmp_path / "plot.png")) is not None
