"""Random changes of archives' structure and of pickles' opcodes: they load or are refused."""

import contextlib
import io
import itertools
import os
import pickle
import pickletools
import random
import resource
import struct
import time
import zipfile

import numpy as np
import pytest
import torch
from weights_of_strangers import archive, saved, zoo

from fsaf_d2.weights.weights_files import WeightsFileError, load_file

ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "50"))
NUMBERS = [0, 1, 2, 3, 7, 22, 44, 98, 255, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1]
CODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]


def weights() -> dict:
    return {
        "model": torch.nn.Linear(3, 2).state_dict(),
        "optimizer": {"state": {0: {"step": torch.zeros(()), "x": torch.zeros(2)}}},
        "meta": {"classes": ("a", "b"), "set": {1, 2}, "bytes": b"\xff", "number": 2**70},
    }


SEEDS = {
    "new.pth": lambda: saved(weights()),
    "plain.pth": lambda: archive(
        pickle.dumps({"model": {}, "a": (1, 2.5)}, 2), {"archive/data/0": b"1234"}
    ),
    "old.pth": lambda: saved(weights(), _use_new_zipfile_serialization=False),
    "zoo.pkl": lambda: zoo(a=np.zeros((2, 3), np.float32), b=np.ones(2)),
    "zoo_2.pkl": lambda: pickle.dumps({"blobs": {"a": np.zeros(3)}}, 2),
}


def parts_of(pickled: bytes) -> list[bytes]:
    """The opcodes of a pickle with their arguments."""
    places = [place for _, _, place in pickletools.genops(pickled)] + [len(pickled)]
    return [pickled[start:end] for start, end in itertools.pairwise(places)]


def changed_pickle(rng: random.Random, pickled: bytes) -> bytes:
    """Opcodes left out, doubled, exchanged, made up, repeated often and with other numbers."""
    parts = parts_of(pickled)
    for _ in range(rng.randint(1, 5)):
        place, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        match rng.randrange(7):
            case 0:
                parts[place] = b""
            case 1:
                parts[place] += parts[other]
            case 2:
                parts[place], parts[other] = parts[other], parts[place]
            case 3:
                parts[place] = rng.choice(CODES) + parts[place][1:]
            case 4:
                parts.insert(place, rng.choice(CODES) + rng.randbytes(rng.choice((0, 1, 4, 8))))
            case 5:
                start, end = sorted((place, other))
                parts[end:end] = parts[start:end][:9] * rng.choice((2, 20, 3000))
            case 6:
                size = max(0, len(parts[place]) - 1)
                number = rng.choice(NUMBERS).to_bytes(8, "little")
                parts[place] = parts[place][:1] + number[:size] + parts[place][9:]
    return b"".join(parts)


def changed_archive(rng: random.Random, content: bytes) -> bytes:
    """Names, sizes, places, flags and directories that are not as they were."""
    marks = [b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\7\x08"]
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        mark = rng.choice(marks)
        place = content.find(mark, rng.randrange(len(content))) if mark in content else 0
        place = max(place, 0)
        match rng.randrange(7):
            case 0:
                size = rng.choice((1, 2, 4, 8))
                at = place + rng.randrange(4, 56)
                number = rng.choice([*NUMBERS, len(content), place])
                content[at : at + size] = number.to_bytes(8, "little")[:size]
            case 1:
                name = content.find(b"archive/", place)
                if name >= 0:
                    at = name + rng.randrange(20)
                    content[at : at + 1] = rng.choice((b"A", b"D", b"/", b"\\", b"\0", b"."))
            case 2:
                end = rng.randrange(len(content))
                content[end:end] = content[place : place + rng.choice((22, 46, 98, 999))]
            case 3:
                del content[place : place + rng.choice((1, 20, 22, 46, 56, 76))]
            case 4:
                content += content[content.rfind(b"PK\1\2") :]
            case 5:
                content[0:0] = content[: rng.choice((1, 30, 99, len(content)))]
            case 6:
                content[-2:] = struct.pack("<H", len(content) % 2**16) + bytes(rng.choice((0, 9)))
    return bytes(content)


def with_pickle(content: bytes, change) -> bytes:
    """An archive with the pickle in it changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, change(data) if entry.filename.endswith(".pkl") else data)
    return buffer.getvalue()


def changed(rng: random.Random, name: str, content: bytes) -> bytes:
    if name.endswith(".pkl"):
        return changed_pickle(rng, content)
    if name == "old.pth":
        # Its pickles stand before the numbers.
        rest, stream = rng.randrange(5), io.BytesIO(content)
        places = [0]
        for _ in range(5):
            list(pickletools.genops(stream))
            places.append(stream.tell())
        start, end = places[rest : rest + 2]
        return content[:start] + changed_pickle(rng, content[start:end]) + content[end:]
    if rng.random() < 0.5:
        return with_pickle(content, lambda data: changed_pickle(rng, data))
    return changed_archive(rng, content)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SEEDS)
def test_changed_structure_loads_or_is_refused(tmp_path, name):
    rng, whole, file = random.Random(name), SEEDS[name](), tmp_path / name
    file.write_bytes(whole)
    load_file(file)
    outcomes = {True: 0, False: 0}
    for _ in range(ROUNDS):
        file.write_bytes(changed(rng, name, whole) or b"x")
        start, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        refused = True
        with contextlib.suppress(WeightsFileError):
            load_file(file)
            refused = False
        outcomes[refused] += 1
        assert time.process_time() - start < 10
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2**21
    assert min(outcomes.values()) > ROUNDS // 50
