"""ONNX files of a few bytes that ask for any memory or time, and what is wrong in the runtime."""

import io
import os
import random
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, repeat
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fsaf_d2.prediction.onnx_process import MAX_OPERATORS, OnnxProgram
from fsaf_d2.prediction.onnx_runner import read_message, read_model, write_message

node = helper.make_node


def constant(name: str, value: object, kind: type = np.int64) -> TensorProto:
    return numpy_helper.from_array(np.array(value, kind), name)


def program(nodes: list, constants: list) -> onnx.ModelProto:
    """A detector that finds nothing, but adds the highest number of a tensor `y` to its boxes."""
    floats, whole = TensorProto.FLOAT, TensorProto.INT64
    boxes = constant("boxes_", np.zeros((1, 1, 4)), np.float32)
    numbers = [constant(name, [[0]]) for name in ("classes", "levels", "branches")]
    last = [
        node("ReduceMax", ["y"], ["highest"], keepdims=0),
        node("Add", ["boxes_", "highest"], ["boxes"]),
    ]
    graph = helper.make_graph(
        [*nodes, *last],
        "g",
        [
            helper.make_tensor_value_info("images", floats, ["n", 3, "h", "w"]),
            helper.make_tensor_value_info("sizes", whole, ["n", 2]),
        ],
        [
            *(helper.make_tensor_value_info(name, floats, None) for name in ("boxes", "scores")),
            *(helper.make_tensor_value_info(x.name, whole, None) for x in numbers),
        ],
        [boxes, constant("scores", [[0]], np.float32), *numbers, *constants],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write(model: onnx.ModelProto, folder: Path) -> str:
    file = folder / "bomb.onnx"
    file.write_bytes(model.SerializeToString())
    return os.fspath(file)


def stretched(name: str, shape: list[int]) -> tuple[list, list]:
    """A constant tensor of zeros, of any shape by a few numbers."""
    zero = constant(f"{name}_zero", np.zeros([1] * len(shape)), np.float32)
    return [node("Expand", [f"{name}_zero", f"{name}_shape"], [name])], [
        zero,
        constant(f"{name}_shape", shape),
    ]


def of(nodes: list, *parts: tuple[list, list], **numbers: object) -> onnx.ModelProto:
    """A detector of these operators, parts of :func:`stretched` and whole numbers."""
    given = [constant(name, value) for name, value in numbers.items()]
    given += [x for part in parts for x in part[1]]
    return program([x for part in parts for x in part[0]] + nodes, given)


BOMBS = {
    "constant": lambda: of([node("ConstantOfShape", ["s"], ["y"])], s=[900_000_000]),
    "constant by the image": lambda: of(
        [
            node("Shape", ["images"], ["shape"]),
            node("Mul", ["shape", "k"], ["s"]),
            node("ConstantOfShape", ["s"], ["y"]),
        ],
        k=[1000, 100, 100, 100],
    ),
    "expand": lambda: of([node("Expand", ["images", "s"], ["y"])], s=[70_000, 3, 64, 64]),
    "tile": lambda: of([node("Tile", ["images", "s"], ["y"])], s=[70_000, 1, 1, 1]),
    "range": lambda: of(
        [node("Range", ["a", "b", "c"], ["r"]), node("Cast", ["r"], ["y"], to=1)], a=0, b=2**40, c=1
    ),
    "pad": lambda: of([node("Pad", ["images", "p"], ["y"])], p=[0] * 6 + [10**5] * 2),
    "resize": lambda: program(
        [node("Resize", ["images", "", "s"], ["y"], mode="nearest")],
        [constant("s", [1, 1, 1000, 1000], np.float32)],
    ),
    "tiles of tiles": lambda: of(
        [
            node("Tile", [f"t{i}" if i else "images", "s"], [f"t{i + 1}" if i < 19 else "y"])
            for i in range(20)
        ],
        s=[1, 1, 2, 2],
    ),
    "outer sum": lambda: of(
        [node("Add", ["a", "b"], ["y"])], stretched("a", [1, 10**5]), stretched("b", [10**5, 1])
    ),
}
SLOW_BOMBS = {
    "products": lambda: of(
        [node("MatMul", [f"e{i}"] * 2, [f"e{i + 1}" if i < 299 else "y"]) for i in range(300)],
        stretched("e0", [3000, 3000]),
    ),
    "maximum": lambda: of(
        [node("MaxPool", ["e"], ["y"], kernel_shape=[2000, 2000], pads=[1000] * 4)],
        stretched("e", [1, 8, 3000, 3000]),
    ),
    "suppression": lambda: of(
        [
            node("Cast", ["one"], ["all"], to=1),
            node("Add", ["grades", "all"], ["some"]),
            node("NonMaxSuppression", ["places", "some", "most", "all"], ["found"]),
            node("Cast", ["found"], ["y"], to=1),
        ],
        stretched("places", [1, 10**6, 4]),
        stretched("grades", [1, 20, 10**6]),
        one=[1],
        most=[2**31],
    ),
}


BLANK = torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]])


