"""Numbers, names and masks of data sets that are odd, lie or cost much, end in one sentence."""

import json
import os
import random
import re
import resource

import numpy as np
import pytest
from formats import coco, write_coco, write_image, write_voc, write_yolo, xml
from pycocotools import mask as mask_api

from fsaf_d2.data.checking.check_source import check_source
from fsaf_d2.data.checking.checks import AnnotationFileError, check_annotations
from fsaf_d2.data.checking.masks import is_whole_mask
from fsaf_d2.data.checking.output import as_text, to_dict
from fsaf_d2.data.reading.formats.voc_xml import annotation_of, object_of
from fsaf_d2.data.reading.sources import SourceError, open_source
from fsaf_d2.evaluation.ground_truth import read_ground_truth
from fsaf_d2.plain_json import parse_json
from fsaf_d2.plain_numbers import decimal, whole

pytestmark = pytest.mark.usefixtures("soon", "little_memory")
ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "50"))

# -- numbers ------------------------------------------------------------------------------------

NO_NUMBERS = [
    *("", "0_0.2_5", "٠.٥", "０.５", "0x1p3", "0x10", "1e400", "inf", "-Infinity", "nan", "1,5"),
    *("1\u00a02", " 1", "1 ", "--1", "1e", ".", "e5", "1e99999", "9" * 65, "½", "1\0", "1\n", "²"),
]


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_decimal_number_is_none(text):
    with pytest.raises(ValueError, match="is no number in decimal digits") as error:
        decimal(text)
    assert len(str(error.value)) < 100


@pytest.mark.parametrize("text", ["0", "1.", ".5", "-0.25", "+3", "1e-3", "1E+3", "9" * 64])
def test_decimal_numbers_are_read(text):
    assert decimal(text) == float(text)


@pytest.mark.parametrize("text", ["", "-1", "1_0", "٠", "1.0", "9" * 21, "0x1", "1 ", "1\n"])
def test_what_is_no_whole_number_is_none(text):
    assert whole("9" * 20) == int("9" * 20)
    with pytest.raises(ValueError, match="is no whole number"):
        whole(text)


@pytest.mark.parametrize("text", ["0_1", "٠.٥", "0x1p3", "1e400", "inf", "nan", "9" * 1000])
def test_odd_numbers_in_labels_and_xml_are_found(tmp_path, text):
    root = write_yolo(tmp_path / "yolo")
    (root / "train/labels/a.txt").write_text(f"0 {text} 0.5 0.1 0.1\n0 .5\u00a0.5 .5 .1 .1\n")
    assert [x.kind for x in open_source(root).findings] == ["unreadable object"] * 2
    root = write_voc(tmp_path / "voc")
    content = xml("a.jpg", [("cat", 1, 2, 30, 40)])
    (root / "Annotations/a.xml").write_text(content.replace("<xmin>2", f"<xmin>{text}"))
    (finding,) = open_source(root).findings
    assert finding.kind == "unreadable object" and "<xmin>" in finding.value


@pytest.mark.parametrize(
    "line", ["1e300 .5 .5 .1 .1", "9" * 50 + " .5 .5 .1 .1", "0" + " 0.5" * 20_001]
)
def test_lines_have_limits(tmp_path, line):
    root = write_yolo(tmp_path)
    (root / "train/labels/a.txt").write_text(line)
    (finding,) = open_source(root).findings
    assert finding.kind == "unreadable object" and len(finding.value) < 500


def test_label_files_have_so_many_lines(tmp_path):
    root = write_yolo(tmp_path)
    (root / "train/labels/a.txt").write_text("\n" * 100_001)
    (finding,) = open_source(root).findings
    assert finding.kind == "unreadable annotation file" and "100002 lines" in finding.value


# -- JSON ---------------------------------------------------------------------------------------


def changed(section, **values):
    data = coco("train")
    data[section][0].update(values)
    return data


BIG, LONG = 10**30, "x" * 65536
IDS = {
    "images": (changed("images", id=BIG), "entry 0 of 'images' has no 'id'.* but 10000000"),
    "annotations": (changed("annotations", id=-BIG), "entry 0 of 'annotations'.* but -1000000"),
    "categories": (changed("categories", id=BIG), "entry 0 of 'categories'.* but 1000000"),
    "image_id": (changed("annotations", image_id=BIG), "image_id 10000000"),
    "category_id": (changed("annotations", category_id=BIG), "category_id 10000000"),
    "fraction": (changed("images", id=2.5), "entry 0 of 'images'.* but 2.5"),
    "true": (changed("images", id=True), "entry 0 of 'images'.* but True"),
    "width": (changed("images", width=BIG), "no 'width'"),
    "endless width": (changed("images", width=float("inf")), "no 'width'.*inf"),
    "width that is none": (changed("images", height=float("nan")), "no 'height'.*nan"),
    "box": (changed("annotations", bbox=[BIG, 1, 2, 3]), "bbox"),
    "long name": (changed("images", file_name=LONG), "file name 'xxxx"),
    "many folders": (changed("images", file_name="a/" * 500_000), "file name 'a/a/"),
    "many folders up": (changed("images", file_name="../" * 500_000), "file name"),
    "half a letter": (changed("images", file_name="\ud800.jpg"), "file name"),
}


