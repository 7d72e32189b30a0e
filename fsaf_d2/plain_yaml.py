"""YAML of strangers."""

from __future__ import annotations

import math

import yaml

# What the aliases of a config file may unfold to; a whole config has less than a thousandth of it.
MAX_NODES = 1 << 20


def plain_yaml(text: str, file: str) -> object:
    """Read YAML of strangers: no tags that run code, no aliases that unfold without end.

    Args:
        text: the YAML.
        file: that it comes from, for the message.

    Raises:
        yaml.YAMLError: it is not plain YAML.
        ValueError: its aliases unfold to more than :data:`MAX_NODES` values.
    """
    if _unfolded_size(yaml.compose(text, yaml.SafeLoader), {}) > MAX_NODES:
        raise ValueError(
            f"'{file}' unfolds its YAML aliases (*name) to more than {MAX_NODES} values."
        )
    return yaml.safe_load(text)


def _unfolded_size(node: yaml.Node | None, known: dict[int, float]) -> float:
    """Count the values of a YAML tree in which a value may stand in several places."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # should it hold itself
        children = [x for child in node.value for x in (child if type(child) is tuple else [child])]
        known[id(node)] = 1 + sum(_unfolded_size(child, known) for child in children)
    return known[id(node)]