def most_of_children() -> int:
    """The most memory in KiB that any process which this one started has had."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*BOMBS, *SLOW_BOMBS])
def test_bombs_end_in_a_sentence(tmp_path, kind):
    file, start = write({**BOMBS, **SLOW_BOMBS}[kind](), tmp_path), time.monotonic()
    most = max(2 << 20, most_of_children())
    with pytest.raises(
        ValueError, match=r"bomb\.onnx' cannot be run: it takes more than .* (GiB|s)"
    ):
        OnnxProgram(file)(*BLANK)
    # It computes in a process of its own, of which 10 seconds are more where others compute.
    assert time.monotonic() - start < 60
    assert most_of_children() <= most


def copies(count: int) -> onnx.ModelProto:
    names = ["images", *(f"t{i}" for i in range(count - 1)), "y"]
    return of([node("Identity", [one], [other]) for one, other in pairwise(names)])


@pytest.mark.slow
def test_so_many_operators_that_none_are_run(tmp_path):
    file = write(copies(MAX_OPERATORS), tmp_path)
    with pytest.raises(ValueError, match=rf"has {MAX_OPERATORS + 2} operators, more than the"):
        OnnxProgram(file)


def body(*names: str) -> onnx.GraphProto:
    kinds = [TensorProto.INT64, TensorProto.BOOL]
    given = [helper.make_tensor_value_info(*one, []) for one in zip(names, kinds)]
    result = helper.make_tensor_value_info("again", TensorProto.BOOL, [])
    yes = node("Constant", [], ["again"], value=constant("yes", True, bool))
    return helper.make_graph([yes], "body", given, [result])


def with_function(name: str) -> onnx.ModelProto:
    model = copies(1)
    opsets = [helper.make_opsetid("", 17)]
    inner = node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("", name, ["a"], ["b"], [inner], opsets))
    return model


def with_sparse_numbers() -> onnx.ModelProto:
    model = copies(1)
    numbers = model.graph.sparse_initializer.add()
    numbers.dims.extend([2**31, 2**31])
    return model


STRANGE = {
    "'Loop'": lambda: of([node("Loop", ["n", ""], [], body=body("i", "c"))], n=2**62),
    "'Scan'": lambda: of([node("Scan", ["images"], ["y"], body=body(), num_scan_inputs=1)]),
    "'If'": lambda: of([node("If", ["n"], ["y"], then_branch=body(), else_branch=body())], n=1),
    "'RandomNormal'": lambda: of([node("RandomNormal", [], ["y"], shape=[30_000, 30_000])]),
    r"'com\.microsoft\.Add'": lambda: of(
        [node("Add", ["images"] * 2, ["y"], domain="com.microsoft")]
    ),
    "'Relu' with a program": lambda: of([node("Relu", ["images"], ["y"], body=body())]),
    "functions": lambda: with_function("Identity"),
    "sparse tensors": with_sparse_numbers,
}


@pytest.mark.parametrize("kind", STRANGE)
def test_operators_that_no_export_has_are_refused_unless_trusted(tmp_path, kind):
    file = write(STRANGE[kind](), tmp_path)
    with pytest.raises(ValueError, match=rf"bomb\.onnx' is refused: it has .*{kind}"):
        read_model(file)
    read_model(file, trust=True)


@pytest.mark.slow
def test_a_runtime_that_ends_is_said(tmp_path):
    run = OnnxProgram(write(copies(1), tmp_path))
    assert len(run(*BLANK)) == 5
    run._process.kill()
    for _ in range(2):
        with pytest.raises(ValueError, match="GiB of memory, or ends the runtime"):
            run(*BLANK)


@pytest.mark.slow
def test_threads_may_share_a_file_and_its_process_ends_with_it(tmp_path):
    run = OnnxProgram(write(copies(1), tmp_path))
    images, size = [torch.full((1, 3, 8, 8), float(i)) for i in range(20)], torch.tensor([[8, 8]])
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(run, images, repeat(size)))
    assert [x[0].max() for x in found] == list(range(20))
    process = run._process
    del run
    assert process.wait(timeout=5) != 0


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{}",
        b'{"arrays": [["<f4", [1, -5]]]}',
        b'{"arrays": [["<f4", [1000000000]]]}',
        b'{"arrays": [["O", [1]]]}',
        b'{"arrays": [["<f4", [3]]]}\n1234',
        b"\xff" * 99,
    ],
)
def test_answers_that_are_none(line):
    with pytest.raises(EOFError):
        read_message(io.BytesIO(line), 1000)


def test_messages_come_as_they_were_written():
    stream = io.BytesIO()
    arrays = [np.zeros((0, 4)), np.arange(6).reshape(2, 3), np.float32(3), np.array([True])]
    write_message(stream, {"x": "\udcff"}, arrays)
    stream.seek(0)
    content, found = read_message(stream, 1000)
    assert content == {"x": "\udcff"}
    assert all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(arrays, found))


ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "150"))


def changed(content: bytes, random_: random.Random) -> bytes:
    """A few bytes of a file changed, left out, or doubled."""
    result = bytearray(content)
    for _ in range(random_.choice([1, 1, 2, 4, 8])):
        place = random_.randrange(len(result))
        match random_.randrange(4):
            case 0:
                result[place] = random_.randrange(256)
            case 1:
                result[place : place + 1] = random_.choice([b"\xff" * 9, b"\0", b"\x7f", b"\x80"])
            case 2:
                del result[place : place + random_.randrange(1, 9)]
            case _:
                result[place:place] = result[place : place + random_.randrange(1, 99)]
    return bytes(result)


def originals() -> list[bytes]:
    return [make().SerializeToString() for make in (*BOMBS.values(), *STRANGE.values())]


def test_files_with_random_changes_are_read_or_refused(tmp_path):
    file, contents = tmp_path / "bomb.onnx", originals()
    for seed in range(ROUNDS):
        random_ = random.Random(seed)
        file.write_bytes(changed(random_.choice(contents), random_))
        try:
            read_model(os.fspath(file))
        except ValueError as error:
            assert "bomb.onnx' " in str(error) and "\n" not in str(error), seed


@pytest.mark.slow
def test_files_with_random_changes_run_or_are_refused(tmp_path):
    file, contents = tmp_path / "bomb.onnx", originals()
    most = max(2 << 20, most_of_children())
    for seed in range(ROUNDS // 10):
        random_, start = random.Random(seed), time.monotonic()
        file.write_bytes(changed(random_.choice(contents), random_))
        try:
            OnnxProgram(os.fspath(file))(*BLANK)
        except ValueError as error:
            assert "bomb.onnx' " in str(error) and "\n" not in str(error), seed
        assert time.monotonic() - start < 60, seed
    assert most_of_children() <= most
