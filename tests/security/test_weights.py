"""Files of weights that do harm are refused; those that there are load as in detectron2."""

import builtins
import collections
import functools
import gzip
import hashlib
import io
import os
import pickle
import random
import struct
import subprocess
import tarfile
import timeit
import zipfile

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from weights_of_strangers import archive, old_torch, saved, zoo

from fsaf_d2.training import SafeCheckpointer, load_weights
from fsaf_d2.weights.weights_files import WeightsFileError, load_file


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def code(marker: str) -> str:
    return f"import os; os.mkdir({marker!r})"


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def build_trick(marker: str) -> bytes:
    """A partial that BUILD turns into another one."""
    state = pickle.dumps((os.mkdir, (marker,), {}, {}), 2)[2:-1]
    return b"\x80\x02cfunctools\npartial\ncbuiltins\nprint\n\x85R" + state + b"b)R."


# Pickles that make a folder, from its name.
PICKLES = {
    "reduce, protocol 0": lambda marker: pickle.dumps(Call(os.mkdir, marker), 0),
    "reduce, protocol 2": lambda marker: pickle.dumps(Call(os.mkdir, marker), 2),
    "reduce, protocol 4": lambda marker: pickle.dumps(Call(os.mkdir, marker), 4),
    "inst": lambda marker: f"(S'{marker}'\nios\nmkdir\n.".encode(),
    "obj": lambda marker: f"(cos\nmkdir\nS'{marker}'\no.".encode(),
    "build": build_trick,
    "exec": lambda marker: pickle.dumps(Call(builtins.exec, code(marker)), 2),
    "eval": lambda marker: pickle.dumps(
        Call(builtins.eval, f"__import__('os').mkdir({marker!r})"), 2
    ),
    "timeit": lambda marker: pickle.dumps(
        Call(timeit.timeit, code(marker), "pass", timeit.default_timer, 1), 2
    ),
    "another process": lambda marker: pickle.dumps(
        Call(subprocess.check_call, ["mkdir", marker]), 2
    ),
    "pickle in a pickle": lambda marker: pickle.dumps(
        Call(pickle.loads, pickle.dumps(Call(os.mkdir, marker), 2)), 3
    ),
    "name with dots": lambda marker: (
        b"\x80\x04" + short("torch") + short("os.mkdir") + b"\x93" + short(marker) + b"\x85R."
    ),
    "name of an admitted module": lambda marker: (
        b"\x80\x04"
        + short("collections")
        + short("_sys.modules.__getitem__")
        + b"\x93"
        + short("os")
        + b"\x85R0"
        + short("posix")
        + short("mkdir")
        + b"\x93"
        + short(marker)
        + b"\x85R."
    ),
    "reduce among weights": lambda marker: zoo(
        weight=np.zeros(3, np.float32), bias=Call(os.mkdir, marker)
    ),
    "reduce as a key": lambda marker: pickle.dumps({Call(os.mkdir, marker): 1}, 2),
    "partial": lambda marker: pickle.dumps(Call(functools.partial(os.mkdir, marker)), 2),
}


