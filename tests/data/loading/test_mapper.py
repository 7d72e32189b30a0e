"""Images and boxes equal detectron2's, within one grey level."""

import io
from multiprocessing import active_children

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from models import tiny_cfg
from PIL import Image
from torch._utils import ExceptionWrapper

from fsaf_d2.data.loading import mapper as mapper_module
from fsaf_d2.data.loading.mapper import (
    LimitedMapper,
    OpenCVMapper,
    build_mapper,
    read_image,
)
from fsaf_d2.data.loading.resizing import ResizeTransform
from fsaf_d2.training import Trainer


def photo(width: int = 123, height: int = 77) -> Image.Image:
    """Smooth colours with sharp edges and noise."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    image[20:40, 30:60] = [255, 0, 40]
    image[50:, :30] = rng.integers(0, 256, image[50:, :30].shape)
    return Image.fromarray(image)


def encoded(image: Image.Image, file_format: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def png_of_16_bits(*shape: int) -> bytes:
    values = np.random.default_rng(0).integers(0, 2**16, shape).astype(np.uint16)
    return cv2.imencode(".png", values)[1].tobytes()


# Those that OpenCV decodes.
JPEGS = {
    "4:4:4": encoded(photo(), subsampling=0),
    "4:2:2": encoded(photo(), subsampling=1),
    "4:2:0": encoded(photo(), subsampling=2),
    "low quality": encoded(photo(), quality=10),
    "progressive": encoded(photo(), progressive=True),
    "grey": encoded(photo().convert("L")),
    "kept RGB": encoded(photo(), keep_rgb=True),
    "comment": encoded(photo(), comment="of a test"),
    "upright": encoded(photo(), exif=turned(1)),
    "no orientation": encoded(photo(), exif=turned(0)),
}
# Those that detectron2 decodes.
OTHERS = {
    **{f"orientation {i}": encoded(photo(), exif=turned(i)) for i in range(2, 9)},
    "CMYK": encoded(photo().convert("CMYK")),
    "bytes behind the end": encoded(photo()) + b"trailer",
    "PNG": encoded(photo(), "PNG"),
    "PNG orientation 6": encoded(photo(), "PNG", exif=turned(6)),
    "PNG grey": encoded(photo().convert("L"), "PNG"),
    "PNG 1 bit": encoded(photo().convert("1"), "PNG"),
    "PNG palette": encoded(photo().convert("P"), "PNG"),
    "PNG transparent": encoded(photo().convert("P"), "PNG", transparency=3),
    "PNG alpha": encoded(photo().convert("RGBA"), "PNG"),
    "PNG 16 bits colour": png_of_16_bits(20, 30, 3),
    "WebP": encoded(photo(), "WEBP"),
    "BMP": encoded(photo(), "BMP"),
}


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
@pytest.mark.parametrize("kind", [*JPEGS, *OTHERS])
def test_decodes_as_detectron2(tmp_path, kind, image_format):
    file = tmp_path / "image"
    file.write_bytes({**JPEGS, **OTHERS}[kind])
    expected = utils.read_image(str(file), image_format)
    found = read_image(str(file), image_format)
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", [*JPEGS, *OTHERS])
def test_opencv_decodes_what_it_decodes_alike(tmp_path, monkeypatch, kind):
    file = tmp_path / "image"
    file.write_bytes({**JPEGS, **OTHERS}[kind])
    theirs = utils.convert_PIL_to_numpy
    calls = []
    monkeypatch.setattr(
        utils, "convert_PIL_to_numpy", lambda *args: calls.append(args) or theirs(*args)
    )
    read_image(str(file), "BGR")
    assert len(calls) == (kind in OTHERS)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_grey_is_refused_which_pillow_makes_white(tmp_path, dtype, file_format):
    if file_format == "PNG" and dtype != np.uint16:
        pytest.skip("there is no such PNG")
    file = tmp_path / "deep.png"
    Image.fromarray(np.full((20, 30), 1000, dtype)).save(file, file_format)
    assert (utils.read_image(str(file), "RGB") == 255).all()
    with pytest.raises(OSError, match=r"deep\.png' .*more than 8 bits"):
        read_image(str(file), "BGR")
    for image_format in ("BGR", "L"):
        mapper = build_mapper(tiny_cfg("INPUT.FORMAT", image_format), is_train=False)
        with pytest.raises(OSError, match=r"deep\.png' .*more than 8 bits"):
            mapper({"file_name": str(file), "height": 20, "width": 30})


WHOLE = encoded(photo())


@pytest.mark.parametrize(
    "content",
    [
        *(WHOLE[:-cut] for cut in (1, 2, 100, len(WHOLE) // 2)),
        WHOLE[:100],
        WHOLE[:300] + b"\xff\xd9",
        encoded(photo(), "PNG")[:-100],
        b"",
        b"no image",
        b"\xff\xd8\xff\xd9",
    ],
)
def test_a_broken_image_is_named_where_detectron2_refuses_it(tmp_path, content):
    file = tmp_path / "broken.jpg"
    file.write_bytes(content)
    with pytest.raises((OSError, SyntaxError)):
        utils.read_image(str(file), "BGR")
    with pytest.raises(OSError, match=r"broken\.jpg' cannot be read \(.+\)"):
        read_image(str(file), "BGR")


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        read_image(str(tmp_path / "nowhere.jpg"), "BGR")


def test_enlarges_as_pillow():
    rng = np.random.default_rng(0)
    for index in range(200):
        h, w = rng.integers(1, 90, 2)
        new_h, new_w = (int(side * rng.uniform(1, 5)) for side in (h, w))
        image = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        if index % 2:
            # The steepest edges.
            image = (image > 127).astype(np.uint8) * 255
        expected = T.ResizeTransform(h, w, new_h, new_w).apply_image(image)
        found = ResizeTransform(h, w, new_h, new_w).apply_image(image)
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    "image, size, interp",
    [
        (np.asarray(photo()), (40, 60), None),
        (np.asarray(photo()), (100, 60), None),
        (np.asarray(photo()), (100, 150), Image.NEAREST),
        (np.asarray(photo().convert("L")), (100, 150), None),
        (np.asarray(photo().convert("L"))[..., None], (100, 150), None),
        (np.asarray(photo()).astype(np.float32), (100, 150), None),
    ],
    ids=["smaller", "lower and wider", "nearest", "grey", "one channel", "floats"],
)
def test_all_other_resizing_is_detectron2s(image, size, interp):
    transforms = [kind(77, 123, *size) for kind in (T.ResizeTransform, ResizeTransform)]
    expected, found = (transform.apply_image(image, interp) for transform in transforms)
    np.testing.assert_array_equal(found, expected)


def cfg_with(min_size: int, *overrides: str):
    sizes = ("INPUT.MIN_SIZE_TRAIN", f"({min_size - 9}, {min_size})")
    sizes += ("INPUT.MIN_SIZE_TEST", str(min_size))
    return tiny_cfg(*sizes, *overrides)


def description(file) -> dict:
    annotations = [
        {"bbox": [10, 20, 30, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1},
        {"bbox": [50, 5, 70, 70], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0},
        {"bbox": [0, 0, 9, 9], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 1},
    ]
    return {
        "file_name": str(file),
        "image_id": 7,
        "width": 123,
        "height": 77,
        "annotations": annotations,
    }


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(JPEGS["4:2:0"])
    return path


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize(
    "overrides",
    [
        ("INPUT.FORMAT", "RGB"),
        ("INPUT.RANDOM_FLIP", "vertical"),
        ("INPUT.RANDOM_FLIP", "none"),
        ("INPUT.CROP.ENABLED", "True"),
        ("INPUT.FORMAT", "L"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"),
    ],
    ids=lambda overrides: " ".join(overrides),
)
@pytest.mark.parametrize("min_size", [50, 77, 150])
def test_maps_as_detectron2(file, min_size, overrides, is_train):
    cfg = cfg_with(min_size, *overrides)
    mappers = DatasetMapper(cfg, is_train), build_mapper(cfg, is_train=is_train)
    entry = description(file)
    for seed in range(6):
        results = []
        for mapper in mappers:
            np.random.seed(seed)
            results.append(mapper(entry))
        expected, found = results
        assert entry == description(file)
        assert found.keys() == expected.keys()
        assert found["image"].dtype == torch.uint8 and found["image"].is_contiguous()
        assert found["image"].shape == expected["image"].shape
        assert (found["image"].int() - expected["image"].int()).abs().max() <= 1
        if is_train:
            ours, theirs = found["instances"], expected["instances"]
            assert ours.image_size == theirs.image_size
            torch.testing.assert_close(ours.gt_boxes.tensor, theirs.gt_boxes.tensor)
            assert ours.gt_classes.tolist() == theirs.gt_classes.tolist()


def test_another_size_than_annotated_is_refused(file):
    entry = {**description(file), "width": 124}
    with pytest.raises(utils.SizeMismatchError, match=r"image\.jpg"):
        build_mapper(cfg_with(50), is_train=True)(entry)


def test_segmentation_takes_detectron2s_way(file, tmp_path):
    labels = tmp_path / "labels.png"
    Image.fromarray(np.full((77, 123), 3, np.uint8)).save(labels)
    entry = {**description(file), "sem_seg_file_name": str(labels)}
    found = build_mapper(cfg_with(150), is_train=True)(entry)
    assert found["sem_seg"].unique().tolist() == [3]


def test_without_opencv_detectron2s_way_is_used(monkeypatch, file):
    assert type(build_mapper(cfg_with(50), is_train=True)) is OpenCVMapper
    monkeypatch.setattr(mapper_module, "cv2", None)
    mapper = build_mapper(cfg_with(50), is_train=False)
    assert type(mapper) is LimitedMapper
    expected = DatasetMapper(cfg_with(50), is_train=False)(description(file))
    assert torch.equal(mapper(description(file))["image"], expected["image"])


@pytest.mark.parametrize("workers", ["0", "1"])
def test_the_loaders_use_it_and_name_a_broken_image(tmp_path, request, workers):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(WHOLE[:-100])
    name = request.node.name
    DatasetCatalog.register(name, lambda: [description(broken)])
    try:
        cfg = cfg_with(50, "DATASETS.TRAIN", f"('{name}',)", "DATALOADER.NUM_WORKERS", workers)
        cfg.SOLVER.IMS_PER_BATCH = 1
        for loader in (Trainer.build_train_loader(cfg), Trainer.build_test_loader(cfg, name)):
            with pytest.raises(OSError, match=r"broken\.jpg' cannot be read"):
                next(iter(loader))
    finally:
        DatasetCatalog.remove(name)
        # Torch's worker with an error is waited for five seconds when garbage is collected.
        for worker in active_children():
            worker.terminate()


@pytest.mark.parametrize("size", [(60, 90), (300, 450)])
def test_the_method_of_resizing_can_be_chosen(size, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    words = ["INPUT.MIN_SIZE_TEST", "120", "INPUT.RESIZE"]
    found = {}
    for method in ("pillow", "opencv", "auto"):
        augmented = T.AugInput(image.copy())
        build_mapper(tiny_cfg(*words, method), is_train=False).augmentations(augmented)
        found[method] = augmented.image
    expected = {
        "pillow": np.asarray(Image.fromarray(image).resize((180, 120), Image.BILINEAR)),
        "opencv": cv2.resize(image, (180, 120), interpolation=cv2.INTER_LINEAR),
    }
    for method, pixels in expected.items():
        np.testing.assert_array_equal(found[method], pixels)
    enlarges = size[0] < 120
    np.testing.assert_array_equal(found["auto"], expected["opencv" if enlarges else "pillow"])
    with pytest.raises(ValueError, match=r"INPUT\.RESIZE.*'auto'.*not 'best'"):
        build_mapper(tiny_cfg(*words, "best"), is_train=False)
    monkeypatch.setattr(mapper_module, "cv2", None)
    with pytest.raises(ValueError, match=r"'opencv' needs OpenCV"):
        build_mapper(tiny_cfg(*words, "opencv"), is_train=False)


def test_what_is_no_image_is_named_without_a_place_in_memory(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(OSError, match=r"text\.jpg' .*no known image format\)\.$"):
        read_image(str(tmp_path / "text.jpg"), "BGR")


@pytest.mark.parametrize("method", ["auto", "pillow", "opencv"])
@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("size", [(1, 1000), (900, 2)])
def test_an_image_of_which_nothing_is_left_is_named(tmp_path, method, is_train, size):
    cfg = tiny_cfg("INPUT.RESIZE", method)
    for key in ("TRAIN", "TEST"):
        cfg.INPUT[f"MAX_SIZE_{key}"] = 128
    file = str(tmp_path / "thin.png")
    Image.new("RGB", size).save(file)
    record = {"file_name": file, "width": size[0], "height": size[1], "annotations": []}
    with pytest.raises(OSError, match=r"thin\.png' cannot be resized as INPUT asks"):
        build_mapper(cfg, is_train=is_train)(record)
    detectron2s = LimitedMapper(cfg, is_train)
    with pytest.raises(OSError, match=r"thin\.png' cannot be resized as INPUT asks"):
        detectron2s(record)


def test_of_a_worker_an_image_is_named_in_one_sentence(tmp_path):
    """Torch raises the worker's error anew, with its traceback before it."""
    file = tmp_path / "a.jpg"
    file.write_bytes(b"no image")
    try:
        read_image(str(file), "BGR")
    except OSError as error:
        sentence, wrapper = str(error), ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(OSError) as error:
        wrapper.reraise()
    assert str(error.value) == sentence and sentence.startswith(f"Image '{file}'")
