"""From a file in another library's layout to one in this project's."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .atomic_writing import require_another_file, write_atomically
from .layouts import LAYOUTS, to_own_layout
from .load_report import why_needless
from .weights_files import WeightsFileError, load_file


def convert_file(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, trust: bool = False
) -> list[str]:
    """Convert a file of weights, and write the result in torch's format.

    Args:
        source: the file as it is published.
        target: the file to write, not the source; one that exists is replaced.
        trust: read the source by pickle without limits, which runs any code in it.

    Returns:
        lines: what was converted, each tensor, and the keys that a config needs for it.

    Raises:
        ValueError: both are one file.
        WeightsFileError: the source is broken, could run code or is in no layout that is known.
        OSError: one of the files cannot be read or written.
    """
    require_another_file(Path(target), source, "The target")
    if trust:
        print(f"--trust-weights: code in '{source}' is run, whatever it does.", flush=True)
    found = to_own_layout(load_file(source, trust=trust)["model"])
    if found.layout is None:
        raise WeightsFileError(
            f"'{source}' is in no layout that is converted: {', '.join(LAYOUTS)}. What detectron2 "
            "or this project has written loads as it is."
        )
    kept = {name: torch.as_tensor(found.weights[name]) for name in found.old_names}
    write_atomically(Path(target), {"model": kept, "layout": found.layout.name})
    left = [name for name in found.weights if name not in kept]
    return [
        *(f"converted   {name}  from {old}" for name, old in found.old_names.items()),
        *(
            f"left out    {name}  {why_needless(name) or 'has no counterpart here'}"
            for name in left
        ),
        f"{len(kept)} tensors of '{source}' are converted from the layout of "
        f"{found.layout.name}, {len(left)} left out: '{target}'.",
        "Its config needs: " + "; ".join(f"{k} {v}" for k, v in found.layout.keys.items()) + ".",
    ]
