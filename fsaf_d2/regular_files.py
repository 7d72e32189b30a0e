"""Files of strangers are opened only if they are files: a pipe would wait for a writer."""

from __future__ import annotations

import os
import stat
from typing import IO

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_regular(
    path: str | os.PathLike[str], mode: str = "rb", *, encoding: str | None = None
) -> IO:
    """Open a file for reading, as ``open`` does; links are followed.

    Raises:
        OSError: it is a named pipe, a socket, a device or a folder, or it cannot be opened; the
            message names it.
    """
    return open(path, mode, encoding=encoding, opener=_opened)


def require_regular(path: str | os.PathLike[str]) -> None:
    """Make sure that what another library will open is a file.

    Raises:
        OSError: as :func:`open_regular`.
    """
    _require(os.stat(path), path)


def _opened(path: str, flags: int) -> int:
    # Opening a device may do something by itself.
    require_regular(path)
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(f"'{os.fspath(path)}' is {kind}, not a file")
