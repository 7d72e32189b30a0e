"""The set-up script refuses what it should, mends what it says, and leaves a detectron2 alone.

Everything runs on tiny archives made here; nothing is downloaded or installed.
"""

import hashlib
import importlib.util
import io
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "install_detectron2.py"
TOP = "pb1-detectron2-0.6"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; dataclasses need it in sys.modules."""
    spec = importlib.util.spec_from_file_location("install_detectron2_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def write_archive(path: Path, files: dict[str, str], link: str | None = None) -> Path:
    """Write a tar.gz with these member names and texts, and a symbolic link if named."""
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
        if link is not None:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc"
            tar.addfile(member)
    return path


def write_release(script: ModuleType, path: Path, leave_out: str = "") -> str:
    """Write an archive in which every mend finds what it replaces; returns its SHA-256.

    Args:
        script: the script under test, which knows its mends.
        path: the archive to write.
        leave_out: an `old` text of a mend that the archive then lacks.
    """
    files = {f"{TOP}/LICENSE": "A licence.\n", f"{TOP}/setup.py": "raise SystemExit('ran')\n"}
    folders = ("detectron2", "detectron2/projects", "detectron2/model_zoo")
    for package in (*folders, *script.PROJECTS.values()):
        files[f"{TOP}/{package}/__init__.py"] = ""
    files[f"{TOP}/detectron2/model_zoo/configs/Base.yaml"] = "VERSION: 2\n"
    for mend in [*script.operator_mends(), *script.library_mends()]:
        name = f"{TOP}/{mend.path}"
        kept = "" if mend.old == leave_out else (mend.old.rstrip("\n") + "\n") * mend.count
        files[name] = files.get(name, "") + kept
    write_archive(path, files)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("text", ["y = 1\n", "np.bool_\n", "np.bool np.bool\n"])
def test_mend_that_does_not_match_names_file_and_pattern(
    script: ModuleType, tmp_path: Path, text: str
) -> None:
    """No match, a longer name that only starts alike, and one match too many are all refused."""
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(script.SetupError, match=r"a\.py.*'np\.bool' 1 time"):
        script.apply_mend(tmp_path, script.Mend("a.py", "np.bool", "bool"))
    assert (tmp_path / "a.py").read_text() == text


def test_mend_of_missing_file_names_it(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(script.SetupError, match=r"no file b\.py"):
        script.apply_mend(tmp_path, script.Mend("b.py", "x", "y"))


def test_mend_replaces_whole_words_only(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("np.int8(np.int(1)) + np.int\n")
    script.apply_mend(tmp_path, script.Mend("a.py", "np.int", "int", 2))
    assert (tmp_path / "a.py").read_text() == "np.int8(int(1)) + int\n"


def test_other_hash_is_refused_with_both_hashes(script: ModuleType, tmp_path: Path, capsys) -> None:
    archive = tmp_path / "release.tar.gz"
    found = write_release(script, archive)
    status = script.main(["--archive", str(archive), "--wheel-dir", str(tmp_path / "wheels")])
    said = capsys.readouterr().err
    assert status == 1
    assert found in said
    assert script.SHA256 in said
    assert not list(tmp_path.glob("wheels/*"))


def test_missing_archive_is_named(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(script.SetupError, match="nowhere"):
        script.verify_archive(tmp_path / "nowhere.tar.gz")


@pytest.mark.parametrize(
    ("files", "link"),
    [({f"{TOP}/../../outside": ""}, None), ({"/outside": ""}, None), ({}, f"{TOP}/link")],
)
def test_unsafe_members_are_refused(
    script: ModuleType, tmp_path: Path, files: dict[str, str], link: str | None
) -> None:
    good = {f"{TOP}/detectron2/__init__.py": ""}
    archive = write_archive(tmp_path / "release.tar.gz", {**good, **files}, link)
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    with pytest.raises(script.SetupError, match="unsafe member"):
        script.unpack(archive, folder)
    assert not list(folder.iterdir())
    assert not (tmp_path / "deep" / "outside").exists()


def test_other_layout_is_refused(script: ModuleType, tmp_path: Path) -> None:
    archive = write_archive(tmp_path / "release.tar.gz", {"other/readme": ""})
    (tmp_path / "folder").mkdir()
    with pytest.raises(script.SetupError, match="does not look like"):
        script.unpack(archive, tmp_path / "folder")


def test_prepared_source_has_stand_in_projects_and_own_setup(
    script: ModuleType, tmp_path: Path
) -> None:
    write_release(script, tmp_path / "release.tar.gz")
    (tmp_path / "source").mkdir()
    root = script.unpack(tmp_path / "release.tar.gz", tmp_path / "source")
    script.prepare_source(root)
    texts = {path: path.read_text() for path in (root / "detectron2").rglob("*.py")}
    assert not [
        path for path, text in texts.items() if "np.bool" in text or "pkg_resources" in text
    ]
    for name in script.PROJECTS:
        assert (root / "detectron2" / "projects" / name / "__init__.py").is_file()
    assert 'name="detectron2"' in (root / "setup.py").read_text()


def test_release_without_one_pattern_is_refused(script: ModuleType, tmp_path: Path) -> None:
    write_release(script, tmp_path / "release.tar.gz", leave_out="Image.LINEAR")
    (tmp_path / "source").mkdir()
    root = script.unpack(tmp_path / "release.tar.gz", tmp_path / "source")
    with pytest.raises(script.SetupError, match=r"transform\.py.*Image\.LINEAR"):
        script.prepare_source(root)


def test_missing_operator_says_so_at_first_use(script: ModuleType) -> None:
    namespace: dict = {}
    exec(script.MISSING_OPERATORS, namespace)
    with pytest.raises(RuntimeError, match=r"without its compiled operators.*'nms_rotated'"):
        namespace["_C"].nms_rotated  # noqa: B018


def test_importable_detectron2_is_left_alone(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """A package that is merely on the path counts, and no command is run."""
    package = tmp_path / "detectron2" / "__init__.py"
    package.parent.mkdir()
    package.write_text("")
    for name in [name for name in sys.modules if name.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(script, "marker_file", lambda: tmp_path / "no-marker")
    monkeypatch.setattr(script, "run", lambda *_: pytest.fail("a command was run"))
    assert script.main([]) == 0
    said = capsys.readouterr().out
    assert str(package.parent) in said
    assert "left alone" in said


def test_unfinished_installation_is_removed_but_no_other(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "marker_file", lambda: tmp_path / script.MARKER_NAME)
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "other").mkdir()
    script.remove_unfinished()
    assert (tmp_path / "detectron2").is_dir()
    (tmp_path / script.MARKER_NAME).write_text("")
    script.remove_unfinished()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("Expected sha256 " + "a" * 64 + "\n     Got        " + "b" * 64, "b" * 64),
        ("ERROR: Could not find a version", "Check the network"),
    ],
)
def test_failed_download_says_why(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, expected: str
) -> None:
    failed = subprocess.CompletedProcess([], 1, output)
    monkeypatch.setattr(script, "run", lambda *_: failed)
    with pytest.raises(script.SetupError, match=expected) as error:
        script.download_file(f"x==1 --hash=sha256:{'a' * 64}", tmp_path / "new", ["pip"])
    assert "x==1" in str(error.value)


def test_missing_module_comes_with_the_command_for_it(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: name != "torch" or None)
    with pytest.raises(script.SetupError, match=r"torch is missing.*pip install torch torchvision"):
        script.require_modules("setuptools", "torch")


def test_wheel_is_pure_python_and_carries_configs_and_licence(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive's own setup.py, which stops the build here, is not run."""
    pytest.importorskip("wheel")
    archive = tmp_path / "release.tar.gz"
    found = write_release(script, archive)
    monkeypatch.setattr(script.verify_archive, "__defaults__", (found,))
    wheel = script.build_wheel(archive, tmp_path / "wheels")
    assert wheel.name == "detectron2-0.6-py3-none-any.whl"
    names = "\n".join(zipfile.ZipFile(wheel).namelist())
    for expected in ("model_zoo/configs/Base.yaml", "LICENSE", "projects/point_rend/__init__.py"):
        assert expected in names
