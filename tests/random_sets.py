"""Data sets of every format with random mistakes in names, layouts, counts and encodings."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from formats import WRITERS
from PIL import Image

TEXTS = (".txt", ".xml", ".json", ".yaml")
IMAGES = (".jpg", ".png")
# A word of a text file in place of another.
WORDS = ["", "nan", "1e999", "-0.2", "0", "1", "2", "7", "0.5", "64", "x", "\u87ba", "=1"]
NAMES: list[Callable[[str], str]] = [
    str.upper,
    str.title,
    lambda name: f" {name}",
    lambda name: name.replace(".", " (1)."),
    lambda name: name.replace(".", "%20."),
    lambda name: f"0a1b2c3d-{name}",
    lambda name: f"._{name}",
    lambda name: f"{name}.txt",
    lambda name: f"a\\{name}",
    lambda name: f"caf\udce9{name}",
    lambda name: f"e\u0301{name}",
    lambda name: f"sub folder/{name}",
    lambda name: f"train/{name}",
    lambda name: f"../{name}",
    lambda name: os.path.splitext(name)[0],
    lambda name: os.path.splitext(name)[0] + ".heic",
    lambda name: os.path.splitext(name)[0] + ".tif",
    lambda name: os.path.splitext(name)[0] + ".webp",
]
SETTINGS = [
    "kpt_shape: [1, 2]\n",
    "kpt_shape: [0, 3]\n",
    "label_format: polygon\n",
    "label_format: corners\n",
    "label_format: obb\n",
    "path: /content/set\n",
    "nc: 99\n",
    "train: train.txt\n",
]
MORE = ["0.9", "3", "0.5 0.5", "0.5 0.5 2", "0.4 0.4 0.6 0.6", "0.1 0.2 0.3 0.4 0.5 0.6", "0.9 4"]


def make_set(root: Path, kind: str, seed: int) -> str:
    """Write a set and break it; returns what was done."""
    rng = random.Random(seed)
    WRITERS[kind](root)
    done = []
    for _ in range(rng.randint(1, 4)):
        mistake = rng.choice(MISTAKES)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        if files:
            mistake(rng, root, files)
            done.append(mistake.__name__)
    return f"{kind}, seed {seed}: {', '.join(done)}"


def _one(rng: random.Random, files: list[Path], endings: tuple[str, ...]) -> Path:
    fitting = [file for file in files if file.suffix.lower() in endings]
    return rng.choice(fitting or files)


def _renamed(rng: random.Random, root: Path, file: Path) -> Path:
    other = Path(os.path.normpath(file.parent / rng.choice(NAMES)(file.name)))
    other = other if other.is_relative_to(root) else root / other.name
    other.parent.mkdir(parents=True, exist_ok=True)
    return other


def rename(rng: random.Random, root: Path, files: list[Path]) -> None:
    """A file gets another name or place."""
    file = rng.choice(files)
    other = _renamed(rng, root, file)
    if not other.is_dir():
        file.rename(other)


def copy(rng: random.Random, root: Path, files: list[Path]) -> None:
    """A file is there twice."""
    file = rng.choice(files)
    other = _renamed(rng, root, file)
    if not other.exists():
        shutil.copy(file, other)


def remove(rng: random.Random, root: Path, files: list[Path]) -> None:
    """A file is gone."""
    rng.choice(files).unlink()


def cut(rng: random.Random, root: Path, files: list[Path]) -> None:
    """A file ends too early, or has other bytes in it."""
    file = rng.choice(files)
    content = bytearray(file.read_bytes())
    place = rng.randrange(len(content) + 1)
    content[place:] = b"" if rng.random() < 0.5 else rng.randbytes(9)
    file.write_bytes(content)


def recode(rng: random.Random, root: Path, files: list[Path]) -> None:
    """A text has another encoding or other ends of lines."""
    file = _one(rng, files, TEXTS)
    text = file.read_bytes().decode("latin-1")
    encoding = rng.choice(["utf-8-sig", "utf-16", "utf-16-be", "utf-8"])
    text = rng.choice([text, text.replace("\n", "\r\n"), text.replace("\n", "\r"), f"ü\n{text}"])
    file.write_bytes(text.encode(rng.choice([encoding, "latin-1"])))


def replace_word(rng: random.Random, root: Path, files: list[Path]) -> None:
    """A word or number of a text is another one."""
    file = _one(rng, files, TEXTS)
    text = file.read_bytes().decode("latin-1")
    words = sorted(set(text.replace("<", " ").replace(">", " ").replace(",", " ").split()))
    if words:
        new = rng.choice(WORDS).encode().decode("latin-1")
        text = text.replace(rng.choice(words), new, rng.choice([1, 99]))
        file.write_bytes(text.encode("latin-1"))


def rewrite_lines(rng: random.Random, root: Path, files: list[Path]) -> None:
    """Lines get more or fewer numbers."""
    more, number = rng.choice(MORE), rng.choice([None, 3, 4])
    for file in files if rng.random() < 0.7 else [_one(rng, files, (".txt",))]:
        if file.suffix == ".txt":
            lines = file.read_bytes().decode("latin-1").splitlines()
            lines = [
                " ".join(line.split()[:number]) if number else f"{line} {more}" for line in lines
            ]
            file.write_bytes("\n".join(lines).encode("latin-1"))


def change_settings(rng: random.Random, root: Path, files: list[Path]) -> None:
    """A YAML file says something else, or is there where none was."""
    file = _one(rng, files, (".yaml",))
    file = file if file.suffix == ".yaml" else root / "data.yaml"
    with open(file, "a") as stream:
        stream.write(rng.choice(SETTINGS))


def add_file(rng: random.Random, root: Path, files: list[Path]) -> None:
    """A file of other programs, or a folder with the name of an image."""
    folder = rng.choice([root, rng.choice(files).parent])
    name = rng.choice(["a.heic", ".DS_Store", "Thumbs.db", "x.csv", "train.txt", "x.json", "y.xml"])
    if rng.random() < 0.2:
        (folder / "folder.jpg").mkdir(exist_ok=True)
    elif not (folder / name).exists():
        (folder / name).write_text(rng.choice(["", "a.jpg\n", "{}", "[]", "<annotation/>"]))


def change_entry(rng: random.Random, root: Path, files: list[Path]) -> None:
    """Values of a JSON file are others."""
    file = _one(rng, files, (".json",))
    try:
        data = json.loads(file.read_bytes())
        section = rng.choice(["images", "annotations", "categories"])
        entries = [x for x in data[section] if isinstance(x, dict)]
        for entry in entries if rng.random() < 0.5 else entries[:1]:
            key = rng.choice(sorted(entry))
            value = entry[key]
            other = [None, str(value), [value], -1, 1e300, "../a.jpg"]
            if isinstance(value, str):
                other += [change(value) for change in NAMES]
            elif isinstance(value, int):
                other += [float(value), value + 0.5]
            entry[key] = rng.choice(other)
        if section == "annotations" and entries and rng.random() < 0.5:
            entries[0].pop("bbox", None)
            entries[0]["segmentation"] = [[1, 2, 30, 2, 30, 40]]
    except (ValueError, TypeError, KeyError, AttributeError):
        return
    file.write_text(json.dumps(data))


def save_pages(rng: random.Random, root: Path, files: list[Path]) -> None:
    """An image is thin, or has several pages."""
    file = _one(rng, files, IMAGES)
    sizes = [(128, 96), (1, 3000), (5000, 1), (1, 1), (96, 128)]
    page = Image.new("RGB", rng.choice(sizes), "gray")
    page.save(file, rng.choice(["TIFF", "GIF", "PNG"]), save_all=True, append_images=[page.copy()])


MISTAKES = [
    *(rename, copy, remove, cut, recode, replace_word, rewrite_lines),
    *(change_settings, add_file, change_entry, save_pages),
]
