"""Files that lie in a data set and are not used are counted and named; near names are told."""

import json
import shutil

import pytest
from formats import BOXES, CLASSES, WRITERS, coco, lines, write_coco, write_image, write_voc, xml

from fsaf_d2.data.reading.near_names import NearNames
from fsaf_d2.data.reading.sources import SourceError, open_source


def notes(path, split: str = "train") -> str:
    return "\n".join(open_source(path, split).notes)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", WRITERS)
def test_what_belongs_to_the_other_split_is_not_left_out(tmp_path, kind, split):
    source = open_source(WRITERS[kind](tmp_path), split)
    assert [x for x in source.left_out if "README" not in x] == []


def loose(root) -> None:
    for name, objects in BOXES["train"].items():
        for inner in ("", "val/"):
            write_image(root / f"images/{inner}{name}")
            label = root / f"labels/{inner}{name[0]}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(lines(objects))
    (root / "classes.txt").write_text("\n".join(CLASSES))


def test_images_beside_folders_of_splits_are_named(tmp_path):
    loose(tmp_path)
    said = notes(tmp_path, "val")
    assert "4 images are left out" in said and f"'{tmp_path}/images/a.jpg'" in said
    assert "4 other files are not used" in said and "labels/a.txt" in said


@pytest.mark.parametrize("kind", WRITERS)
def test_further_files_are_counted_by_what_they_are(tmp_path, kind):
    root = WRITERS[kind](tmp_path)
    write_image(root / "more/x.jpg")
    (root / "more/iphone.HEIC").write_bytes(b"1")
    (root / "more/notes.csv").write_text("a,b\n")
    for name in (".DS_Store", "._a.jpg", "Thumbs.db"):
        (root / "more" / name).write_bytes(b"\0")
    source = open_source(root)
    said = "\n".join(source.notes)
    assert "1 image is left out" in said and "more/x.jpg" in said
    assert ".heic is not read" in said and "iphone.HEIC" in said and "notes.csv" in said
    assert "3 hidden files" in said
    assert len([x for x in source.left_out if "more" in x]) == 6


def test_hidden_files_of_macos_are_no_labels_and_no_images(tmp_path):
    loose(tmp_path)
    for folder, name in (
        ("images/val", "._a.jpg"),
        ("labels/val", "._a.txt"),
        ("", "._classes.txt"),
    ):
        (tmp_path / folder / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "__MACOSX").mkdir()
    shutil.copytree(tmp_path / "images", tmp_path / "__MACOSX/images")
    source = open_source(tmp_path, "val")
    assert source.findings == [] and len(source.data["images"]) == 4
    assert "3 hidden files, such as '._a.jpg'" in source.notes[-1]


def test_images_that_no_coco_file_names_are_counted(tmp_path):
    root = write_coco(tmp_path)
    write_image(root / "images/new.png")
    for path in (root, f"{root}/annotations/train.json:{root}/images"):
        assert (
            f"1 image is left out, as no part of what is read here: '{root}/images/new.png'."
            in (notes(path))
        )


# -- VOC ----------------------------------------------------------------------------------------


def nested_voc(root, lists: dict[str, list[str]]) -> None:
    """Annotations/camera/NAME.xml, with images beside in the same folders or not."""
    for folder, names in {"left cam": "ab", "right": "bc"}.items():
        for name in names:
            write_image(root / "JPEGImages" / folder / f"{name}.jpg")
            file = root / "Annotations" / folder / f"{name}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(xml(f"{name}.jpg", [("cat", 1, 2, 30, 40)]))
    (root / "ImageSets/Main").mkdir(parents=True)
    for name, listed in lists.items():
        (root / f"ImageSets/Main/{name}.txt").write_text("\n".join(listed) + "\n")


ALL = ["left cam/a", "left cam/b", "right/b", "right/c"]


@pytest.mark.parametrize("lists", [{}, {"default": ALL}, {"trainval": ALL, "test": []}])
def test_folders_in_annotations(tmp_path, lists):
    nested_voc(tmp_path, lists)
    source = open_source(tmp_path)
    names = sorted(x["file_name"] for x in source.data["images"])
    assert names == [f"{x}.jpg" for x in ALL] and source.findings == []
    assert len(source.data["annotations"]) == 4 and source.left_out == []


def test_names_with_spaces_and_marks_in_lists(tmp_path):
    nested_voc(
        tmp_path, {"train": ["left cam/a  1", "left cam/b.jpg", "right/b -1"], "val": ["right/c"]}
    )
    source = open_source(tmp_path)
    assert source.findings == [] and len(source.data["images"]) == 3
    assert [x["file_name"] for x in open_source(tmp_path, "val").data["images"]] == ["right/c.jpg"]