CONTAINERS = {
    "weights.pkl": lambda content: content,
    "weights.pth": lambda content: content,
    "archive.pth": archive,
    "archive.pt": archive,
    "archive.pkl": archive,
    "old.pth": old_torch,
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", PICKLES)
def test_code_is_not_run(tmp_path, little_memory, kind, container):
    marker = tmp_path / "marker"
    file = tmp_path / container
    file.write_bytes(CONTAINERS[container](PICKLES[kind](str(marker))))
    with pytest.raises(WeightsFileError, match=rf"{container}' is (refused|no whole checkpoint)"):
        load_file(file)
    with pytest.raises(ValueError, match=rf"MODEL\.WEIGHTS .*{container}"):
        load_weights(SafeCheckpointer(torch.nn.Linear(1, 1)), str(file), resume=False)
    with pytest.raises(ValueError, match=rf"MODEL\.WEIGHTS .*{container}"):
        load_weights(DetectionCheckpointer(torch.nn.Linear(1, 1)), str(file), resume=False)
    assert os.listdir(tmp_path) == [container]


@pytest.mark.parametrize("kind", PICKLES)
def test_the_code_would_run(tmp_path, kind):
    pickle.loads(PICKLES[kind](str(tmp_path / "marker")))
    assert os.listdir(tmp_path) == ["marker"]


@pytest.mark.parametrize("container", CONTAINERS)
def test_trusted_code_is_run_and_announced(tmp_path, capsys, container):
    marker = tmp_path / "marker"
    file = tmp_path / container
    file.write_bytes(CONTAINERS[container](PICKLES["reduce, protocol 2"](str(marker))))
    checkpointer = SafeCheckpointer(torch.nn.Linear(1, 1), trust=True)
    with pytest.raises(ValueError, match="NoneType where weights"):
        load_weights(checkpointer, str(file), resume=False)
    assert marker.exists()
    assert f"--trust-weights: code in '{file}' is run" in capsys.readouterr().out


def array_pickle(shape: tuple, dtype: object, content: object) -> bytes:
    """A model-zoo file with an array of which all can be lied about."""

    class Lie:
        def __reduce__(self):
            return (
                np.zeros(0).__reduce__()[0],
                (np.ndarray, (0,), b"b"),
                (1, shape, dtype, False, content),
            )

    return zoo(weight=Lie())


def shadowed() -> collections.OrderedDict:
    weights = collections.OrderedDict(weight=np.zeros(1))
    weights.items = collections.OrderedDict
    return weights


def tar(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    return buffer.getvalue()


def renamed(name: str) -> bytes:
    return archive(pickle.dumps({}, 2), {name: b"content"})


def link_archive() -> bytes:
    buffer = io.BytesIO(archive(pickle.dumps({}, 2)))
    with zipfile.ZipFile(buffer, "a") as file:
        entry = zipfile.ZipInfo("archive/data/0")
        entry.external_attr = 0o120777 << 16
        file.writestr(entry, "/etc/passwd")
    return buffer.getvalue()


def doubled_archive() -> bytes:
    buffer = io.BytesIO(archive(pickle.dumps({}, 2)))
    with zipfile.ZipFile(buffer, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("archive/data.pkl", pickle.dumps({"other": 1}, 2))
    return buffer.getvalue()


def overlapping_archive() -> bytes:
    """Every entry of the directory leads to the same part."""
    content = archive(pickle.dumps({}, 2), {f"archive/data/{i}": bytes(9999) for i in range(9)})
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        entries = file.infolist()
    start = content.index(b"PK\x01\x02")
    first = next(entry.header_offset for entry in entries if entry.filename.endswith("/0"))
    directory = content[start:]
    for entry in entries:
        if entry.filename.startswith("archive/data/"):
            old = struct.pack("<L", entry.header_offset) + entry.filename.encode()
            new = struct.pack("<L", first) + entry.filename.encode()
            directory = directory.replace(old, new)
    end = directory.rindex(b"PK\x05\x06")
    cut = first + 30 + len("archive/data/0") + 9999
    footer = directory[end : end + 16] + struct.pack("<L", cut) + directory[end + 20 :]
    return content[:cut] + directory[:end] + footer


def encrypted_archive() -> bytes:
    content = archive(pickle.dumps({}, 2))
    return content.replace(b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01")


def torchscript() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.zeros(1, 1)), buffer)
    return buffer.getvalue()


def tensor_pickle(before: bytes, after: bytes) -> bytes:
    """The pickle of one number in a tensor, with a lie about it."""
    with zipfile.ZipFile(io.BytesIO(saved({"weight": torch.zeros(1)}))) as file:
        content = file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))
    assert content.count(before) == 1
    return content.replace(before, after)


def storage_pickle(size: int) -> bytes:
    """A storage that is said to have so many numbers."""
    return tensor_pickle(b"cpuq\x06K\x01", b"cpuq\x06\x8a\x08" + struct.pack("<q", size))


def old_tensor(before: bytes, after: bytes) -> bytes:
    """An old checkpoint of one number, with a lie about it."""
    content = saved({"weight": torch.zeros(1)}, _use_new_zipfile_serialization=False)
    assert content.count(before) == 1
    return content.replace(before, after)


HUGE = b"cpuq\x06\x8a\x08" + struct.pack("<q", 2**40)
ONE, MANY = b"K\x00K\x01\x85", b"K\x00\x8a\x08" + struct.pack("<q", 100) + b"\x85"


