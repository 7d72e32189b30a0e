"""Exported detectors of strangers: nothing in file and sidecar is taken for granted."""

import json
import os

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from predictions import photo

from fsaf_d2 import load_detector
from fsaf_d2.prediction.exported import MAX_CANDIDATES, ExportedModel, kind_of
from fsaf_d2.prediction.onnx_runner import read_model
from fsaf_d2.prediction.sidecar import MAX_BYTES, Sidecar, read_sidecar, sidecar_file

GOOD = Sidecar(
    format=2,
    with_nms=True,
    class_names=["cat", "dog"],
    category_ids=[3, 7],
    thresholds=[0.5, 1],
    level_names=["p3", "p4"],
    branch_names=["anchor", "point"],
    input_format="BGR",
    short_side=800,
    max_side=1333,
    resize="auto",
    size_divisibility=32,
    pixel_mean=[103.5, 116.3, 123.7],
    pixel_std=[1.0, 1.0, 1.0],
    score_thresh=0.05,
    nms_thresh=0.5,
    nms_per_level=False,
    max_detections=100,
)
NAN, INF = float("nan"), float("inf")
WRONG = [
    ("format", [0, 3, "1", True, None]),
    ("with_nms", [0, "true", None]),
    ("class_names", [[], "cat", ["a", 1], ["a" * 201, "b"], None, {"a": 1, "b": 2}]),
    ("category_ids", [[1, 1], [1, 2.0], [True, 2], ["1", "2"], []]),
    ("thresholds", [[0.5, 1.1], [-0.1, 0.5], [NAN, 0.5], [10**400, 0.5], ["x", 0.5], {"cat": 0.5}]),
    ("level_names", [[], [3], ["p3"] * 33]),
    ("branch_names", [[], [3], ["point"] * 33, None]),
    ("input_format", ["bgr", "GRAY", ["BGR"], None]),
    ("short_side", [-1, 800.0, 10**10, True, "800"]),
    ("max_side", [0, 10**10, None]),
    ("resize", ["nearest", None, 1, ["auto"]]),
    ("size_divisibility", [0, 10**6, 32.0]),
    ("pixel_mean", [[1, 2], [1, 2, NAN], [1, 2, "3"], [1, 2, 3, 4], 5]),
    ("pixel_std", [[1, 1, 0], [1, 1, INF], [[1], 1, 1]]),
    ("score_thresh", [-0.1, 1.5, NAN, True, "0.05"]),
    ("nms_thresh", [2, -(10**400), None]),
    ("nms_per_level", [1, "no"]),
    ("max_detections", [0, 10**5 + 1, 1.5]),
]


def test_a_sidecar_that_is_right():
    assert read_sidecar(GOOD.to_text(), "x.json") == GOOD
    steers = GOOD._replace(class_names=["a\x1b[31mb\nc", "d"])
    assert read_sidecar(steers.to_text(), "x.json").class_names == ["a?[31mb?c", "d"]


@pytest.mark.parametrize(("key", "values"), WRONG, ids=[key for key, _ in WRONG])
def test_wrong_values_are_named(key, values):
    assert {key for key, _ in WRONG} == set(Sidecar._fields)
    for value in values:
        text = json.dumps({**GOOD._asdict(), key: value})
        with pytest.raises(ValueError, match=rf"'x\.json': {key} must be .* not "):
            read_sidecar(text, "x.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[" * 100000, "is no JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "has no entry 'format'"),
        (json.dumps({**GOOD._asdict(), "more": 1}), "unknown entry 'more'"),
        (json.dumps({**GOOD._asdict(), "thresholds": [0.5]}), "1 values, but there are 2"),
        (json.dumps({**GOOD._asdict(), "category_ids": [1, 2, 3]}), "3 values, but there are 2"),
        (b"\xff\xfe\x00", "is no JSON"),
    ],
)
def test_wrong_texts_are_named(text, words):
    with pytest.raises(ValueError, match=rf"'x\.json'.*{words}"):
        read_sidecar(text, "x.json")


