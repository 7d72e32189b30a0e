"""Make detectron2 0.6 importable in the interpreter that runs this script.

Detectron2 has no official release on PyPI. `pb1-detectron2` 0.6 is a source release there whose
Python files are those of the official tag v0.6, without the C++ sources of the compiled operators.
This script fetches that archive, checks its hash, leaves the compiled operators out, mends the few
lines that current NumPy, Pillow, setuptools and PyTorch no longer accept, and installs the result
as an ordinary pure-Python wheel named `detectron2`.

A `detectron2` that is already importable is left alone, whatever its version.

    python tools/install_detectron2.py                   # download, build, install
    python tools/install_detectron2.py --archive FILE    # the same from a copy of the archive
    python tools/install_detectron2.py --wheel-dir DIR   # only build the wheel, to carry elsewhere

pip's own settings hold (PIP_INDEX_URL, PIP_CONSTRAINT, ...). Exit status: 0 when detectron2 is
importable or the wheel was written, otherwise 1 with the reason and the remedy on stderr.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

RELEASE = "pb1-detectron2"
VERSION = "0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
PIP = "pip==26.2.1"
PIP_SHA256 = "71138adf1f4ca900cdb7d289c21b7494329f2332b6d85f0e1c42108c0384ed3e"
MARKER_NAME = ".detectron2-install-unfinished"

PROJECTS = {
    "point_rend": "projects/PointRend/point_rend",
    "deeplab": "projects/DeepLab/deeplab",
    "panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}

MISSING_OPERATORS = '''\
"""Stands in for the extension module detectron2._C, which this build does not have."""


class _MissingOperators:
    """Raises a RuntimeError when one of the compiled operators is looked up."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(
            f"this detectron2 was built without its compiled operators, so {name!r} is missing "
            "(rotated boxes and deformable convolution on a GPU need them). To use it, build "
            "detectron2 from its git repository with a C++ compiler."
        )


