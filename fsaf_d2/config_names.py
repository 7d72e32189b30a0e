"""Which file is meant by the name of a config: those of the package need no path."""

from __future__ import annotations

import difflib
import functools
import os
from pathlib import Path

_FOLDER = "configs/"


@functools.cache
def packaged_configs(ending: str = ".yaml") -> dict[str, Path]:
    """The configs that come with the package.

    Args:
        ending: of the files: ``.yaml``, or ``.py`` of Python configs.

    Returns:
        their files by name, such as ``family/gfl_R_50_FPN_1x``.
    """
    package = Path(__file__).parent
    # An installation has them in the package, a checkout beside it.
    places = (package / _FOLDER, package.parent / _FOLDER)
    folder = next((x for x in places if x.is_dir()), places[0])
    files = sorted(folder.rglob(f"*{ending}"))
    return {x.relative_to(folder).as_posix().removesuffix(ending): x for x in files}


def find_config(given: str | os.PathLike[str], ending: str = ".yaml") -> str:
    """The file that a path or the name of a config of the package means.

    A file that is there is meant itself. Else ``Base-FSAF-lite``, ``family/gfl_R_50_FPN_1x`` and
    ``gfl_R_50_FPN_1x`` are configs of the package, with or without ``configs/`` and the ending.

    Raises:
        FileNotFoundError: it is neither; the message has near names.
        ValueError: several configs of the package have the name.
    """
    given = os.fspath(given)
    is_folder = os.path.isdir(given)
    if os.path.exists(given) and not is_folder:
        return given
    named = packaged_configs(ending)
    name = given.replace(os.sep, "/").removesuffix(ending).removeprefix("./").removeprefix(_FOLDER)
    fits = [x for x in named if x == name] or [x for x in named if x.endswith(f"/{name}")]
    if len(fits) > 1:
        words = "' and '".join(fits)
        raise ValueError(f"Config '{given}' may be '{words}' of the package: name one of these.")
    if fits:
        return str(named[fits[0]])
    if is_folder:
        # Why it is no config is said where it is opened.
        return given
    near = _near_files(given) or _near_names(name, list(named))
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise FileNotFoundError(
        f"Config file '{given}' does not exist, and the package has none of this name.{hint}"
    )


def _near_files(given: str) -> list[str]:
    folder, name = os.path.split(given)
    others = os.listdir(folder or os.curdir) if os.path.isdir(folder or os.curdir) else []
    return [os.path.join(folder, x) for x in difflib.get_close_matches(name, others, n=1)]


def _near_names(name: str, names: list[str]) -> list[str]:
    """Of the package's configs, by whole name or by its last part."""
    last_parts = {x.rpartition("/")[2]: x for x in names}
    near = difflib.get_close_matches(name, [*names, *last_parts], n=3)
    return list(dict.fromkeys(last_parts.get(x, x) for x in near))
