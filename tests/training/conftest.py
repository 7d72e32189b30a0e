import pytest
from runs import register

from fsaf_d2.data.digits import make_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Ten small training pictures, registered as runs_train and runs_val."""
    root = tmp_path_factory.mktemp("digits")
    make_digits(root, num_train=10, num_val=2, image_size=128)
    register(root)
    return root