def sized(name: str) -> bytes:
    """A call with 2**40, of what torch.load(weights_only=True) admits."""
    return archive(f"\x80\x02c{name}\n\x8a\x06\0\0\0\0\0\x01\x85R.".encode("latin1"))


# name: contents, and a word of the error
FILES = {
    "empty.pth": (lambda: b"", "is empty"),
    "empty.pkl": (lambda: b"", "is empty"),
    "page.pth": (lambda: b"<!DOCTYPE html><html>Sign in</html>", "no whole checkpoint"),
    "pointer.pth": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "no whole"),
    "random.pkl": (lambda: random.Random(0).randbytes(1000), "no whole checkpoint"),
    "cut_archive.pth": (lambda: saved({"weight": torch.zeros(99)})[:-100], "no whole"),
    "cut_pickle.pkl": (lambda: zoo(weight=np.zeros(99))[:-100], "cut off"),
    "cut_old.pth": (
        lambda: saved({"w": torch.zeros(99)}, _use_new_zipfile_serialization=False)[:-100],
        "no whole checkpoint",
    ),
    "archive_start.pth": (lambda: b"PK\x03\x04", "no whole checkpoint"),
    "list.pkl": (lambda: pickle.dumps([1, 2]), "holds a list"),
    "list.pth": (lambda: saved([torch.zeros(1)]), "holds a list"),
    "number.pth": (lambda: saved(3), "holds a int"),
    "tensor.pth": (lambda: saved(torch.zeros(2)), "holds a Tensor"),
    "texts.pkl": (lambda: zoo(weight="text"), "'weight' is a str"),
    "numbered.pth": (lambda: saved({"model": {3: torch.zeros(1)}}), "entry 3"),
    "no_weights.pth": (lambda: saved({"model": None}), "holds a NoneType"),
    "module.pth": (lambda: saved(torch.nn.Linear(1, 1)), "imports 'torch.nn"),
    "torchscript.pth": (torchscript, "refused"),
    "model.torchscript": (torchscript, "By its name it is an exported detector"),
    "model.onnx": (lambda: b"\x08\x08\x12\x07pytorch", "By its name it is an exported detector"),
    "numpy.npy": (lambda: b"\x93NUMPY\x01\x00" + bytes(100), "it is broken"),
    "huge_header.safetensors": (lambda: struct.pack("<Q", 2**62) + b"{}", "no whole"),
    "long_header.safetensors": (
        lambda: struct.pack("<Q", 2**22 + 1) + b"{" + b" " * 2**22,
        "header has more than 4194304 bytes",
    ),
    "compressed.pkl": (lambda: gzip.compress(zoo(weight=np.zeros(1))), "no whole"),
    "link.tar": (lambda: tar("storages"), "refused"),
    "up.tar": (lambda: tar("../../storages"), "no whole checkpoint"),
    "bomb.pth": (
        lambda: archive(
            pickle.dumps({}, 2),
            {"archive/data/0": bytes(2**26)},
            compression=zipfile.ZIP_DEFLATED,
        ),
        "is compressed",
    ),
    "encrypted.pth": (encrypted_archive, "encrypted"),
    "overlapping.pth": (overlapping_archive, "lie in one another"),
    "doubled.pth": (doubled_archive, "lie in one another"),
    "up.pth": (lambda: renamed("archive/../../../evil"), "named as torch"),
    "absolute.pth": (lambda: renamed("/tmp/evil"), "named as torch"),
    "backslashes.pth": (lambda: renamed("..\\..\\evil"), "named as torch"),
    "drive.pth": (lambda: renamed("C:/evil"), "named as torch"),
    "link.pth": (link_archive, "named as torch"),
    "other_archive.pth": (
        lambda: archive(b"", {"other/data.pkl": pickle.dumps({}, 2)}),
        "not one of torch",
    ),
    "objects.pkl": (lambda: array_pickle((1,), np.dtype("O"), [b"x"]), "only numbers"),
    "records.pkl": (lambda: array_pickle((1,), np.dtype([("a", "f4")]), b"xxxx"), "only numbers"),
    "pointers.pkl": (
        lambda: array_pickle((1,), np.dtype([("a", "O")]), b"x" * 8),
        "only numbers",
    ),
    "huge_array.pkl": (lambda: array_pickle((2**40,), np.dtype("f4"), b"xxxx"), "claims an array"),
    "overflow.pkl": (
        lambda: array_pickle((2**32, 2**32), np.dtype("f4"), b""),
        "claims an array",
    ),
    "negative.pkl": (lambda: array_pickle((-1, -1), np.dtype("f4"), b"xxxx"), "no whole"),
    "called_array.pkl": (
        lambda: zoo(weight=Call(np.ndarray, (2**34,), np.dtype("f8"))),
        "no whole checkpoint",
    ),
    "huge_memo.pkl": (lambda: b"\x80\x02]r\xff\xff\xff\xffs.", "more memory"),
    "huge_memo.pth": (lambda: archive(b"\x80\x02]r\xff\xff\xff\xffs."), "more memory"),
    "huge_text_memo.pkl": (lambda: b"]p4000000000\n.", "more memory"),
    "huge_bytes.pkl": (lambda: b"\x80\x04\x8e" + struct.pack("<Q", 2**45) + b".", "no whole"),
    "huge_bytearray.pkl": (lambda: b"\x80\x05\x96" + struct.pack("<Q", 2**45) + b".", "no whole"),
    "huge_frame.pkl": (lambda: b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.", "more memory"),
    "codec.pkl": (lambda: zoo(weight=Call(__import__("_codecs").encode, "x", "rot13")), "encoding"),
    "shadowed.pkl": (lambda: pickle.dumps({"model": shadowed(), "__author__": "x"}), "attributes"),
    "shadowed.pth": (
        lambda: saved({"model": collections.OrderedDict(), "x": shadowed()}),
        "attributes",
    ),
    "changed_reader.pkl": (
        lambda: b"\x80\x02c_codecs\nencode\n" + pickle.dumps((None, {"x": 1}), 2)[2:-1] + b"b.",
        "changes what reads it",
    ),
    "persistent.pkl": (lambda: b"\x80\x02K\x01Q.", "no storage of torch"),
    "extension.pkl": (lambda: b"\x80\x02\x82\x01.", "uses EXT1"),
    "deep.pkl": (lambda: b"(" * 100_000 + b"t" * 100_000 + b".", "nested 100 deep"),
    "bytearray.pth": (lambda: sized("builtins\nbytearray"), "bytearray"),
    "tensor_size.pth": (lambda: sized("torch\nFloatTensor"), "FloatTensor"),
    "storage_size.pth": (lambda: sized("torch.storage\nUntypedStorage"), "UntypedStorage"),
    "huge_storage.pth": (
        lambda: archive(storage_pickle(2**40), {"archive/data/0": bytes(4)}),
        "claims 4398046511104 bytes",
    ),
    "huge_old_storage.pth": (
        lambda: old_tensor(b"cpuq\x06K\x01", HUGE),
        "claims 4398046511104 bytes",
    ),
    # Torch could show what the memory held before.
    "grown.pth": (
        lambda: archive(tensor_pickle(ONE, MANY), {"archive/data/0": bytes(4)}),
        "no whole checkpoint",
    ),
    "grown_old.pth": (lambda: old_tensor(ONE, MANY), "no whole checkpoint"),
    "expanded.pth": (lambda: saved({"weight": torch.zeros(1).expand(2**40)}), "larger than"),
    "resnet-abcdef12.pth": (lambda: saved({"weight": torch.zeros(1)}), "abcdef12.* starts with"),
    "R-50-0a1b2c3d4e.pkl": (lambda: zoo(weight=np.zeros(1)), "0a1b2c3d4e"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_of_weights_is_refused(tmp_path, little_memory, name):
    build, words = FILES[name]
    file = tmp_path / name
    file.write_bytes(build())
    with pytest.raises(WeightsFileError, match=rf"(?s){name}.*{words}") as error:
        load_file(file)
    assert "weights_only" not in str(error.value) and "\n" not in str(error.value)
    assert os.listdir(tmp_path) == [name]


def test_folders_and_pipes_are_refused(tmp_path):
    with pytest.raises(OSError):
        load_file(tmp_path)
    with pytest.raises(OSError, match="'/dev/zero' is a device, not a file"):
        load_file("/dev/zero")


def test_an_old_torch_is_warned_of(tmp_path, monkeypatch, caplog):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "net.pth")
    load_file(tmp_path / "net.pth")
    assert "CVE" not in caplog.text or torch.__version__ < "2.10"
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    load_file(tmp_path / "net.pth")
    assert "CVE-2026-24747" in caplog.text


def test_a_name_with_the_right_hash_passes(tmp_path):
    content = saved({"weight": torch.zeros(1)})
    digest = hashlib.sha256(content).hexdigest()
    # A date is no hash.
    for name in (f"net-{digest[:8]}.pth", f"net-{digest}.pth", "net-20261121.pth"):
        (tmp_path / name).write_bytes(content)
        assert torch.equal(load_file(tmp_path / name)["model"]["weight"], torch.zeros(1))


def test_a_name_of_detectron2s_zoo_carries_the_md5(tmp_path):
    content = pickle.dumps({"model": {"x": np.zeros(1)}, "__author__": "zoo"})
    digest = hashlib.md5(content).hexdigest()[:6]
    right, wrong = (tmp_path / f"model_final_{x}.pkl" for x in (digest, "bfca0b"))
    for file in (right, wrong):
        file.write_bytes(content)
    assert load_file(right)["model"]["x"] == 0
    words = rf"bfca0b\.pkl.* MD5 starts with bfca0b, but it starts with {digest}"
    with pytest.raises(WeightsFileError, match=words):
        load_file(wrong)
    # What a run of one's own is called is no hash.
    wrong.rename(tmp_path / "model_final_090000.pth")
    load_file(tmp_path / "model_final_090000.pth")


WEIGHTS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bias": np.array([-1.5, 2], ">f8"),
    "steps": np.array(7),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "half": np.zeros((0, 3), np.float16),
}


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol_load(tmp_path, protocol):
    data = {
        "model": collections.OrderedDict(WEIGHTS),
        "__author__": "somebody",
        "matching_heuristics": True,
        "scale": np.float32(0.5),
        "nested": [{"array": WEIGHTS["weight"]}, (1, "two", b"\xff", None)],
    }
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(data, protocol))
    found = load_file(tmp_path / "zoo.pkl")
    assert found["matching_heuristics"] is True and found["scale"] == np.float32(0.5)
    for name, expected in WEIGHTS.items():
        assert type(found["model"][name]) is np.ndarray
        np.testing.assert_array_equal(found["model"][name], expected)
        assert found["model"][name].dtype == expected.dtype.newbyteorder("=")
    assert type(found["nested"][0]["array"]) is np.ndarray