def write_model(file, outputs: dict[str, np.ndarray], *, says=GOOD, external="") -> None:
    """An ONNX file that gives these, whatever it gets; weights may lie in an external file."""
    inputs = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, "h", "w"]),
        helper.make_tensor_value_info("sizes", TensorProto.INT64, ["n", 2]),
    ]
    given = [numpy_helper.from_array(value, f"{name}_") for name, value in outputs.items()]
    if external:
        secret = given[0]
        secret.ClearField("raw_data")
        secret.data_location = TensorProto.EXTERNAL
        secret.external_data.add(key="location", value=external)
    nodes = [helper.make_node("Identity", [f"{name}_"], [name]) for name in outputs]
    results = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), None)
        for name, value in outputs.items()
    ]
    graph = helper.make_graph(nodes, "g", inputs, results, given)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file.write_bytes(model.SerializeToString())
    sidecar_file(file).write_text(says.to_text())


def good_outputs() -> dict[str, np.ndarray]:
    return {
        "boxes": np.array([[[1, 2, 30, 40]]], np.float32),
        "scores": np.array([[0.9]], np.float32),
        "classes": np.array([[1]]),
        "levels": np.array([[0]]),
        "branches": np.array([[1]]),
    }


def test_a_model_that_gives_detections(tmp_path):
    write_model(tmp_path / "m.onnx", good_outputs())
    found = load_detector(tmp_path / "m.onnx")(photo(), min_score=0)
    assert found.pred_classes.tolist() == [1] and found.pred_branches.tolist() == [1]


def test_a_file_of_version_0_1(tmp_path):
    """Its last output said whether the second of two branches answered, and no one named them."""
    outputs = good_outputs()
    outputs["anchor_free"] = outputs.pop("branches") > 0
    write_model(tmp_path / "m.onnx", outputs)
    text = json.dumps({k: v for k, v in GOOD._asdict().items() if k != "branch_names"})
    sidecar_file(tmp_path / "m.onnx").write_text(text.replace('"format": 2', '"format": 1'))
    detector = load_detector(tmp_path / "m.onnx")
    assert detector.branch_names == ["anchor", "point"]
    assert detector(photo(), min_score=0).pred_branches.tolist() == [1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("classes", np.array([[2]])),
        ("classes", np.array([[-1]])),
        ("levels", np.array([[2]])),
        ("boxes", np.array([[[1, 2, NAN, 40]]], np.float32)),
        ("boxes", np.array([[[1, 2, INF, 40]]], np.float32)),
        ("scores", np.array([[1.5]], np.float32)),
        ("scores", np.array([[INF]], np.float32)),
        ("scores", np.array([[NAN]], np.float32)),
        ("boxes", np.array([[[1, 2, 3e9, 40]]], np.float32)),
        ("scores", np.array([[0.9, 0.8]], np.float32)),
        ("scores", np.array(0.9, np.float32)),
        ("boxes", np.zeros((1, 1, 5), np.float32)),
        ("boxes", np.zeros((2, 1, 4), np.float32)),
        ("levels", np.zeros((1, 1, 1), np.int64)),
        ("classes", np.array([[0.5]], np.float32)),
        ("classes", np.array([[1]], np.uint8)),
        ("classes", np.array([[True]])),
        ("classes", np.array([[1]], np.uint64)),
        ("levels", np.array([[0.5]], np.float32)),
        ("branches", np.array([[2]])),
        ("branches", np.array([[0.5]], np.float32)),
    ],
)
def test_outputs_that_are_no_detections(name, value):
    with pytest.raises(ValueError, match=r"m\.onnx' (gives other outputs|does not fit)"):
        detections({**good_outputs(), name: value})


def detections(outputs: dict[str, np.ndarray], says: Sidecar = GOOD):
    """Of an image, by a file that gives these outputs."""
    model = ExportedModel(lambda images, sizes: list(outputs.values()), says, "m.onnx")
    (found,) = model([{"image": torch.zeros(3, 50, 60), "height": 50, "width": 60}])
    return found["instances"]


@pytest.mark.parametrize(("with_nms", "most"), [(True, 100), (False, MAX_CANDIDATES)])
def test_more_detections_than_promised(with_nms, most):
    says = GOOD._replace(with_nms=with_nms)
    outputs = {name: np.repeat(value, most, 1) for name, value in good_outputs().items()}
    outputs["scores"][:, 9:] = 0
    assert len(detections(outputs, says)) == (9 if with_nms else 1)
    outputs = {name: np.repeat(value, most + 1, 1) for name, value in good_outputs().items()}
    with pytest.raises(ValueError, match=f"'m.onnx' gives {most + 1} detections .* {most} at"):
        detections(outputs, says)


