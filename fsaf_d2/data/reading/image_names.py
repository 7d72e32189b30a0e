"""Which files are images by their names, which of them are read, and which are no one's data."""

from __future__ import annotations

import os

READ = frozenset(
    f".{kind}"
    for kind in (
        *("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "bmp", "dib", "gif"),
        *("tif", "tiff", "ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "jpx"),
    )
)
# Images to people and other programs. They are named where they lie, and not read.
UNREAD = frozenset(
    f".{kind}"
    for kind in (
        *("heic", "heif", "hif", "avif", "jxl", "svg", "psd", "eps", "ico", "tga", "exr", "hdr"),
        *("dng", "cr2", "cr3", "nef", "arw", "orf", "raf", "rw2", "raw", "dcm", "jxr", "pcx"),
    )
)
IMAGES = READ | UNREAD
# Of file managers, beside those that begin with a dot.
_HIDDEN = frozenset(("thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"))


def ending(name: str) -> str:
    """The ending of a file name, in small letters and with its dot."""
    return os.path.splitext(name)[1].lower()


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one of those that programs put beside people's own."""
    base = os.path.basename(name)
    return base.startswith(".") or base.lower() in _HIDDEN


def is_image(name: str) -> bool:
    """Whether a file name ends as that of an image that is read, and is not hidden."""
    return ending(name) in READ and not is_hidden(name)
