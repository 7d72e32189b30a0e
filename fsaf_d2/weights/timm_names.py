"""Weights of timm's networks under the names that its feature extractors have for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from torch import Tensor

from .layouts import Conversion, Layout
from .weights_files import WeightsFileError


def from_timm(
    weights: Mapping[str, Tensor | np.ndarray],
    names: Iterable[str],
    *,
    prefix: str,
    network: str,
    keys: Mapping[str, object],
) -> Conversion | None:
    """Convert a state dict of a whole network of timm, if it is one.

    Extractors keep the names, but may merge the first two parts of one (``stages.0`` to
    ``stages_0``) or wrap the network.

    Args:
        weights: by name; they are not changed.
        names: of what the feature extractor holds.
        prefix: of these names in the detector.
        network: what timm calls it.
        keys: what a config must have for the weights to mean the same.

    Returns:
        the weights under the detector's names; None where the names are others.

    Raises:
        WeightsFileError: two tensors of the file are one here.
    """
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    names = set(names)
    converted, old_names = {}, {}
    for name, value in weights.items():
        candidates = (name, name.replace(".", "_", 1), f"body.{name}", f"model.{name}")
        found = next((prefix + other for other in candidates if other in names), None)
        if (found or name) in converted:
            raise WeightsFileError(f"two of its tensors are {found or name!r:.99} here.")
        converted[found or name] = value
        if found:
            old_names[found] = name
    if not old_names:
        return None
    needed = {prefix + name for name in names if not name.endswith("num_batches_tracked")}
    layout = Layout(
        f"timm's {network}",
        lambda name: None,
        dict(keys),
        left_out="a layer of the whole network, of which no map is made"
        if needed <= old_names.keys()
        else None,
    )
    return Conversion(converted, old_names, layout)
