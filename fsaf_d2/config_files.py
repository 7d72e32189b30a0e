"""A config file and those that it builds on, as ``_BASE_`` says."""

from __future__ import annotations

import copy
import os

from .config_keys import flat
from .plain_yaml import MAX_YAML, plain_yaml
from .regular_files import open_regular

BASE = "_BASE_"
# Files below each other, and files in all.
MAX_CHAIN = 20
MAX_FILES = 100
# Letters of a name, as file systems have it.
MAX_NAME = 4096


class ConfigFiles:
    """What a config file says together with those that it names; each of them is read once.

    Attributes:
        content: the values; those of a file go over those of its bases, of later bases over those
            of earlier ones.
        keys: of each file, a base before what builds on it, its name in quotation marks and its
            keys with dots.
    """

    def __init__(self, config_file: str) -> None:
        """Read a file.

        Raises:
            FileNotFoundError: a base does not exist.
            ValueError: a file cannot be read or is not plain YAML, or its bases are no files, go
                round in circles or are too many; the message names it.
        """
        self.keys: list[tuple[str, list[str]]] = []
        self._known: dict[str, dict] = {}
        self._file = config_file
        self._letters = 0
        self.content = self._read(config_file, ())

    def _read(self, file: str, above: tuple[str, ...]) -> dict:
        name = os.path.realpath(file)
        if name in above:
            raise ValueError(f"{self._here(file)} is its own {BASE}.")
        if name in self._known:
            return copy.deepcopy(self._known[name])
        if len(above) >= MAX_CHAIN or len(self._known) >= MAX_FILES:
            raise ValueError(
                f"Config file '{self._file}' builds on more files than are read: "
                f"{MAX_CHAIN} below each other, {MAX_FILES} in all."
            )
        content = self._parse(file)
        merged: dict = {}
        for base in self._bases(file, content):
            _merge(self._read(base, (*above, name)), merged, self._here(file))
        self.keys.append((f"'{file}'", [key for key, _ in flat(content)]))
        _merge(content, merged, self._here(file))
        self._known[name] = merged
        return copy.deepcopy(merged)

    def _parse(self, file: str) -> dict:
        try:
            with open_regular(file, "r", encoding="utf-8") as stream:
                text = stream.read(MAX_YAML + 1 - self._letters)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"Config file '{self._file}' names a {BASE} that does not exist: '{file}'."
            ) from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{self._here(file)} is not YAML: {error}.") from error
        except OSError as error:
            raise ValueError(f"{self._here(file)} cannot be read: {error}.") from error
        self._letters += len(text)
        if self._letters > MAX_YAML:
            raise ValueError(
                f"Config file '{self._file}' is refused: with the files that it builds on it is "
                f"longer than {MAX_YAML} letters."
            )
        content = plain_yaml(text, self._here(file))
        if not isinstance(content, dict):
            raise ValueError(f"{self._here(file)} must be a mapping of keys to values.")
        return content

    def _bases(self, file: str, content: dict) -> list[str]:
        """The files that a file names, each once, and where it counts: behind the others."""
        given = content.pop(BASE, [])
        bases = given if isinstance(given, list) else [given]
        for base in bases:
            is_name = isinstance(base, str) and 0 < len(base) <= MAX_NAME and base.isprintable()
            if not is_name:
                raise ValueError(
                    f"{self._here(file)}: its {BASE} must be the name of a file, not {base!r:.99}."
                )
            if "://" in base:
                raise ValueError(
                    f"{self._here(file)}: '{base}' as {BASE} is not fetched: fetch it yourself, "
                    "and name the file."
                )
        folder = os.path.dirname(file)
        places = [os.path.join(folder, os.path.expanduser(base)) for base in bases]
        return list(dict.fromkeys(reversed(places)))[::-1]

    def _here(self, file: str) -> str:
        if file == self._file:
            return f"Config file '{file}'"
        return f"Config file '{self._file}', by way of '{file}',"


def _merge(content: dict, into: dict, here: str) -> None:
    """Put values over others, key by key in mappings."""
    for key, value in content.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise ValueError(f"{here}: '{key:.99}' is a section, but a value in its {BASE}.")
            _merge(value, into[key], here)
        else:
            into[key] = value