def test_pickles_of_python_2_and_old_numpy_load(tmp_path):
    content = (
        b"\x80\x02}q\x00U\x05blobsq\x01}q\x02(U\x07conv1_wq\x03cnumpy.core.multiarray\n"
        b"_reconstruct\nq\x04cnumpy\nndarray\nq\x05K\x00\x85q\x06U\x01bq\x07\x87q\x08Rq\t(K\x01K"
        b"\x02\x85q\ncnumpy\ndtype\nq\x0bU\x02f4q\x0cK\x00K\x01\x87q\rRq\x0e(K\x03U\x01<q\x0fNNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x10b\x89U\x08\x00\x00\x80?\x00\x00\x00\xc0q"
        b"\x11tq\x12bU\x10conv1_w_momentumq\x13h\tus."
    )
    (tmp_path / "R-50.pkl").write_bytes(content)
    found = load_file(tmp_path / "R-50.pkl")
    assert found["__author__"] == "Caffe2" and found["matching_heuristics"]
    assert list(found["model"]) == ["conv1_w"]
    assert found["model"]["conv1_w"].tolist() == [1, -2]


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_checkpoints_of_torch_load(tmp_path, new, dtype):
    weights = torch.nn.Linear(3, 2).to(torch.float32).state_dict()
    weights["buffer"] = torch.ones(4, dtype=dtype)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 3, 5])
    checkpoint = {
        "model": weights,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "iteration": 3,
        "random": (3, [1, 2], b"bytes", torch.get_rng_state()),
        "set": {1, 2},
    }
    file = tmp_path / "checkpoint.pth"
    torch.save(checkpoint, file, _use_new_zipfile_serialization=new)
    found = load_file(file)
    assert found.keys() == checkpoint.keys()
    for name, expected in weights.items():
        assert torch.equal(found["model"][name], expected)
    assert found["scheduler"] == scheduler.state_dict()
    assert found["model"]._metadata == weights._metadata
    for plain in (weights, {"state_dict": weights, "meta": {"epoch": 3}}):
        torch.save(plain, file, _use_new_zipfile_serialization=new)
        assert load_file(file)["model"].keys() == weights.keys()


