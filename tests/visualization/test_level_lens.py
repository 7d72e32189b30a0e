import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from fsaf_d2.visualization.level_lens import _plot_flips, _plot_sizes, plot_level_lens

LEVELS = ["p3", "p4", "p5", "p6", "p7"]


def report(num_evaluations: int = 3) -> dict:
    counts = np.zeros((5, 4), int)
    counts[0, 1], counts[2, 1], counts[4, 2] = 3, 1, 5
    evaluations = [
        {
            "step": 100 * number,
            "num_objects": dict.fromkeys(LEVELS, 1),
            "as_heuristic": 2,
            "compared": 8 if number > 1 else 0,
            "flipped": 2 if number > 1 else None,
        }
        for number in range(1, num_evaluations + 1)
    ]
    share = {name: [0.2, None, 0.2] for name in LEVELS}
    return {
        "levels": LEVELS,
        "heuristic_borders": [112.0, 224.0, 448.0, 896.0],
        "size_edges": [2.0, 32.0, 64.0, 512.0, 2048.0],
        "objects_by_level_and_size": counts.tolist(),
        "evaluations": evaluations,
        "training": {"steps": [20, 40, 60], "share": share},
    }


def test_an_image_is_drawn_also_of_little(tmp_path):
    short = {**report(1), "training": {"steps": [], "share": {name: [] for name in LEVELS}}}
    for index, content in enumerate((report(), short)):
        plot_level_lens(content, tmp_path / f"{index}.png")
        assert Image.open(tmp_path / f"{index}.png").size == (960, 1080)


def test_shares_are_those_of_the_objects_of_a_size():
    """Of 4 objects in the second bin one selects P5; the first bin has none."""
    axes = Figure().subplots()
    _plot_sizes(axes, report())
    shares = axes.collections[0].get_array()
    assert (shares[0, 1], shares[2, 1], shares[4, 2]) == (75, 25, 100)
    assert np.isnan(np.ma.filled(shares, np.nan)[:, [0, 3]]).all()
    # The heuristic's steps, from level to level.
    (rule,) = axes.patches
    assert rule.get_data().edges.tolist() == [2, 112, 224, 448, 896, 2048]
    assert rule.get_data().values.tolist() == [0, 1, 2, 3, 4]


def test_flips_are_in_percent_of_the_compared():
    axes = Figure().subplots()
    _plot_flips(axes, report())
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [[200, 25], [300, 25]]
