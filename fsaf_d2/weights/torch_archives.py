"""Archives of strangers in torch's format, read by one reader and handed on as it understood them.

Python's zipfile and the reader in torch do not take the same parts out of an archive with two
directories, or with names that differ in capitals alone.
"""

from __future__ import annotations

import io
import re
import stat
import struct
import zipfile
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

from .pickle_checks import Refused

# Bytes; a part takes about 80.
MAX_DIRECTORY = 1 << 22
_LOCAL = struct.Struct("<4s5H3L2H")
_END, _LOCATOR, _END64 = (
    struct.Struct("<4s4H2LH"),
    struct.Struct("<4sLQL"),
    struct.Struct("<4sQ2H2L4Q"),
)
# Checksum and sizes, which may follow a part.
_MAX_DESCRIPTOR = 24
_KNOWN_FLAGS = 0x808  # such a descriptor, and names in UTF-8


class Archive(NamedTuple):
    """What was found in an archive."""

    pickle: bytes
    sizes: dict[str, int]  # of the storages, in bytes
    file: BinaryIO  # the same archive with a directory of its own, for torch


def read_archive(file: BinaryIO) -> Archive:
    """Make sure that an archive is as torch writes them.

    Args:
        file: opened; it is not copied, and must stay open while ``file`` of the result is read.

    Raises:
        Refused: it is not, or could be understood in two ways.
        zipfile.BadZipFile: it is broken.
    """
    count = require_one_end(file)
    with zipfile.ZipFile(file) as archive:
        entries, end = archive.infolist(), archive.start_dir
        if len(entries) != count:
            raise Refused("it does not have as many parts as it says.")
        for entry in entries:
            _check_entry(entry)
        if len({entry.filename.lower() for entry in entries}) < count:
            raise Refused("parts of the archive lie in one another, or share a name.")
        _check_places(file, entries, end)
        pickles = [x for x in entries if x.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or pickles[0].filename.count("/") != 1:
            raise Refused("it is an archive, but not one of torch.")
        content = archive.read(pickles[0])
    folder = pickles[0].filename.removesuffix("data.pkl")
    sizes = {
        entry.filename.removeprefix(f"{folder}data/"): entry.file_size
        for entry in entries
        if entry.filename.startswith(f"{folder}data/")
    }
    copy = _WithOwnEnd(file, end)
    with zipfile.ZipFile(copy, "w") as clean:
        # The list itself: what was checked is written as the directory.
        clean.infolist().extend(_plain(entry) for entry in entries if entry is not pickles[0])
        clean.writestr(pickles[0].filename, content)
    copy.seek(0)
    return Archive(content, sizes, copy)


def require_one_end(file: BinaryIO) -> int:
    """Make sure that there is one directory, which all readers find; returns its entries."""
    wrong = Refused("its directory is not where torch writes it, or there are two.")
    size = file.seek(0, io.SEEK_END)
    if size < _END.size:
        raise zipfile.BadZipFile("it is cut off")
    small = _unpacked(file, _END, size - _END.size)
    place = size - _END.size
    if small[0] != b"PK\5\6":
        # Cut off, or with something behind it.
        raise zipfile.BadZipFile("its end is not that of an archive")
    values = small[1:7]
    if place >= _LOCATOR.size + _END64.size:
        locator = _unpacked(file, _LOCATOR, place - _LOCATOR.size)
        if locator[0] == b"PK\6\7":
            place -= _LOCATOR.size + _END64.size
            large = _unpacked(file, _END64, place)
            values = large[4:]
            limits = (0xFFFF,) * 4 + (0xFFFFFFFF,) * 2
            same = all(x in (y, top) for x, y, top in zip(small[1:7], values, limits))
            if locator[1:] != (0, place, 1) or large[:2] != (b"PK\6\6", 44) or not same:
                raise wrong
    disk, first_disk, here, count, length, start = values
    if (disk, first_disk, small[7]) != (0, 0, 0) or here != count or start + length != place:
        raise wrong
    if length > MAX_DIRECTORY:
        raise Refused(f"its directory has more than {MAX_DIRECTORY} bytes.")
    return count


def _unpacked(file: BinaryIO, form: struct.Struct, place: int) -> tuple:
    file.seek(place)
    return form.unpack(file.read(form.size))


def _check_entry(entry: zipfile.ZipInfo) -> None:
    stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
    if not stored or entry.flag_bits & ~_KNOWN_FLAGS:
        raise Refused(
            f"its part {entry.filename!r:.99} is compressed or encrypted, as torch never writes it."
        )
    parts = re.split(r"[/\\]", entry.filename)
    outside = ".." in parts or parts[0] == "" or ":" in parts[0]
    if outside or stat.S_ISLNK(entry.external_attr >> 16):
        raise Refused(f"its part {entry.filename!r:.99} is named as torch names none.")


def _check_places(file: BinaryIO, entries: Sequence[zipfile.ZipInfo], end: int) -> None:
    """Make sure that the parts follow each other from the first byte to the directory."""
    place = 0
    for entry in sorted(entries, key=lambda x: x.header_offset):
        gap = entry.header_offset - place
        if not 0 <= gap <= (_MAX_DESCRIPTOR if place else 0):
            raise Refused("parts of the archive lie in one another, or something between them.")
        file.seek(entry.header_offset)
        head = file.read(_LOCAL.size)
        if len(head) < _LOCAL.size or head[:4] != b"PK\3\4":
            raise zipfile.BadZipFile("a part of it does not begin as one")
        *_, name_length, extra_length = _LOCAL.unpack(head)
        encoding = "utf-8" if entry.flag_bits & 0x800 else "cp437"
        if file.read(name_length) != entry.filename.encode(encoding):
            raise Refused(f"its part {entry.filename!r:.99} has a second name.")
        place = entry.header_offset + _LOCAL.size + name_length + extra_length + entry.file_size
    if not 0 <= end - place <= _MAX_DESCRIPTOR:
        raise Refused("parts of the archive lie in one another, or something behind them.")


def _plain(entry: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """An entry without all that can be added to one."""
    plain = zipfile.ZipInfo(entry.filename)
    for key in ("CRC", "file_size", "compress_size", "header_offset"):
        setattr(plain, key, getattr(entry, key))
    return plain


class _WithOwnEnd(io.RawIOBase):
    """A file up to a place, and behind it what is written."""

    def __init__(self, file: BinaryIO, end: int) -> None:
        self._file, self._end, self._rest = file, end, io.BytesIO()
        self._place = end

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        size = self._end + len(self._rest.getbuffer())
        self._place = (0, self._place, size)[whence] + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: bytearray | memoryview) -> int:
        view = memoryview(buffer).cast("B")
        here = max(0, min(len(view), self._end - self._place))
        count = 0
        if here:
            self._file.seek(self._place)
            count = self._file.readinto(view[:here])
        if count == here:
            self._rest.seek(max(0, self._place + here - self._end))
            count += self._rest.readinto(view[here:])
        self._place += count
        return count

    def write(self, data: bytes | memoryview) -> int:
        self._rest.seek(self._place - self._end)
        self._place += self._rest.write(data)
        return len(data)