@pytest.mark.parametrize("kind", IDS)
def test_odd_values_of_coco_are_named(tmp_path, kind):
    data, message = IDS[kind]
    root = write_coco(tmp_path)
    file = root / "annotations/train.json"
    file.write_text(json.dumps(data))
    with pytest.raises(AnnotationFileError, match=rf"train\.json': .*{message}") as error:
        check_annotations(file, root / "images")
    assert len(str(error.value)) < 1000
    assert len(as_text(to_dict(check_source(open_source(root))))) < 10_000


NO_JSON = {
    "deep": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "a key twice": '{"images": [], "images": [], "annotations": [], "categories": []}',
    "a key often": "{" + ", ".join(['"a": 1'] * 10_000) + "}",
    "digits": '{"images": [' + "9" * 100_000 + "]}",
    "bytes": b"\xff\xfe\xff",
    "UTF-32": json.dumps(coco("train")).encode("utf-32"),
    "half a letter": b'{"images": "\xed\xa0\x80"}',
}


@pytest.mark.parametrize("kind", NO_JSON)
def test_what_is_no_json_is_refused(tmp_path, kind):
    root = write_coco(tmp_path)
    file = root / "annotations/train.json"
    text = NO_JSON[kind]
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(AnnotationFileError, match=r"train\.json' is not JSON"):
        check_annotations(file, root / "images")
    with pytest.raises(SourceError, match=r"train\.json' is not JSON") as error:
        open_source(f"{file}:{root}/images")
    assert len(str(error.value)) < 1000
    with pytest.raises(ValueError):
        read_ground_truth(file)


def test_a_mark_at_the_beginning_is_read(tmp_path):
    root = write_coco(tmp_path)
    for encoding in ("utf-8-sig", "utf-16"):
        (root / "annotations/train.json").write_bytes(json.dumps(coco("train")).encode(encoding))
        assert len(open_source(root).data["images"]) == 4


# -- masks --------------------------------------------------------------------------------------


def test_masks_of_pycocotools_pass_and_no_others():
    rng = np.random.default_rng(0)
    for share in (0, 0.01, 0.3, 0.9, 1):
        mask = np.asfortranarray((rng.random((31, 47)) < share).astype(np.uint8))
        text = mask_api.encode(mask)["counts"].decode()
        assert is_whole_mask(text, [31, 47])
        assert not is_whole_mask(text, [31, 46]) and not is_whole_mask(text[:-1], [31, 47])


LIES = [
    {"counts": [10**9, 5], "size": [96, 128]},
    {"counts": [-5, 5 + 96 * 128], "size": [96, 128]},
    {"counts": [96.0 * 128], "size": [96, 128]},
    {"counts": "garbage\x00\xff", "size": [96, 128]},
    {"counts": "o" * 100_000, "size": [96, 128]},
    {"counts": "", "size": [96, 128]},
    {"counts": [10**18], "size": [10**9, 10**9]},
    {"counts": [12], "size": [12, True]},
    {"counts": [1], "size": [1, 1, 1]},
    {"size": [96, 128]},
    [[1e9, 1, 2, 3, 1e18, 4]],
    [["a"] * 6],
    [[float("nan")] * 6],
    [[1, 2, 3, 4, 5, 6], [BIG] * 6],
    [[[]] * 6],
]


@pytest.mark.parametrize("segmentation", LIES, ids=range(len(LIES)))
def test_masks_that_lie_are_errors(tmp_path, segmentation):
    root = write_coco(tmp_path)
    data = changed("annotations", segmentation=segmentation)
    (root / "annotations/train.json").write_text(json.dumps(data))
    with pytest.raises(AnnotationFileError, match="annotation 1 of image 1 has the segmentation"):
        check_annotations(root / "annotations/train.json", root / "images")


# -- XML ----------------------------------------------------------------------------------------

