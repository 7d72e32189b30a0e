"""Data sets of strangers: XML, YAML, text files and their names lead nowhere and unfold nothing."""

import os
import random
import shutil

import pytest
from formats import (
    BOXES,
    CLASSES,
    WRITERS,
    lines,
    write_coco,
    write_image,
    write_voc,
    write_yolo,
    xml,
)

from fsaf_d2.data.reading.formats.foreign_files import MAX_TEXT
from fsaf_d2.data.reading.sources import SourceError, open_source

ROUNDS = int(os.environ.get("FUZZ_ROUNDS", "40"))
SECRET = "root:x:0:0"


@pytest.fixture
def outside(tmp_path):
    """A folder that is none of the data set's."""
    folder = tmp_path / "outside"
    write_image(folder / "images/private.jpg")
    (folder / "labels").mkdir()
    (folder / "labels/private.txt").write_text(lines(BOXES["train"]["a.jpg"]))
    (folder / "passwd").write_text(f"{SECRET}\n")
    return folder


def said(source) -> str:
    """All that a person may come to read."""
    return f"{source.data} {source.findings} {source.notes} {source.places}"


# -- XML ----------------------------------------------------------------------------------------

LAUGHS = '<!DOCTYPE a [<!ENTITY l "lol">' + "".join(
    f'<!ENTITY l{i} "{f"&l{i - 1 if i else str()};" * 10}">' for i in range(20)
)
DOCTYPES = {
    "a billion laughs": LAUGHS + "]>",
    "a file": '<!DOCTYPE a [<!ENTITY l19 SYSTEM "file://{secret}">]>',
    "a parameter": '<!DOCTYPE a [<!ENTITY % p SYSTEM "file://{secret}"> %p;]>',
    "a DTD": '<!DOCTYPE annotation SYSTEM "http://example.com/a.dtd">',
    "one long entity": '<!DOCTYPE a [<!ENTITY l19 "' + "x" * 100_000 + '">]>',
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "ascii"])
@pytest.mark.parametrize("kind", DOCTYPES)
def test_document_types_are_refused(tmp_path, outside, little_memory, kind, encoding):
    root = write_voc(tmp_path / "own")
    doctype = DOCTYPES[kind].replace("{secret}", str(outside / "passwd"))
    declared = encoding.removesuffix("-le")
    text = f'<?xml version="1.0" encoding="{declared}"?>{doctype}\n'
    text += xml("a.jpg", []).replace("a.jpg", "&l19;")
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    (root / "Annotations/a.xml").write_bytes((mark + text).encode(encoding))
    source = open_source(root)
    (finding,) = source.findings
    assert (finding.kind, finding.severity) == ("unreadable annotation file", "error")
    assert "DOCTYPE" in finding.value
    assert SECRET not in said(source)


@pytest.mark.parametrize("encoding", ["utf-7", "punycode", "idna", "rot13", "zip", "cp037", "x y"])
def test_encodings_that_could_hide_something_are_refused(tmp_path, encoding):
    root = write_voc(tmp_path)
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n{xml("a.jpg", [])}'
    (root / "Annotations/a.xml").write_text(text)
    assert [x.kind for x in open_source(root).findings] == ["unreadable annotation file"]


HOSTILE_XML = {
    "nested": "<a>" * 200_000 + "</a>" * 200_000,
    "nested objects": "<annotation>" + "<object>" * 100_000,
    "not closed": "<annotation><filename>a.jpg",
    "empty": "",
    "no XML": "\0\0\0",
    "an entity": "<annotation><filename>&xxe;</filename></annotation>",
    "another root": "<annotations></annotations>",
}


@pytest.mark.parametrize("kind", HOSTILE_XML)
def test_hostile_xml_is_found(tmp_path, kind):
    root = write_voc(tmp_path)
    (root / "Annotations/a.xml").write_text(HOSTILE_XML[kind])
    source = open_source(root)
    assert [x.kind for x in source.findings] == ["unreadable annotation file"]
    assert len(source.data["images"]) == 3


NAMES = [
    "../../outside/images/private.jpg",
    "{outside}/images/private.jpg",
    "link.jpg",
    "folder/images/private.jpg",
    "a.jpg\n../x.jpg",
    "https://example.com/a.jpg",
]


@pytest.mark.parametrize("size", [None, (128, 96)])
@pytest.mark.parametrize("name", NAMES)
def test_file_names_of_voc_do_not_lead_out(tmp_path, outside, name, size):
    root = write_voc(tmp_path / "own")
    (root / "JPEGImages/a.jpg").unlink()
    (root / "JPEGImages/link.jpg").symlink_to(outside / "images/private.jpg")
    text = xml(name.format(outside=outside), [("cat", 1, 2, 3, 4)], size=size)
    (root / "Annotations/a.xml").write_text(text)
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    source = open_source(root)
    if size is None:
        # What would have to be opened is not.
        assert [x.kind for x in source.findings] == ["unreadable image"]
        assert source.data["images"] == []
    else:
        # As it stands, for the checks to refuse.
        assert source.data["images"][0]["file_name"] == os.path.normpath(
            name.format(outside=outside)
        )


@pytest.mark.parametrize("entry", ["../../../outside/passwd", "/etc/passwd", "link"])
def test_lists_of_voc_do_not_lead_out(tmp_path, outside, entry):
    root = write_voc(tmp_path / "own")
    (root / "ImageSets/Main/train.txt").write_text(f"{entry}\na\n")
    source = open_source(root)
    assert [x.kind for x in source.findings] == ["listed file is missing"]
    assert [x["file_name"] for x in source.data["images"]] == ["a.jpg"]
    shutil.copy(root / "ImageSets/Main/train.txt", outside / "train.txt")
    (root / "ImageSets/Main/train.txt").unlink()
    (root / "ImageSets/Main/train.txt").symlink_to(outside / "train.txt")
    with pytest.raises(SourceError, match="leads out of its folder"):
        open_source(root)


