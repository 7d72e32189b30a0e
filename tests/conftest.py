import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

# Before any test: a stdlib distutils that is imported first, by whatever a test loads, is refused
# by the setuptools that detectron2's description of the environment needs.
import setuptools  # noqa: F401
import torch
import torch.utils.cpp_extension

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