OBJECT = xml("a.jpg", [("cat", 1, 2, 30, 40)])
XML = {
    "deep": f"<annotation>{'<a>' * 60}{'</a>' * 60}</annotation>",
    "two many boxes": OBJECT.replace("<bndbox>", "<bndbox/>" * 10_000 + "<bndbox>"),
    "no letters": OBJECT.replace("cat", "\x01"),
    "another encoding": f'<?xml version="1.0" encoding="gbk"?>{OBJECT}\xff',
    "two roots": OBJECT * 2,
    "no such letter": OBJECT.replace("cat", "&#xD800;"),
}
LARGE_XML = {
    "elements": f"<annotation>{'<a/>' * 600_000}</annotation>",
    "objects": xml("a.jpg", [("cat", 1, 2, 30, 40)] * 100_000),
    "attributes": f"<annotation {' '.join(f'a{i}=``' for i in range(200_000))}/>",
    "attribute": f"<annotation a='{'x' * 10_000_000}'><object/></annotation>",
    "name spaces": f"<annotation {' '.join(f'xmlns:a{i}=`u`' for i in range(100_000))}/>",
    "references": OBJECT.replace("cat", "&#97;" * 2_000_000).replace("<xmin>2", "<xmin>"),
}


def found_in_xml(root, text):
    (root / "Annotations/a.xml").write_text(text.replace("`", "'"), encoding="latin-1")
    findings = open_source(root).findings
    assert all(len(f"{x.value}{x.file}") < 1000 for x in findings)
    return [x.kind for x in findings]


@pytest.mark.parametrize("kind", XML)
def test_odd_xml_is_found(tmp_path, kind):
    (found,) = found_in_xml(write_voc(tmp_path), XML[kind])
    assert found.startswith("unreadable")


@pytest.mark.slow
@pytest.mark.parametrize("kind", LARGE_XML)
def test_large_xml_takes_little_time(tmp_path, kind):
    found = found_in_xml(write_voc(tmp_path), LARGE_XML[kind])
    assert found or kind in ("attributes", "name spaces")


# -- random changes -----------------------------------------------------------------------------

PIECES = (
    *("{", "}", "[", "]", '"', ":", ",", "\\ud800", "\\u0000", "NaN", "-Infinity", "1e999", "-"),
    *("9" * 30, "9" * 5000, "true", "null", "0.5", "<", "</object>", "&#0;", "&amp;", "<!--"),
    *(
        "<![CDATA[",
        "<!DOCTYPE a [",
        "<?a ?>",
        "\0",
        "\x0c",
        "\u00a0",
        "\ufeff",
        "١",
        "1_0",
        "[" * 99,
    ),
)


def mutated(rng, text):
    for _ in range(rng.randint(1, 5)):
        place = rng.randrange(len(text) + 1)
        piece = rng.choice((*PIECES, text[place : place + 60])) * rng.choice((1, 1, 1, 30))
        text = text[:place] + piece + text[place + rng.choice((0, 0, 1, 20)) :]
    return text


def test_random_json_is_read_or_refused(tmp_path):
    root, rng, refused = write_coco(tmp_path), random.Random(3), 0
    file, whole_text = root / "annotations/train.json", json.dumps(coco("train"))
    for _ in range(ROUNDS):
        text = mutated(rng, whole_text)
        file.write_text(text, encoding="utf-8")
        try:
            parse_json(text)
            check = check_source(open_source(f"{file}:{root}/images"), read_images=False)
            as_text(to_dict(check))
            refused += check.num_errors > 0
        except ValueError as error:
            assert len(str(error)) < 1000
            refused += 1
    assert refused > ROUNDS // 4


def test_random_xml_is_read_or_refused():
    rng, refused = random.Random(4), 0
    for _ in range(ROUNDS):
        text = mutated(rng, OBJECT)
        try:
            node = annotation_of(text.encode(rng.choice(("utf-8", "utf-16", "latin-1")), "ignore"))
            for inner in node.findall("object"):
                object_of(inner)
        except ValueError as error:
            assert len(str(error)) < 1000 and not re.search("Traceback", str(error))
            refused += 1
    assert refused > ROUNDS // 4


# -- descriptors --------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_coco, write_voc, write_yolo])
def test_no_file_stays_open(tmp_path, write):
    root = write(tmp_path)
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        check_source(open_source(root), decode=True)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.slow
def test_a_large_folder_is_read_with_few_descriptors(tmp_path):
    root = write_yolo(tmp_path)
    for i in range(500):
        write_image(root / f"train/images/{i}.jpg", (16, 16))
        (root / f"train/labels/{i}.txt").write_text("0 .5 .5 .5 .5\n" if i % 3 else "x")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, before[1]))
    try:
        assert len(check_source(open_source(root)).entries.images) == 504
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
