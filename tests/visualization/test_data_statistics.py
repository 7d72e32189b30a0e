"""The plot of a data set is drawn whatever it holds."""

import pytest
from broken_data import sound_data, write_source
from PIL import Image

from fsaf_d2.data.checking.check_source import check_source, statistics
from fsaf_d2.visualization.data_statistics import MAX_BARS, plot_statistics


def plotted(folder, data):
    file = folder / "new" / "data.png"
    found = statistics(check_source(write_source(folder, data), read_images=False))
    plot_statistics(found, file, title="$x_$ of <me>")
    with Image.open(file) as image:
        return image.size


def test_it_grows_with_the_number_of_classes(tmp_path):
    few = plotted(tmp_path, sound_data())
    data = sound_data()
    data["categories"] += [{"id": 9 + i, "name": f"$more_{i}$"} for i in range(3 * MAX_BARS)]
    many = plotted(tmp_path, data)
    assert few[0] == many[0] and few[1] < many[1] < 800


@pytest.mark.parametrize("section", ["annotations", "categories"])
def test_what_is_empty(tmp_path, section):
    assert plotted(tmp_path, {**sound_data(), section: []})[0] == 1300
