import importlib

import pytest
import torch

from fsaf_d2.training import first_to_fail
from fsaf_d2.training.launch import TorchrunProcess, launch, torchrun_process

MODULE = importlib.import_module("fsaf_d2.training.launch")
ENVIRONMENT = {
    **{"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
    **{"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
}


@pytest.fixture
def environment(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def test_torchrun_is_known_by_its_environment(environment):
    assert torchrun_process() == TorchrunProcess(
        rank=5, world_size=8, local_rank=1, local_world_size=4
    )


@pytest.mark.parametrize("missing", ENVIRONMENT)
def test_a_part_of_the_environment_is_not_torchrun(environment, monkeypatch, missing):
    monkeypatch.delenv(missing)
    assert torchrun_process() is None


def test_without_torchrun_detectron2_starts_the_processes(monkeypatch):
    calls = []
    monkeypatch.setattr(
        MODULE, "detectron2_launch", lambda *args, **kwargs: calls.append((args, kwargs))
    )
    launch(print, 8, num_machines=2, machine_rank=1, dist_url="tcp://host:1", args=("a",))
    expected = {"num_machines": 2, "machine_rank": 1, "dist_url": "tcp://host:1", "args": ("a",)}
    assert calls == [((print, 8), expected)]


def test_a_single_process_can_always_say_what_is_wrong():
    assert first_to_fail() and first_to_fail()


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cuda", [("set_device", 1), ("init", "nccl", 5, 8), "main", "synchronize", "destroy"]),
        ("cpu", [("init", "gloo", 5, 8), "main", "synchronize", "destroy"]),
    ],
)
def test_the_device_decides_how_processes_talk(environment, monkeypatch, device, expected):
    done = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: done.append(("set_device", index)))
    monkeypatch.setattr(
        torch.distributed,
        "init_process_group",
        lambda backend, rank, world_size, **_: done.append(("init", backend, rank, world_size)),
    )
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: done.append("destroy"))
    monkeypatch.setattr(MODULE.comm, "synchronize", lambda: done.append("synchronize"))
    monkeypatch.setattr(MODULE, "_store", lambda: None)
    monkeypatch.setattr(MODULE, "_wait_until_all_are_here", lambda process: None)
    monkeypatch.setattr(MODULE, "_create_local_process_group", lambda process: None)
    launch(lambda: done.append("main"), device=device)
    assert done == expected


def test_machines_may_have_different_numbers_of_processes(environment, monkeypatch):
    def all_gather(gathered, own):
        assert own == 4
        gathered[:] = [0, 0, 0, 0, 4, 4, 4, 7]

    groups = []
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    monkeypatch.setattr(
        torch.distributed,
        "new_subgroups_by_enumeration",
        lambda ranks: (groups.append(ranks) or "own", []),
    )
    monkeypatch.setattr(MODULE.comm, "_LOCAL_PROCESS_GROUP", None)
    MODULE._create_local_process_group(torchrun_process())
    assert groups == [[[0, 1, 2, 3], [4, 5, 6], [7]]]
    assert MODULE.comm._LOCAL_PROCESS_GROUP == "own"


def test_nobody_waits_for_a_process_that_has_failed(environment, monkeypatch):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(MODULE, "_store", lambda: store)
    process = torchrun_process()._replace(world_size=2)
    assert first_to_fail() and not first_to_fail()
    with pytest.raises(SystemExit, match="1"):
        MODULE._wait_until_all_are_here(process)
    MODULE._wait_until_all_are_here(process)
