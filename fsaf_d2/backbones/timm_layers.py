"""Batch norm of timm's networks replaced, and their first layers frozen."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..layers.group_norm import group_norm

NORMS = ("", "FrozenBN", "BN", "SyncBN", "GN")


def set_norm(net: nn.Module, norm: str, name: str) -> None:
    """Replace the batch norm of a network, activations within it kept; other norms stay.

    Args:
        net: that timm has built; it is changed.
        norm: "" and "BN" for batch norm as it is, "SyncBN" for statistics over all processes,
            "FrozenBN" for constant statistics, weights and biases, "GN" for new group norm, see
            :func:`.group_norm`.
        name: of the network, for messages.

    Raises:
        ValueError: the norm is unknown, or the network has no batch norm to replace.
    """
    from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d

    if norm not in NORMS:
        raise ValueError(
            f"MODEL.TIMM.NORM must be one of {', '.join(map(repr, NORMS))}, not {norm!r}."
        )
    if norm and not any(isinstance(module, nn.BatchNorm2d) for module in net.modules()):
        kinds = sorted({type(x).__name__ for x in net.modules() if "Norm" in type(x).__name__})
        raise ValueError(
            f"MODEL.TIMM.NORM {norm!r} replaces batch norm, but MODEL.TIMM.NAME '{name}' has "
            f"{' and '.join(kinds) or 'none'}: set it to '' to train the network as it is."
        )
    if norm == "FrozenBN":
        freeze_batch_norm_2d(net)
    elif norm == "SyncBN":
        convert_sync_batchnorm(net)
    elif norm == "GN":
        _replace_by_group_norm(net)


def _replace_by_group_norm(module: nn.Module) -> None:
    from timm.layers import BatchNormAct2d, GroupNormAct

    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            _replace_by_group_norm(child)
            continue
        new = group_norm(child.num_features)
        if isinstance(child, BatchNormAct2d):
            new = GroupNormAct(child.num_features, num_groups=new.num_groups)
            new.act, new.drop = child.act, child.drop
        # Of layers that no map depends on.
        trained = child.weight is None or child.weight.requires_grad
        setattr(module, name, new.requires_grad_(trained))


def freeze_to(net: nn.Module, freeze_at: int, modules: Mapping[int, str], name: str) -> None:
    """Freeze a network's layers up to a map: parameters, and statistics of batch norm.

    Args:
        net: that timm has built; it is changed.
        freeze_at: k: everything up to the map of stride 2^k; 0 for nothing.
        modules: by k, the module that gives the map of stride 2^k, as timm calls it.
        name: of the network, for messages.

    Raises:
        ValueError: there is no such map, or the network does not compute it step by step.
    """
    if freeze_at == 0:
        return
    ends = {k: _find(net, module) for k, module in modules.items()}
    # Of an HRNet the maps come from parallel branches at its end.
    ends = {} if None in ends.values() else ends
    if freeze_at not in ends:
        raise ValueError(
            f"MODEL.BACKBONE.FREEZE_AT {freeze_at} freezes up to the map of stride "
            f"2^{freeze_at}, but of MODEL.TIMM.NAME '{name}' "
            + (
                f"only {', '.join(map(str, sorted(ends)))} can be frozen: choose one of them or 0."
                if ends
                else "no part can be frozen so: set it to 0."
            )
        )
    _freeze(net, ends[freeze_at])


def _find(net: nn.Module, module: str) -> str | None:
    """Find a module of the full network in its feature extractor, which may have merged names."""
    names = {found for found, _ in net.named_modules()}
    candidates = (module, module.replace(".", "_", 1))
    return next((found for found in candidates if found in names), None)


def _freeze(module: nn.Module, end: str) -> None:
    """Freeze the children in the order of computation, the one that ``end`` leads to the last."""
    from timm.layers import freeze_batch_norm_2d

    first, _, rest = end.partition(".")
    for name, child in module.named_children():
        if name == first and rest:
            _freeze(child, rest)
            return
        frozen = freeze_batch_norm_2d(child)
        setattr(module, name, frozen.requires_grad_(False))
        if name == first:
            return
