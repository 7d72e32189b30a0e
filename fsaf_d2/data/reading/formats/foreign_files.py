"""Files of strangers: which there are, and texts of limited size."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from ....regular_files import open_regular
from ..image_folder import ImageFolder
from ..image_names import is_hidden, is_image
from .source import SourceError

# Bytes of one XML, YAML or text file; what is about one image takes some kilobytes.
MAX_TEXT = 1 << 24


def find_entry(folder: str, *names: str) -> str | None:
    """The path of the entry of a folder that has one of these names, in capitals or not.

    Raises:
        SourceError: two entries have.
    """
    if not os.path.isdir(folder):
        return None
    entries = sorted(name for name in os.listdir(folder) if not is_hidden(name))
    found = [name for name in entries if name.lower() in names]
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
        if entry.name.lower().endswith(extensions) and not is_hidden(entry.name) and entry.is_file()
    )


def list_images(folder: str) -> list[str]:
    """Names of all images in a folder and the folders in it, relative to it, sorted.

    Raises:
        SourceError: a folder in it is a link, which could lead anywhere.
    """
    return _list_tree(folder, is_image)


def list_tree(folder: str, *extensions: str) -> list[str]:
    """Names of all files in a folder and the folders in it that end so, relative to it, sorted.

    Raises:
        SourceError: as :func:`list_images`.
    """
    return _list_tree(folder, lambda name: name.lower().endswith(extensions))


def _list_tree(folder: str, is_meant: Callable[[str], bool]) -> list[str]:
    names = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        for name in folders:
            path = os.path.join(parent, name)
            if os.path.islink(path):
                raise SourceError(
                    f"'{path}' is a link to a folder, which is not followed. Move the folder "
                    "itself there, or name it as a data set of its own."
                )
        names += [
            os.path.join(parent, name) for name in files if is_meant(name) and not is_hidden(name)
        ]
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
    with open_regular(os.path.join(folder.root, name)) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it is larger than {limit} bytes, and is refused")
    return content


def encoding_of(head: bytes) -> str:
    """The encoding of a text by its first bytes: UTF-8, or UTF-16 with its mark."""
    return "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"


def read_lines(folder: ImageFolder, name: str, limit: int = MAX_TEXT) -> list[str]:
    """The lines of a small text file of a folder, without their ends.

    Raises:
        ValueError, OSError: as :func:`read_text`, or it is no text.
    """
    return re.split(r"\r\n|\n|\r", decode_text(read_text(folder, name, limit)))


def decode_text(content: bytes) -> str:
    """Text in UTF-8, or in UTF-16 with its mark.

    Raises:
        ValueError: it is neither; the message says so without the file's name.
    """
    encoding = encoding_of(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start} is no text in {encoding.removesuffix('-sig').upper()}; save the "
            "file in UTF-8"
        ) from error
