"""Which file names lead to a place in an image folder."""

from __future__ import annotations

import os

# Letters that file systems take, and folders in each other: each of them is looked up.
MAX_NAME = 4096
MAX_FOLDERS = 64


def is_short(name: str) -> bool:
    """Whether a file name is none that takes long to be looked up."""
    return len(name) <= MAX_NAME and name.count("/") <= MAX_FOLDERS


class ImageFolder:
    """An image folder whose links are looked up once, not for each of 100,000 images."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._real_root = os.path.realpath(root)
        self._folders: dict[str, tuple[bool, set[str] | None]] = {}

    def holds(self, name: str) -> bool:
        """Whether this file name leads to a place in the folder, there or not."""
        # detectron2 fetches addresses, which a name is where the folder is ''.
        if "\0" in name or "://" in name or not is_short(name):
            return False
        try:
            os.fsencode(name)
            parent, base = os.path.split(os.path.join(self.root, name))
            if parent not in self._folders:
                self._folders[parent] = self._look_up(parent)
            inside, links = self._folders[parent]
            if links is None or base in links or base in ("", os.curdir, os.pardir):
                inside = self._is_inside(os.path.join(parent, base))
            return inside
        except ValueError:
            # No file can have that name.
            return False

    def _look_up(self, folder: str) -> tuple[bool, set[str] | None]:
        """Whether a folder is inside, and the names of the links in it, None if not known."""
        if not self._is_inside(folder):
            return False, set()
        try:
            with os.scandir(folder or os.curdir) as entries:
                return True, {entry.name for entry in entries if entry.is_symlink()}
        except (FileNotFoundError, NotADirectoryError):
            return True, set()
        except OSError:
            return True, None

    def _is_inside(self, path: str) -> bool:
        real = os.path.realpath(path)
        return os.path.commonpath([self._real_root, real]) == self._real_root