_C = _MissingOperators()
'''

GUARDED_CAFFE2 = """\
try:
    from .api import *
except ModuleNotFoundError as error:
    # PyTorch no longer brings caffe2; tracing and scripting do without it.
    if (error.name or "").split(".")[0] != "caffe2":
        raise
"""

SETUP_PY = """\
from pathlib import Path

from setuptools import find_packages, setup

ZOO = Path("detectron2/model_zoo")
setup(
    name="detectron2",
    version="{version}",
    description="Detectron2 {version} without compiled operators, mended for current libraries",
    url="https://github.com/facebookresearch/detectron2",
    author="FAIR",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["detectron2", "detectron2.*"]),
    package_data={{
        "detectron2.model_zoo": [
            str(file.relative_to(ZOO))
            for suffix in ("yaml", "py")
            for file in sorted((ZOO / "configs").rglob("*." + suffix))
        ]
    }},
    python_requires=">=3.10",
    install_requires=[
        "Pillow>=7.1",
        "matplotlib",
        "numpy",
        "pycocotools>=2.0.2",
        "termcolor>=1.1",
        "yacs>=0.1.8",
        "tabulate",
        "cloudpickle",
        "tqdm>4.29.0",
        "tensorboard",
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.7,<0.1.10",
        "omegaconf>=2.1",
        "hydra-core>=1.1",
        "packaging",
    ],
)
"""


class SetupError(Exception):
    """Set-up cannot go on; the message is a sentence that names the remedy."""


@dataclass(frozen=True)
class Mend:
    """One replacement in one file of the release.

    Attributes:
        path: the file, relative to the top folder of the archive.
        old: literal text, matched as whole words (`np.bool` does not match in `np.bool_`).
        new: what takes its place.
        count: how often `old` occurs in the file.
    """

    path: str
    old: str
    new: str
    count: int = 1


def operator_mends() -> list[Mend]:
    """Mends that do without detectron2._C: clear errors, and pycocotools for the COCO metric."""
    stand_in = "from detectron2.missing_operators import _C"
    layers = "detectron2/layers/"
    coco = "detectron2/evaluation/coco_evaluation.py"
    fast = "from detectron2.evaluation.fast_eval_api import COCOeval_opt"
    said = '"unofficial" if self._use_fast_impl'
    return [
        *(
            Mend(layers + name, "from detectron2 import _C", stand_in)
            for name in ("deform_conv.py", "roi_align_rotated.py", "rotated_boxes.py")
        ),
        Mend(layers + "nms.py", "import torch\n", f"import torch\n\n{stand_in}\n"),
        Mend(layers + "nms.py", "torch.ops.detectron2.nms_rotated", "_C.nms_rotated"),
        Mend(coco, fast, f"try:\n    {fast}\nexcept ImportError:\n    COCOeval_opt = COCOeval"),
        Mend(coco, said, f"{said} and COCOeval_opt is not COCOeval"),
    ]


def library_mends() -> list[Mend]:
    """Mends of what NumPy, Pillow, setuptools and PyTorch removed or are about to refuse."""
    numpy_aliases = [
        ("data/build.py", "int", 2),
        ("data/datasets/pascal_voc.py", "str", 1),
        ("evaluation/pascal_voc_evaluation.py", "bool", 2),
        ("evaluation/sem_seg_evaluation.py", "int", 2),
        ("evaluation/sem_seg_evaluation.py", "float", 5),
        ("structures/masks.py", "bool", 3),
        ("utils/video_visualizer.py", "bool", 1),
        ("utils/visualizer.py", "bool", 3),
    ]
    grid = "torch.meshgrid(shifts_y, shifts_x"
    zoo = "detectron2/model_zoo/model_zoo.py"
    zoo_folder = 'str(importlib.resources.files("detectron2.model_zoo"))'
    return [
        *(
            Mend(f"detectron2/{path}", f"np.{name}", name, count)
            for path, name, count in numpy_aliases
        ),
        Mend("detectron2/data/transforms/transform.py", "Image.LINEAR", "Image.BILINEAR"),
        Mend("detectron2/export/__init__.py", "from .api import *\n", GUARDED_CAFFE2),
        Mend("detectron2/modeling/anchor_generator.py", f"{grid})", f'{grid}, indexing="ij")'),
        Mend(zoo, "import os\n", "import importlib.resources\nimport os\n"),
        Mend(zoo, "import pkg_resources\n", ""),
        Mend(zoo, "pkg_resources.resource_filename", "os.path.join"),
        Mend(
            zoo,
            '"detectron2.model_zoo", os.path.join("configs", config_path)\n',
            f'{zoo_folder}, "configs", config_path\n',
        ),
    ]


def apply_mend(root: Path, mend: Mend) -> None:
    """Apply one mend below `root`.

    Raises:
        SetupError: the file is missing, or `mend.old` does not occur exactly `mend.count` times.
    """
    file = root / mend.path
    if not file.is_file():
        raise SetupError(f"The archive has no file {mend.path}, so it is not {RELEASE} {VERSION}.")
    before = r"(?<!\w)" if mend.old[0].isidentifier() else ""
    after = r"(?!\w)" if mend.old[-1].isidentifier() else ""
    pattern = before + re.escape(mend.old) + after
    text, found = re.subn(pattern, lambda _: mend.new, file.read_text(encoding="utf-8"))
    if found != mend.count:
        raise SetupError(
            f"{mend.path}: expected {mend.old!r} {mend.count} time(s), found it {found} time(s), "
            f"so this is not {RELEASE} {VERSION} as released."
        )
    file.write_text(text, encoding="utf-8")


def prepare_source(root: Path) -> None:
    """Turn the unpacked release into a source tree of a pure-Python package named detectron2.

    Raises:
        SetupError: a mend did not find exactly what it replaces.
    """
    for mend in [*operator_mends(), *library_mends()]:
        apply_mend(root, mend)
    stand_in = root / "detectron2" / "missing_operators.py"
    stand_in.write_text(MISSING_OPERATORS, encoding="utf-8")
    for name, place in PROJECTS.items():
        shutil.copytree(root / place, root / "detectron2" / "projects" / name)
    (root / "setup.cfg").unlink(missing_ok=True)
    (root / "setup.py").write_text(SETUP_PY.format(version=VERSION), encoding="utf-8")


def verify_archive(archive: Path, expected: str = SHA256) -> None:
    """Check the SHA-256 of `archive`.

    Raises:
        SetupError: the file is missing or its hash differs from `expected`.
    """
    if not archive.is_file():
        raise SetupError(f"There is no file {archive}; --archive takes {RELEASE}-{VERSION}.tar.gz.")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != expected:
        raise SetupError(hash_message(str(archive), found, expected))


def hash_message(what: str, found: str, expected: str) -> str:
    """What to say of a file whose hash is not the expected one."""
    return (
        f"{what} is not the file this project was checked with: its sha256 is {found}, expected "
        f"{expected}. Nothing of it was run or installed. Delete it, or point pip at an index that "
        "serves the original."
    )


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack `archive` below `folder` and return its single top folder.

    Raises:
        SetupError: a member is a link or would land outside `folder`, or the archive is not laid
            out as a source release of detectron2.
    """
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        for member in members:
            inside = (folder / member.name).resolve().is_relative_to(folder.resolve())
            if not inside or not (member.isfile() or member.isdir()):
                raise SetupError(
                    f"{archive} has an unsafe member {member.name!r}; nothing was installed."
                )
        # Before 3.10.12 tarfile has no filters; the loop above covers what matters here.
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(folder, members, **safely)
    tops = [path for path in folder.iterdir() if path.is_dir()]
    if len(tops) != 1 or not (tops[0] / "detectron2" / "__init__.py").is_file():
        raise SetupError(f"{archive} does not look like a source release of detectron2.")
    return tops[0]


def download_archive(folder: Path) -> Path:
    """Download the source release into `folder`; returns its path.

    pip refuses another hash before it runs any of the archive. Then it asks the archive for its
    metadata, and that setup.py imports torch: hence --no-build-isolation, and torch must be here.
    From 26.3 on pip also refuses every release that names a URL among its requirements, as this
    one does in an extra that is never installed; so a fixed pip, run from its wheel, does it.

    Raises:
        SetupError: torch, setuptools or wheel is missing, a download failed, or a hash differs.
    """
    require_modules("torch", "setuptools", "wheel")
    own_pip = [sys.executable, "-m", "pip"]
    pip_wheel = download_file(f"{PIP} --hash=sha256:{PIP_SHA256}", folder / "pip", own_pip)
    fixed_pip = [sys.executable, str(pip_wheel / "pip")]
    requirement = f"{RELEASE}=={VERSION} --hash=sha256:{SHA256}"
    options = ("--no-build-isolation", "--no-binary", ":all:")
    return download_file(requirement, folder / "release", fixed_pip, *options)


def download_file(requirement: str, folder: Path, pip: list[str], *options: str) -> Path:
    """Download the one file of a requirement with a hash into the new `folder`; returns its path.

    Args:
        requirement: a line `name==version --hash=sha256:...`.
        folder: is created.
        pip: the command that starts pip.
        options: further options of `pip download`.

    Raises:
        SetupError: the download failed or the hash differs.
    """
    folder.mkdir()
    listing = folder.with_suffix(".txt")
    listing.write_text(requirement + "\n", encoding="utf-8")
    command = [*pip, "download", "--no-deps", "--require-hashes", *options]
    # An exact version with its hash needs no constraints, and they could forbid it.
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    result = run([*command, "-r", str(listing), "-d", str(folder)], environment)
    files = sorted(folder.iterdir())
    if result.returncode == 0 and len(files) == 1:
        return files[0]
    name, expected = requirement.split()[0], requirement.rsplit(":", 1)[1]
    found = re.search(r"Got\s+([0-9a-f]{64})", result.stdout)
    if found:
        raise SetupError(hash_message(f"The downloaded {name}", found.group(1), expected))
    raise SetupError(
        f"{name} could not be downloaded. Check the network and pip's index settings and run this "
        f"again, or give a copy of {RELEASE}-{VERSION}.tar.gz with --archive FILE. "
        f"The end of pip's output:\n{last_lines(result.stdout)}"
    )


def build_wheel(archive: Path, wheel_dir: Path) -> Path:
    """Build the mended wheel from `archive` into `wheel_dir` and return its path.

    Raises:
        SetupError: the archive is not the expected release, or the build failed.
    """
    require_modules("setuptools", "wheel")
    verify_archive(archive)
    wheel_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="detectron2-") as folder:
        root = unpack(archive, Path(folder))
        prepare_source(root)
        options = ["--no-deps", "--no-build-isolation", "--no-cache-dir", "-w", str(wheel_dir)]
        result = run([sys.executable, "-m", "pip", "wheel", *options, str(root)])
    wheel = wheel_dir / f"detectron2-{VERSION}-py3-none-any.whl"
    if result.returncode != 0 or not wheel.is_file():
        raise SetupError(
            "The wheel of detectron2 could not be built; upgrade setuptools and wheel in this "
            f"environment and run this again. The end of pip's output:\n{last_lines(result.stdout)}"
        )
    return wheel


def install_wheel(wheel: Path) -> None:
    """Install `wheel` and what it requires into this environment.

    A marker file lies beside the packages while pip works, so that the next run can tell an
    interrupted installation of ours from a detectron2 that somebody else installed.

    Raises:
        SetupError: pip failed, or the installed package cannot be imported.
    """
    marker = marker_file()
    marker.write_text("The installation of detectron2 has not finished.\n", encoding="utf-8")
    result = run([sys.executable, "-m", "pip", "install", "--no-build-isolation", str(wheel)])
    if result.returncode != 0:
        raise SetupError(
            f"pip could not install {wheel.name}; free space, the network and conflicting versions "
            f"are the usual reasons. The end of its output:\n{last_lines(result.stdout)}"
        )
    check = run([sys.executable, "-c", "import detectron2, detectron2.model_zoo"])
    if check.returncode != 0:
        raise SetupError(
            "detectron2 was installed but cannot be imported; the versions in constraints.txt are "
            f"known to work. Python said:\n{last_lines(check.stdout)}"
        )
    marker.unlink()


def marker_file() -> Path:
    """The file that notes an unfinished installation, beside this environment's packages."""
    return Path(sysconfig.get_path("purelib")) / MARKER_NAME


def remove_unfinished() -> None:
    """Remove what an interrupted run of this script left here; do nothing if there is none."""
    marker = marker_file()
    if not marker.is_file():
        return
    packages = marker.parent
    for leftover in [packages / "detectron2", *packages.glob("detectron2-*.dist-info")]:
        shutil.rmtree(leftover, ignore_errors=True)
    marker.unlink()
    importlib.invalidate_caches()


def find_installed() -> str | None:
    """The detectron2 that this interpreter imports ("version in folder"), None if there is none."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return None
    try:
        version = importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    return f"{version} in {Path(spec.origin).parent}"


def require_modules(*names: str) -> None:
    """Raise a SetupError if one is missing; it names the command that installs it."""
    for name in ("pip", *names):
        if importlib.util.find_spec(name) is None:
            packages = "torch torchvision" if name == "torch" else name
            remedy = "ensurepip" if name == "pip" else f"pip install {packages}"
            raise SetupError(f"{name} is missing here; first run: {sys.executable} -m {remedy}")


def run(
    command: list[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command; its stdout and stderr are one text, and the caller judges the exit status."""
    merged = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.run(command, env=environment, check=False, **merged)


def last_lines(text: str, count: int = 12) -> str:
    """The last `count` lines of `text`."""
    return "\n".join(text.strip().splitlines()[-count:])


def make_available(archive: Path | None, wheel_dir: Path | None) -> str:
    """Do what the command line asks; returns a sentence that says what was done.

    Args:
        archive: a copy of the release; it is downloaded if None.
        wheel_dir: where to leave the wheel without installing it; install it if None.

    Raises:
        SetupError: some step failed.
    """
    if wheel_dir is None:
        remove_unfinished()
        installed = find_installed()
        if installed is not None:
            return f"detectron2 {installed} is already there and is left alone."
    with tempfile.TemporaryDirectory(prefix="detectron2-") as folder:
        release = archive or download_archive(Path(folder))
        wheel = build_wheel(release, wheel_dir or Path(folder) / "wheel")
        if wheel_dir is not None:
            return f"Built {wheel}."
        install_wheel(wheel)
    return f"Installed detectron2 {VERSION} without its compiled operators."


def main(arguments: list[str] | None = None) -> int:
    """Run the script with these command-line arguments; returns the exit status."""
    parser = argparse.ArgumentParser(description="Make detectron2 0.6 importable.")
    parser.add_argument("--archive", type=Path, help="a copy of the release, not a download")
    parser.add_argument("--wheel-dir", type=Path, help="only build the wheel, into this folder")
    options = parser.parse_args(arguments)
    try:
        print(make_available(options.archive, options.wheel_dir))
        return 0
    except SetupError as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
    except OSError as error:
        print(f"install_detectron2: {error}. Is this environment writable?", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
