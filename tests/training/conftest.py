import functools
import importlib
import os

import cv2
import numpy as np
import pytest
from runs import register

from fsaf_d2.data.reading.digits import make_digits

report = importlib.import_module("fsaf_d2.evaluation.run_report")
files = importlib.import_module("fsaf_d2.evaluation.prediction_files")
level_lens = importlib.import_module("fsaf_d2.training.hooks.level_lens_hook")
environment = functools.cache(report._environment)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Ten small training images, registered as runs_train and runs_val."""
    root = tmp_path_factory.mktemp("digits")
    make_digits(root, num_train=10, num_val=2, image_size=128)
    register(root)
    return root


@pytest.fixture(scope="module", autouse=True)
def quick_to_write():
    """Without what takes longer than such a run: drawing, a template's compilation, the disk.

    What a run draws is shown by tests of the program, and each drawing has tests of its own.
    """

    def plot(_, output, **__):
        cv2.imwrite(str(output), np.zeros((9, 9, 3), np.uint8))

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(report, "plot_training", plot)
        patches.setattr(files, "plot_precision_recall", plot)
        patches.setattr(files, "plot_confusion", plot)
        patches.setattr(level_lens, "plot_level_lens", plot)
        patches.setattr(report, "_environment", environment)
        patches.setattr(os, "fsync", lambda _: None)
        yield