# -- links and sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_annotation_files_that_are_links_out_are_not_read(tmp_path, outside, kind):
    root = WRITERS[kind](tmp_path / "own")
    file = root / ("Annotations/a.xml" if kind == "voc" else "train/labels/a.txt")
    file.unlink()
    file.symlink_to(outside / "passwd")
    source = open_source(root)
    assert [x.kind for x in source.findings] == ["unreadable annotation file"]
    assert "leads out of its folder" in source.findings[0].value
    assert SECRET not in said(source)


def test_images_that_are_links_out_are_not_read(tmp_path, outside):
    root = write_yolo(tmp_path / "own")
    (root / "train/images/a.jpg").unlink()
    (root / "train/images/a.jpg").symlink_to(outside / "images/private.jpg")
    source = open_source(root)
    assert [x.kind for x in source.findings] == ["unreadable image"]
    assert "a.jpg" not in [x["file_name"] for x in source.data["images"]]


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_folders_that_are_links_are_not_followed_in_silence(tmp_path, outside, kind):
    root = WRITERS[kind](tmp_path / "own")
    place = "JPEGImages" if kind == "voc" else "train/images"
    (root / place / "more").symlink_to(outside)
    with pytest.raises(SourceError, match="more' is a link to a folder"):
        open_source(root)


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_huge_annotation_files_are_not_read(tmp_path, little_memory, kind):
    root = WRITERS[kind](tmp_path)
    file = root / ("Annotations/a.xml" if kind == "voc" else "train/labels/a.txt")
    with open(file, "wb") as huge:
        huge.truncate(100 * MAX_TEXT)
    source = open_source(root)
    assert [x.kind for x in source.findings] == ["unreadable annotation file"]
    assert "larger than" in source.findings[0].value


# -- YAML ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        "../outside/images",
        "{outside}/images",
        "linked/images",
        "train/../../outside/images",
        "..",
        "/",
        "~",
    ],
)
@pytest.mark.parametrize("key", ["train", "path"])
def test_yaml_files_do_not_lead_out(tmp_path, outside, place, key):
    root = write_yolo(tmp_path / "own")
    (root / "linked").symlink_to(outside)
    place = place.format(outside=outside)
    where = f"train: '{place}'\n" if key == "train" else f"path: '{place}'\ntrain: images\n"
    (root / "data.yaml").write_text(f"{where}names: {CLASSES}\n")
    with pytest.raises(SourceError):
        open_source(root)


def test_labels_outside_of_the_yaml_files_folder_are_not_taken(tmp_path):
    """ ".../images/own" has labels in ".../labels/own" where a person names it, but not in YAML."""
    write_image(tmp_path / "images/own/train/a.jpg")
    (tmp_path / "labels/own/train").mkdir(parents=True)
    (tmp_path / "labels/own/train/a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    file = tmp_path / "images/own/data.yaml"
    file.write_text("train: train\nnames: [cat]\n")
    with pytest.raises(SourceError, match="None of the 1 images"):
        open_source(file)


YAML = {
    "apply": "train: !!python/object/apply:os.mkdir ['{marker}']",
    "name": "train: !!python/name:os.system",
    "own tag": "train: !mine train/images",
    "laughs": "a0: &a0 [lol]\n"
    + "\n".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 40)),
    "itself": "train: &a [*a]",
    "nested": "train: " + "[" * 5000,
    "huge": "#" + "x" * (1 << 21),
    "no text": "\0\1",
}


@pytest.mark.parametrize("kind", YAML)
@pytest.mark.parametrize("as_file", [False, True])
def test_hostile_yaml_is_refused(tmp_path, little_memory, kind, as_file):
    root = write_yolo(tmp_path / "own")
    text = YAML[kind].replace("{marker}", str(tmp_path / "marker"))
    (root / "data.yaml").write_text(f"names: {CLASSES}\n{text}\n")
    with pytest.raises(SourceError, match=r"data\.yaml"):
        open_source(root / "data.yaml" if as_file else root)
    assert not (tmp_path / "marker").exists()


# -- JSON ---------------------------------------------------------------------------------------


def test_images_outside_do_not_say_where_the_image_folder_is(tmp_path, outside):
    root = write_coco(tmp_path / "own")
    shutil.rmtree(root / "images")
    file = root / "annotations/train.json"
    file.write_text(file.read_text().replace("a.jpg", "../../outside/images/private.jpg"))
    with pytest.raises(SourceError, match="None of the 4 images"):
        open_source(root)


# -- random changes -----------------------------------------------------------------------------

PIECES = (b"", b"\xff", b"<", b"</object>", b"&#x41;", b"<![CDATA[", b"1e999", b"nan", b"-", b" 0 ")


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_changed_bytes_are_read_or_found(tmp_path, kind):
    root = WRITERS[kind](tmp_path)
    file = root / ("Annotations/a.xml" if kind == "voc" else "train/labels/a.txt")
    whole, rng, found = file.read_bytes(), random.Random(1), 0
    for _ in range(ROUNDS):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(content))
            piece = rng.choice((*PIECES, rng.randbytes(2)))
            content[place : place + rng.choice((0, 1, 20))] = piece
        file.write_bytes(content)
        source = open_source(root)
        found += bool(source.findings)
        for annotation in source.data["annotations"]:
            assert len(annotation["bbox"]) == 4
            assert all(isinstance(x, float) for x in annotation["bbox"])
            assert isinstance(annotation["category_id"], int)
    assert found > ROUNDS // 4
