"""Pickles of few bytes that cost much to read, and archives that two readers read differently."""

import faulthandler
import io
import pickle
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from weights_of_strangers import archive, old_torch, saved

from fsaf_d2.weights.pickle_checks import MAX_CHOSEN_KEYS, MAX_INT_BITS, MAX_STEPS
from fsaf_d2.weights.torch_archives import MAX_DIRECTORY
from fsaf_d2.weights.weights_files import WeightsFileError, load_file


@pytest.fixture
def little_time():
    """Fail after 10 s of this process, also where no signal gets through."""
    start = time.process_time()
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    assert time.process_time() - start < 10


def nested(times: int, start: bytes = b"", end: bytes = b"\x86") -> bytes:
    """A value in a tuple with itself, and so on; the last one lies on the stack."""
    lines = [b")"]
    for index in range(times):
        number = struct.pack("<B", index)
        lines += [b"q", number, b"0", start, b"h", number, b"h", number, end]
    return b"".join(lines)


def long4(bits: int) -> bytes:
    number = pickle.encode_long(1 << bits)
    return b"\x8b" + struct.pack("<i", len(number)) + number


def colliding(count: int) -> bytes:
    """A dict whose keys all have the hash 0."""
    numbers = {i * (2**61 - 1): None for i in range(1, count)}
    return pickle.dumps(numbers, 2)[2:-1]


def top_down() -> bytes:
    made = b"".join(b"]q" + bytes([i]) + b"0" for i in range(60))
    filled = b"".join(
        b"h" + bytes([i]) + b"(h" + bytes([i + 1]) + b"h" + bytes([i + 1]) + b"e0"
        for i in range(59)
    )
    return made + filled + b"h\0"


ENCODE = b"c_codecs\nencode\n"
TEXT = b"X" + struct.pack("<I", 100_000) + b"x" * 100_000
COSTLY = {
    "key of tuples": (b"}" + nested(60) + b"Ns", "unfold to more"),
    "key of few tuples": (b"}" + nested(9) + b"Ns", "key of more than"),
    "set of tuples": (b"c__builtin__\nset\n(](" + nested(18) + b"h\x11" * 9 + b"etR", "steps|unf"),
    "shared tuples in calls": (
        b"ccollections\nOrderedDict\nq\xff0" + nested(17) + b"\x85q\xfe0" + b"h\xffh\xfeR0" * 99,
        "steps",
    ),
    "shared lists": (nested(60, b"(", b"l"), "unfold to more"),
    "lists filled from the top": (top_down(), "has put into another"),
    "a list in itself": (b"]q\0h\0a", "nested|unfold|put into"),
    "deep lists": (b"]" * 2000 + b"a" * 1999, "nested 100 deep"),
    "punycode": (
        ENCODE + TEXT + b"X\x08\0\0\0punycode\x86R",
        "encoding 'punycode'",
    ),
    "idna": (ENCODE + TEXT + b"X\x04\0\0\0idna\x86R", "encoding 'idna'"),
    "errors of codecs": (
        ENCODE + TEXT + b"X\x05\0\0\0utf-8X\x0b\0\0\0namereplace\x87R",
        "encoding",
    ),
    "texts encoded again and again": (
        TEXT + b"\x85q\x010" + ENCODE + b"q\x020](" + b"h\x02h\x01R" * 99 + b"e",
        "copies its texts",
    ),
    "huge number": (long4(MAX_INT_BITS), "whole number of more than 256 bits"),
    "huge number as a key": (b"}" + long4(8 * 10**6) + b"Ns", "whole number of more than 256"),
    "number in letters": (b"L" + b"1" * 4000 + b"L\n", "whole number of more than 256 bits"),
    "keys that collide": (colliding(MAX_CHOSEN_KEYS + 2), "of its keys are no names"),
    "set that collides": (
        b"c__builtin__\nset\n" + pickle.dumps([*range(2**40, 2**40 + 10_001)], 2)[2:-1] + b"\x85R",
        "of its keys are no names",
    ),
    "long key": (b"}X" + struct.pack("<I", 10**5) + b"x" * 10**5 + b"Ns", "4096 letters"),
    "far memo": (
        b"]r" + struct.pack("<I", 2**21) + b"X" + struct.pack("<I", 2**22) + b"x" * 2**22,
        "more memory",
    ),
    "text without end": (b"\x8d" + struct.pack("<Q", 2**62), "expected 4611"),
    "global without end": (b"c" + b"x" * 10**6, "no newline"),
}
WRAPPED = {
    "zoo.pkl": lambda content: content,
    "new.pth": archive,
    "old.pth": old_torch,
}


