"""A process that loads images and has ended is said with what helps."""

import pytest

from fsaf_d2.data.loading.lost_workers import naming_lost_workers


@pytest.mark.parametrize(
    "said",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader"
        "'s workers are out of shared memory. Please try to raise your shared memory limit.",
        "DataLoader worker (pid(s) 7, 9) exited unexpectedly",
        "Caught RuntimeError in DataLoader worker process 0.\nTraceback\n  File x\nRuntimeError: "
        "unable to write to file </torch_7_1>: No space left on device (28)",
        "unable to allocate shared memory(shm) for file </torch_7>: Success (0)",
    ],
)
def test_a_lost_loader_is_named_with_the_remedy(said):
    words = "shared memory .*lower DATALOADER.NUM_WORKERS"
    with pytest.raises(OSError, match=words) as caught, naming_lost_workers():
        raise RuntimeError(said)
    assert "\n" not in str(caught.value)


def test_other_errors_of_a_run_stay_as_they_are():
    with pytest.raises(RuntimeError, match="mat1 and mat2"), naming_lost_workers():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
