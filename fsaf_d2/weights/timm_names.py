"""Weights of timm's networks under the names that its feature extractors have for them."""

from __future__ import annotations

import re
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
    ``stages_0``) or wrap the network. EfficientNets may also have the names of the library
    ``efficientnet_pytorch``.

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
    timms_names = _names_of_efficientnet(weights, names)
    converted, old_names = {}, {}
    for original, value in weights.items():
        name = timms_names.get(original, original)
        candidates = (name, name.replace(".", "_", 1), f"body.{name}", f"model.{name}")
        found = next((prefix + other for other in candidates if other in names), None)
        if (found or original) in converted:
            raise WeightsFileError(f"two of its tensors are {found or original!r:.99} here.")
        converted[found or original] = value
        if found:
            old_names[found] = original
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


# Layers in efficientnet_pytorch, and what timm calls them: outside of blocks, in blocks that begin
# with a layer of 1x1, and in those that do not.
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_OUTSIDE["_fc"] = "classifier"
_EXCITATION = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_EXPANDED = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"},
    **{"_project_conv": "conv_pwl", "_bn2": "bn3", **_EXCITATION},
}
_PLAIN = {
    **{"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"},
    **_EXCITATION,
}
_OF_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")
_TIMMS_BLOCK = re.compile(r"blocks[._](\d+)\.(\d+)\.")


def _names_of_efficientnet(weights: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """timm's names of an EfficientNet's tensors, by those of ``efficientnet_pytorch``.

    There blocks are counted through, timm counts them within their stages.

    Args:
        weights: names in a file; of another network, nothing is renamed.
        wanted: names of timm's network, which say how many blocks a stage has.
    """
    weights = set(weights)
    if not {"_conv_stem.weight", "_blocks.0._depthwise_conv.weight"} <= weights:
        return {}
    found = (_TIMMS_BLOCK.search(name) for name in wanted)
    blocks = sorted({(int(match[1]), int(match[2])) for match in found if match})
    renamed = {}
    for name in weights:
        module, _, field = name.rpartition(".")
        match = _OF_BLOCK.fullmatch(name)
        if module in _OUTSIDE:
            renamed[name] = f"{_OUTSIDE[module]}.{field}"
        elif match and int(match[1]) < len(blocks):
            stage, index = blocks[int(match[1])]
            expanded = f"_blocks.{match[1]}._expand_conv.weight" in weights
            layer = (_EXPANDED if expanded else _PLAIN).get(match[2])
            if layer:
                renamed[name] = f"blocks.{stage}.{index}.{layer}.{field}"
    return renamed