def test_heuristics_can_be_asked_for(tmp_path):
    model = torch.nn.ModuleDict({"other": torch.nn.ModuleDict({"x": torch.nn.Linear(1, 1)})})
    torch.save({"x.weight": torch.ones(1, 1), "x.bias": torch.ones(1)}, tmp_path / "net.pth")
    SafeCheckpointer(model).load(f"{tmp_path / 'net.pth'}?matching_heuristics=True")
    assert model["other"]["x"].weight.item() == 1
    with pytest.raises(ValueError, match="unknown options trick"):
        SafeCheckpointer(model).load(f"{tmp_path / 'net.pth'}?trick=True")


def test_what_it_saves_it_loads(tmp_path):
    model, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    SafeCheckpointer(model, str(tmp_path)).save("model_final", iteration=3)
    checkpointer = SafeCheckpointer(other, str(tmp_path))
    assert load_weights(checkpointer, "", resume=True) == {"iteration": 3}
    assert torch.equal(model.weight, other.weight)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../outside.pth", "link.pth", "down/../../outside.pth", "", "\0", "linked/x"],
)
def test_last_checkpoint_stays_in_its_folder(tmp_path, name):
    output = tmp_path / "output"
    output.mkdir()
    outside = tmp_path / "outside.pth"
    torch.save(torch.nn.Linear(1, 1).state_dict(), outside)
    (output / "link.pth").symlink_to(outside)
    (output / "linked").symlink_to(tmp_path)
    (output / "last_checkpoint").write_text(name)
    checkpointer = SafeCheckpointer(torch.nn.Linear(1, 1), str(output))
    with pytest.raises(WeightsFileError, match="last_checkpoint' must name a file in its own"):
        load_weights(checkpointer, "", resume=True)