def test_weights_in_other_files_are_refused(tmp_path):
    secret = np.float32([[[1, 2, 30, 40]]]).tobytes()
    (tmp_path / "secret.bin").write_bytes(secret)
    for location in ("secret.bin", "../secret.bin", os.fspath(tmp_path / "secret.bin")):
        write_model(tmp_path / "m.onnx", good_outputs(), external=location)
        with pytest.raises(ValueError, match=r"m\.onnx' is refused: it has weights in other files"):
            read_model(str(tmp_path / "m.onnx"))


def test_weights_in_other_files_of_a_branch_are_refused(tmp_path):
    write_model(tmp_path / "m.onnx", good_outputs())
    model = onnx.load(tmp_path / "m.onnx")
    hidden = numpy_helper.from_array(np.float32([1]), "hidden")
    hidden.ClearField("raw_data")
    hidden.data_location = TensorProto.EXTERNAL
    hidden.external_data.add(key="location", value="/etc/hostname")
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=hidden)], "i", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match="is refused: it has weights in other files"):
        read_model(str(tmp_path / "m.onnx"))


def test_models_of_others_are_refused(tmp_path):
    outputs = good_outputs()
    outputs["logits"] = outputs.pop("scores")
    write_model(tmp_path / "m.onnx", outputs)
    with pytest.raises(ValueError, match=r"m\.onnx' was not made by this project's export"):
        load_detector(tmp_path / "m.onnx")
    write_model(tmp_path / "n.onnx", good_outputs())
    sidecar_file(tmp_path / "n.onnx").unlink()
    with pytest.raises(ValueError, match=r"there is no '.*n\.onnx\.json' beside it"):
        load_detector(tmp_path / "n.onnx")


@pytest.mark.parametrize("content", [b"", b"\x08", b"\x08\x08garbage", b"GIF89a", b"\x08" * 999])
def test_broken_files_are_named(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"m\.onnx'"):
        load_detector(tmp_path / "m.onnx")


def test_weights_in_safetensors_are_no_onnx_whatever_their_header_is_long(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    file = tmp_path / "net.safetensors"
    for count in range(300):
        safetensors.save_file({"x": torch.zeros(1)}, file, metadata={"a": "x" * count})
        if file.read_bytes()[0] == 8:
            break
    assert file.read_bytes()[0] == 8 and kind_of(file) is None


def test_cut_files_are_named(tmp_path):
    write_model(tmp_path / "m.onnx", good_outputs())
    whole = (tmp_path / "m.onnx").read_bytes()
    for share in (0.1, 0.5, 0.99):
        (tmp_path / "m.onnx").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match=r"m\.onnx'"):
            read_model(str(tmp_path / "m.onnx"))


def test_the_sidecar_is_read_to_a_limit(tmp_path):
    write_model(tmp_path / "m.onnx", good_outputs())
    with open(sidecar_file(tmp_path / "m.onnx"), "wb") as file:
        file.truncate(MAX_BYTES * 1000)
    with pytest.raises(ValueError, match=r"m\.onnx\.json' has more than"):
        load_detector(tmp_path / "m.onnx")


class Writes(torch.nn.Module):
    """Writes a file when it is run, as any TorchScript program can."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    def forward(self, images: torch.Tensor, sizes: torch.Tensor):
        torch.save(images, self.file)
        boxes = torch.ones(1, 1, 4)
        scores = torch.zeros(1, 1)
        return boxes, scores, scores.long(), scores.long(), scores > 0


@pytest.mark.parametrize("name", ["m.torchscript", "m.ts", "m.pth", "m.onnx.pt"])
@pytest.mark.parametrize("trusted", [False, True])
def test_a_torchscript_program_is_run_only_if_trusted(tmp_path, capsys, name, trusted):
    marker, file = tmp_path / "marker", tmp_path / name
    torch.jit.save(torch.jit.script(Writes(str(marker))), file)
    sidecar_file(file).write_text(GOOD.to_text())
    if not trusted:
        with pytest.raises(ValueError, match=rf"{name}' is a TorchScript program.*--trust-weights"):
            load_detector(file)
    else:
        assert len(load_detector(file, trust=True)(photo(), min_score=0)) == 0
        assert f"--trust-weights: code in '{file}' is run" in capsys.readouterr().out
    assert marker.exists() == trusted


def test_onnx_needs_no_trust_whatever_its_name(tmp_path):
    write_model(tmp_path / "model_final.pth", good_outputs())
    assert load_detector(tmp_path / "model_final.pth").class_names == GOOD.class_names