@pytest.mark.parametrize("container", WRAPPED)
@pytest.mark.parametrize("kind", COSTLY)
def test_what_costs_much_to_read_is_refused(tmp_path, little_memory, little_time, kind, container):
    content, words = COSTLY[kind]
    file = tmp_path / container
    file.write_bytes(WRAPPED[container](b"\x80\x02" + content + b"."))
    with pytest.raises(WeightsFileError, match=rf"{container}' is (refused: |no whole).*({words})"):
        load_file(file)


@pytest.mark.parametrize("content", [b"N0", b"]0", b"2", b"("])
@pytest.mark.parametrize("container", WRAPPED)
def test_steps_are_counted(tmp_path, monkeypatch, container, content):
    monkeypatch.setattr("fsaf_d2.weights.pickle_checks.MAX_STEPS", 1000)
    file = tmp_path / container
    file.write_bytes(WRAPPED[container](b"\x80\x02]" + content * 1000 + b"."))
    with pytest.raises(WeightsFileError, match="to read it takes more than 1000 steps"):
        load_file(file)


@pytest.mark.slow
@pytest.mark.parametrize(("content", "opcodes"), [(b"N0", 2), (b"N2", 2), (b"(", 1), (b"]q\0", 2)])
@pytest.mark.parametrize("container", WRAPPED)
def test_all_steps_take_little_time(
    tmp_path, little_memory, little_time, container, content, opcodes
):
    file = tmp_path / container
    for steps in (MAX_STEPS - 100, MAX_STEPS):
        whole = b"\x80\x02]" + content * (steps // opcodes) + b"."
        file.write_bytes(WRAPPED[container](whole))
        with pytest.raises(WeightsFileError) as error:
            load_file(file)
        assert (steps == MAX_STEPS) == ("takes more than" in str(error.value))


def storage(key: bytes, numel: int, kind: bytes = b"FloatStorage") -> bytes:
    """A tensor of all numbers of a storage."""
    number = b"J" + struct.pack("<i", numel)
    text = b"X" + struct.pack("<I", len(key)) + key
    name = b"(X\x07\0\0\0storagectorch\n" + kind + b"\n" + text + b"X\x03\0\0\0cpu" + number + b"tQ"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + name + b"K\0" + number + b"\x85K\x01\x85\x89"
        b"ccollections\nOrderedDict\n)RtR"
    )


def weights(*tensors: bytes) -> bytes:
    named = (b"X\x01\0\0\0" + bytes([65 + i]) + x for i, x in enumerate(tensors))
    return b"\x80\x02}(" + b"".join(named) + b"u."


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([storage(b"0", 5)], "claims 20 bytes of numbers in '0'"),
        ([storage(b"0", 4, b"DoubleStorage")], "claims 32 bytes"),
        ([storage(b"0", 4), storage(b"0", 4, b"DoubleStorage")], "claims 32 bytes"),
        ([storage(b"0", 4), storage(b"1", 1)], "in '1'"),
        ([storage(b"A", 4), storage(b"a", 4)], "in '[aA]'"),
        ([storage(b"../data/0", 4)], "data/0"),
        ([storage(b"0", -4)], "claims|no storage"),
        ([b"N\x85Q"], "no storage of torch"),
        ([nested(20) + b"Q"], "no storage|unfold"),
    ],
)
def test_storages_are_those_of_the_archive(tmp_path, little_time, tensors, words):
    file = tmp_path / "a.pth"
    parts = {"archive/data/0": np.arange(4, dtype=np.float32).tobytes()}
    file.write_bytes(archive(weights(storage(b"0", 4)), parts))
    assert load_file(file)["model"]["A"].tolist() == [0, 1, 2, 3]
    file.write_bytes(archive(weights(*tensors), parts))
    with pytest.raises(WeightsFileError, match=rf"is refused: .*({words})"):
        load_file(file)


GOOD, BAD = pickle.dumps({"model": {}}, 2), pickle.dumps({"model": {}, "hidden": 1}, 2)


def end_of(content: bytes) -> tuple[bytes, bytes, list[int]]:
    """The parts of an archive, its directory and the numbers of its end."""
    numbers = list(struct.unpack("<4s4H2LH", content[-22:]))
    start, length = numbers[6], numbers[5]
    return content[:start], content[start : start + length], numbers


def with_end(content: bytes, **changes: int) -> bytes:
    names = ("mark", "disk", "first_disk", "here", "count", "length", "start", "comment")
    numbers = dict(zip(names, struct.unpack("<4s4H2LH", content[-22:])), **changes)
    return content[:-22] + struct.pack("<4s4H2LH", *numbers.values())


def end64(content: bytes, start: int, length: int, count: int, told: int) -> bytes:
    """A large end, behind which a small one follows."""
    numbers = (b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start)
    end = struct.pack("<4sQ2H2L4Q", *numbers) + struct.pack("<4sLQL", b"PK\6\7", 0, told, 1)
    return content[:-22] + end + content[-22:]