def test_last_checkpoint_that_is_no_text(tmp_path):
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(WeightsFileError, match="last_checkpoint"):
        SafeCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).get_checkpoint_file()


def test_the_output_folder_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "output").symlink_to(tmp_path / "real")
    checkpointer = SafeCheckpointer(torch.nn.Linear(1, 1), str(tmp_path / "output"))
    assert checkpointer.get_checkpoint_file() == ""
    checkpointer.save("model_1")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "output/model_1.pth")


SEEDS = {
    "zoo.pkl": lambda: zoo(**WEIGHTS),
    "zoo_2.pkl": lambda: pickle.dumps({"blobs": WEIGHTS}, 2),
    "new.pth": lambda: saved(torch.nn.Linear(3, 2).state_dict()),
    "old.pth": lambda: saved(
        torch.nn.Linear(3, 2).state_dict(), _use_new_zipfile_serialization=False
    ),
}
ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "300"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:Duplicate name")
@pytest.mark.parametrize("name", SEEDS)
def test_bytes_changed_at_random_load_or_are_refused(tmp_path, little_memory, name):
    rng = random.Random(name)
    whole = SEEDS[name]()
    file = tmp_path / name
    refused = 0
    for _ in range(ROUNDS):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(content))
            match rng.randrange(4):
                case 0:
                    content[place] = rng.randrange(256)
                case 1:
                    del content[place : place + rng.choice((1, 2, 9, 99))]
                case 2:
                    content[place:place] = rng.randbytes(rng.choice((1, 2, 9)))
                case 3:
                    start = rng.randrange(len(content))
                    content[place:place] = content[start : start + rng.choice((2, 9, 99))]
            content = content or bytearray(b"x")
        file.write_bytes(content)
        try:
            load_file(file)
        except WeightsFileError as error:
            refused += 1
            assert name in str(error)
    assert refused > ROUNDS // 10
    assert os.listdir(tmp_path) == [name]
