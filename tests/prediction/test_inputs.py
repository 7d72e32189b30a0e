"""Which files are meant, and that no two of them have outputs of the same name."""

import os
from pathlib import Path

import pytest

from fsaf_d2.prediction import find_inputs


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, and a function that makes files in it."""
    monkeypatch.chdir(tmp_path)

    def make(*names: str) -> None:
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).touch()

    return make


def names(files) -> list[tuple[str, str]]:
    return [(file.path, file.stem) for file in files]


def test_a_folder_gives_its_images_and_videos(here):
    here("in/b.JPG", "in/a.png", "in/clip.mp4", "in/notes.txt", "in/noending", "in/sub/c.png")
    found = find_inputs(["in"])
    assert names(found.images) == [("in/a.png", "a"), ("in/b.JPG", "b")]
    assert names(found.videos) == [("in/clip.mp4", "clip")]
    skipped = dict(found.skipped)
    assert list(skipped) == ["in/noending", "in/notes.txt", "in/sub"]
    assert "not that of an image" in skipped["in/notes.txt"]
    assert "--recursive" in skipped["in/sub"]


def test_folders_in_folders_if_asked_for(here):
    here("in/a.png", "in/sub/a.png", "in/sub/deep/a.png", "in/out/pictures/a.png")
    os.symlink("..", "in/sub/loop")
    found = find_inputs(["in"], recursive=True, output="in/out")
    assert names(found.images) == [
        ("in/a.png", "a"),
        ("in/sub/a.png", "sub/a"),
        ("in/sub/deep/a.png", "sub/deep/a"),
    ]
    assert dict(found.skipped) == {
        "in/out": "it is the output folder",
        "in/sub/loop": "it is a link to a folder",
    }


def test_same_names_in_several_folders_stay_apart(here):
    here("x/images/1.jpg", "y/images/1.jpg", "y/2.jpg")
    found = find_inputs(["x/images", "y/images/1.jpg", "y/2.jpg"])
    assert names(found.images) == [
        ("x/images/1.jpg", "x/images/1"),
        ("y/images/1.jpg", "y/images/1"),
        ("y/2.jpg", "y/2"),
    ]


def test_same_names_but_for_the_ending_stay_apart(here):
    here("a.jpg", "A.png", "a.jpg.png", "b.mp4", "b.png")
    found = find_inputs(["."])
    stems = [file.stem for file in (*found.images, *found.videos)]
    assert sorted(stems) == ["A.png", "a.jpg", "a.jpg_2", "b.mp4", "b.png"]


def test_no_file_comes_twice(here):
    here("in/a.jpg")
    found = find_inputs(["in", "in/a.jpg", "in/../in/*.jpg", os.path.abspath("in/a.jpg")])
    assert names(found.images) == [("in/a.jpg", "a")]


def test_patterns(here):
    here("in/a.jpg", "in/b.jpg", "in/b.txt", "in/x/c.jpg", "in/y/d.jpg", "in/[1].jpg", "in/1.jpg")
    assert names(find_inputs(["in/?.*"]).images) == [
        ("in/1.jpg", "1"),
        ("in/a.jpg", "a"),
        ("in/b.jpg", "b"),
    ]
    assert find_inputs(["in/?.*"]).skipped[0][0] == "in/b.txt"
    assert names(find_inputs(["in/**/[cd].jpg"]).images) == [
        ("in/x/c.jpg", "x/c"),
        ("in/y/d.jpg", "y/d"),
    ]
    # A file of that very name comes before a pattern.
    assert names(find_inputs(["in/[1].jpg"]).images) == [("in/[1].jpg", "[1]")]
    with pytest.raises(FileNotFoundError, match=r"No file matches the input 'in/\*\.gif'"):
        find_inputs(["in/*.gif"])


def test_a_file_that_is_named_is_taken_whatever_its_name(here):
    here("scan.data")
    assert names(find_inputs(["scan.data"]).images) == [("scan.data", "scan")]


def test_what_does_not_exist_is_an_error(here):
    here("a.jpg")
    with pytest.raises(FileNotFoundError, match=r"Input 'b\.jpg' does not exist"):
        find_inputs(["a.jpg", "b.jpg"])


@pytest.mark.parametrize("output", ["in", "link", "in/../in"])
def test_the_input_folder_is_not_the_output_folder(here, output):
    here("in/a.jpg")
    os.symlink("in", "link")
    with pytest.raises(ValueError, match="input folder and the output folder"):
        find_inputs(["in"], output=output)


def test_what_is_not_a_file_is_skipped(here, tmp_path):
    here("in/a.jpg")
    os.mkfifo("in/pipe.jpg")
    os.symlink("nowhere", "in/broken.jpg")
    found = find_inputs(["in"])
    assert names(found.images) == [("in/a.jpg", "a")]
    assert {path for path, _ in found.skipped} == {"in/pipe.jpg", "in/broken.jpg"}


def test_folders_with_brackets_are_no_patterns(here):
    here("set [1]/a.jpg", "set [1]/deep [x]/b.jpg", "set 1/c.jpg", "*/d.png")
    assert names(find_inputs(["set [1]/*.jpg"]).images) == [("set [1]/a.jpg", "a")]
    assert names(find_inputs([os.path.abspath("set [1]/deep [x]/?.jpg")]).images)[0][1] == "b"
    assert names(find_inputs(["set [1]/**/*.jpg"]).images) == [
        ("set [1]/a.jpg", "a"),
        ("set [1]/deep [x]/b.jpg", "deep [x]/b"),
    ]
    assert names(find_inputs(["*/*.png"]).images) == [("*/d.png", "d")]


def test_hidden_files_are_skipped_and_named(here):
    here("in/a.jpg", "in/._a.jpg", "in/.DS_Store", "in/Thumbs.db", "in/__MACOSX/a.jpg")
    found = find_inputs(["in"], recursive=True)
    assert names(found.images) == [("in/a.jpg", "a")]
    assert len(found.skipped) == 4 and {reason for _, reason in found.skipped} == {"it is hidden"}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("in/A.JPG", "'a.jpg' lies in 'in': capitals differ"),
        ("in/a.png", "'a.jpg' lies in 'in': its ending is '.jpg', not '.png'"),
        ("in\\a.jpg", "'a.jpg' lies in 'in': backslashes"),
        ("in/sub/a.jpg", "'a.jpg' lies in 'in': "),
        ("in/*.JPG", "'in/a.jpg' does if capitals are left out of account"),
        ("in/[x].jpg", "Brackets stand for one of the letters"),
    ],
)
def test_what_lies_there_instead_is_named(here, asked, words):
    here("in/a.jpg", "in/b.txt")
    with pytest.raises(FileNotFoundError) as error:
        find_inputs([asked])
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["x.mpo", "x.JP2", "x.Jfif", "x.HEIC", "x.avif", "x.apng"])
def test_endings_of_images(here, name):
    here(name)
    assert [x.path for x in find_inputs(["."]).images] == [f"./{name}"]