def test_a_listed_name_that_is_nearly_there(tmp_path):
    nested_voc(tmp_path, {"train": ["left cam/a", "Left Cam/B", "c"], "val": ["right/b"]})
    first, second = open_source(tmp_path).findings
    assert first.kind == second.kind == "listed file is missing"
    assert "'left cam/b.xml' lies in" in first.value and "capitals" in first.value
    assert "'right/c.xml' lies in" in second.value and "'right/' is missing" in second.value


def test_the_exact_lists_come_before_trainval(tmp_path):
    root = write_voc(tmp_path)
    (root / "ImageSets/Main/trainval.txt").write_text("a\nb\nc\nd\ne\nf\n")
    (root / "ImageSets/Main/cat_train.txt").write_text("a 1\n")
    source = open_source(root)
    assert len(source.data["images"]) == 4
    assert sorted(x.rpartition("/")[2] for x in source.left_out) == [
        "cat_train.txt",
        "trainval.txt",
    ]


def test_annotations_that_no_list_names_are_counted(tmp_path):
    root = write_voc(tmp_path)
    (root / "ImageSets/Main/train.txt").write_text("a\nb\nc\n")
    assert "d.jpg" in notes(root) and "d.xml" in notes(root)


# -- near names ---------------------------------------------------------------------------------

NEAR = [
    ("img\\A b.jpg", "img/A b.jpg", "backslashes"),
    ("C:\\photos\\img\\A b.jpg", "img/A b.jpg", "backslashes"),
    ("img/A%20b.jpg", "img/A b.jpg", "%20"),
    ("img/a B.JPG", "img/A b.jpg", "capitals differ"),
    ("IMG/A b.jpg", "img/A b.jpg", "capitals of its folders"),
    ("img/A b.png", "img/A b.jpg", "its ending is '.jpg', not '.png'"),
    ("data/img/A b.jpg", "img/A b.jpg", "folders"),
    ("A b.jpg", "img/A b.jpg", "'img/' is missing"),
    ("images/top.png", "top.png", "'images/' is too many"),
    ("img/A b.jpg ", "img/A b.jpg", "spaces at its ends"),
    ("cafe\u0301.png", "caf\u00e9.png", "coded otherwise"),
    ("upload/1/0a1b2c3d-top.png", "top.png", "a program for labels added"),
    ("top_png.rf.0123456789abcdef.jpg", "top.png", "its ending is"),
    ("phone.jpg", "phone.heic", "its ending is '.heic', not '.jpg'"),
]


@pytest.mark.parametrize(("asked", "there", "reason"), NEAR)
def test_a_near_name_says_how_it_differs(tmp_path, asked, there, reason):
    for name in ("img/A b.jpg", "top.png", "caf\u00e9.png", "phone.heic", "other.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = NearNames(str(tmp_path)).find(asked)
    assert found.name == there and reason in found.text and f"'{there}' lies in" in found.text
    # Another ending, or a name that a program has changed, may be of another image.
    is_written_otherwise = "ending" not in reason and "program" not in reason
    assert found.is_certain == is_written_otherwise


@pytest.mark.parametrize("asked", ["quite other.jpg", "", "..", "/", "C:\\"])
def test_nothing_is_near(tmp_path, asked):
    (tmp_path / "a.jpg").touch()
    assert NearNames(str(tmp_path)).find(asked) is None


def test_two_files_that_are_as_near_are_both_named(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").touch()
    near = NearNames(str(tmp_path))
    assert near.find("a.jpg").name is None
    assert "'x/a.jpg' and 'y/a.jpg'" in near.find("a.jpg").text
    assert near.find("old/y/a.jpg").name == "y/a.jpg"
    assert near.find("old/y/a.jpg").is_certain and not near.find("z/a.jpg").is_certain


@pytest.mark.parametrize(
    "write", [lambda x: f"images\\{x}", lambda x: x.upper(), lambda x: f"d/{x}"]
)
def test_a_coco_file_whose_images_have_near_names_alone_finds_their_folder(tmp_path, write):
    root = write_coco(tmp_path)
    data = coco("train")
    for image in data["images"]:
        image["file_name"] = write(image["file_name"])
    (root / "annotations/train.json").write_text(json.dumps(data))
    assert open_source(root).image_root in (f"{root}/images", str(root))


def test_coco_files_in_folders_of_annotations(tmp_path):
    root = write_coco(tmp_path)
    (root / "annotations/version 2").mkdir()
    for file in root.glob("annotations/*.json"):
        file.rename(root / "annotations/version 2" / file.name)
    assert len(open_source(root, "val").data["images"]) == 2


def test_labels_that_lie_elsewhere_are_named(tmp_path):
    loose(tmp_path)
    shutil.rmtree(tmp_path / "labels/val")
    with pytest.raises(
        SourceError, match=r"None of the 4 images .* In '.*labels' there is: a\.txt"
    ):
        open_source(tmp_path, "val")