def two_directories() -> bytes:
    """The small end leads to one directory and the large one to another."""
    parts, directory, _ = end_of(archive(GOOD))
    other_directory = end_of(archive(BAD))[1]
    body = parts + directory + other_directory
    start = len(parts) + len(directory)
    small = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 3, 3, len(directory), len(parts), 0)
    return end64(body + small, start, len(other_directory), 3, len(body))


def large_end_elsewhere() -> bytes:
    """One reader looks before the locator, another where it points to."""
    content = archive(GOOD)
    _, directory, numbers = end_of(content)
    return end64(content, numbers[6], len(directory), 3, 7)


def concatenated() -> bytes:
    return archive(BAD) + archive(GOOD)


def second_name() -> bytes:
    content = archive(GOOD, {"archive/data/0": b"1234"})
    return content.replace(b"archive/data/0", b"archive/data/1", 1)


def with_comment() -> bytes:
    buffer = io.BytesIO(archive(GOOD))
    with zipfile.ZipFile(buffer, "a") as file:
        file.comment = archive(BAD)
    return buffer.getvalue()


def twice() -> bytes:
    content = archive(GOOD)
    return content + content[-22:]


def hidden_part() -> bytes:
    """Between the parts and the directory lies one that the directory does not name."""
    parts, directory, _ = end_of(archive(GOOD))
    hidden = end_of(archive(BAD))[0]
    content = parts + hidden + directory + bytes(22)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 3, 3, len(directory), len(parts + hidden), 0)
    return content[:-22] + end


def other_capitals(*names: str) -> bytes:
    return archive(GOOD, dict.fromkeys(names, BAD))


AMBIGUOUS = {
    "capitals of the pickle": lambda: other_capitals("archive/DATA.pkl"),
    "capitals of the folder": lambda: other_capitals("ARCHIVE/data.pkl"),
    "capitals of storages": lambda: other_capitals("archive/data/a", "archive/data/A"),
    "two pickles": lambda: other_capitals("other/data.pkl"),
    "pickle in a folder": lambda: archive(GOOD).replace(b"archive/data.pkl", b"a/chive/data.pkl"),
    "two directories": two_directories,
    "large end elsewhere": large_end_elsewhere,
    "two archives": concatenated,
    "prefix": lambda: b"PK\3\4" + bytes(99) + archive(GOOD),
    "bytes behind": lambda: archive(GOOD) + bytes(9),
    "comment": with_comment,
    "end twice": twice,
    "second name": second_name,
    "hidden part": hidden_part,
    "disk": lambda: with_end(archive(GOOD), disk=1),
    "first disk": lambda: with_end(archive(GOOD), first_disk=1),
    "entries": lambda: with_end(archive(GOOD), count=2),
    "fewer entries": lambda: with_end(archive(GOOD), count=2, here=2),
    "no entries": lambda: with_end(archive(GOOD), count=0, here=0, length=0),
    "directory before": lambda: with_end(archive(GOOD), start=4),
    "directory too long": lambda: with_end(archive(GOOD), length=2**31),
    "directory behind": lambda: with_end(archive(GOOD), start=2**32 - 1),
    "name with a zero": lambda: archive(GOOD).replace(b"archive/byteorder", b"archive/byteord\0r"),
    "many parts": lambda: archive(GOOD, {f"archive/{'x' * 999}{i}": b"" for i in range(4100)}),
}


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_archives_that_can_be_read_in_two_ways_are_refused(tmp_path, little_time, kind):
    file = tmp_path / "a.pth"
    file.write_bytes(AMBIGUOUS[kind]())
    with pytest.raises(WeightsFileError, match=r"a\.pth' (is refused: |is no whole)") as error:
        load_file(file)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert kind != "many parts" or f"more than {MAX_DIRECTORY} bytes" in str(error.value)


def test_torch_gets_the_pickle_that_was_checked(tmp_path, monkeypatch):
    """Who changes the file between the check and the reading changes nothing."""
    file = tmp_path / "a.pth"
    file.write_bytes(archive(GOOD))
    load = torch.load

    def change_and_load(opened, **options):
        file.write_bytes(archive(BAD))
        return load(opened, **options)

    monkeypatch.setattr(torch, "load", change_and_load)
    assert load_file(file) == {"model": {}}


def test_archives_that_other_tools_have_written_anew_load(tmp_path):
    content = {"weight": torch.arange(3.0), "empty": torch.zeros(0)}
    (tmp_path / "a.pth").write_bytes(saved(content))
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as old,
        zipfile.ZipFile(tmp_path / "b.pth", "w") as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    for name in ("a.pth", "b.pth"):
        found = load_file(tmp_path / name)["model"]
        assert found.keys() == content.keys() and torch.equal(found["weight"], content["weight"])
