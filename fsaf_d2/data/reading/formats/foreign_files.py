"""Files of strangers: texts of limited size, names of images."""

from __future__ import annotations

import os

from ..image_folder import ImageFolder
from .source import SourceError

# Bytes of one XML, YAML or text file; what is about one image takes some kilobytes.
MAX_TEXT = 1 << 24

IMAGES = frozenset(
    f".{kind}"
    for kind in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "gif", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "jp2"),
    )
)


def is_image(name: str) -> bool:
    """Whether a file name ends as that of an image, and is not hidden."""
    base = os.path.basename(name)
    return os.path.splitext(base)[1].lower() in IMAGES and not base.startswith(".")


def find_entry(folder: str, *names: str) -> str | None:
    """The path of the entry of a folder that has one of these names, in capitals or not.

    Raises:
        SourceError: two entries have.
    """
    if not os.path.isdir(folder):
        return None
    found = [name for name in sorted(os.listdir(folder)) if name.lower() in names]
    if len(found) > 1:
        raise SourceError(
            f"'{folder}' holds both '{found[0]}' and '{found[1]}', which may be meant for the "
            "same: rename or move one of them."
        )
    return os.path.join(folder, found[0]) if found else None


def list_files(folder: str, *extensions: str) -> list[str]:
    """Names of the files of a folder itself that end so and are not hidden, sorted."""
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(extensions)
        and not entry.name.startswith(".")
        and entry.is_file()
    )


def list_images(folder: str) -> list[str]:
    """Names of all images in a folder and the folders in it, relative to it, sorted.

    Raises:
        SourceError: a folder in it is a link, which could lead anywhere.
    """
    names = []
    for parent, folders, files in os.walk(folder):
        for name in folders:
            path = os.path.join(parent, name)
            if os.path.islink(path):
                raise SourceError(
                    f"'{path}' is a link to a folder, which is not followed. Move the folder "
                    "itself there, or name it as a data set of its own."
                )
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [os.path.join(parent, name) for name in files if is_image(name)]
    return sorted(os.path.relpath(name, folder) for name in names)


def read_text(folder: ImageFolder, name: str, limit: int = MAX_TEXT) -> bytes:
    """Read a small file of a folder.

    Args:
        folder: that the file must lie in after links have been followed.
        name: relative to it.
        limit: in bytes.

    Raises:
        ValueError: the file lies elsewhere or is larger; the message says so without its name.
        OSError: it cannot be read.
    """
    if not folder.holds(name):
        raise ValueError("it leads out of its folder, and is refused")
    with open(os.path.join(folder.root, name), "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is larger than {limit} bytes, and is refused")
    return content
