"""Logits as they lie in memory: losses of many of them read each but once, in that order."""

from __future__ import annotations

import torch
from torch import Tensor


def dense(tensor: Tensor) -> Tensor:
    """Copy a tensor unless its memory is without gaps, in (N, C, H, W) or (N, H, W, C) order."""
    return tensor if _is_dense(tensor) else tensor.contiguous()


def _is_dense(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or (
        tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )


def require_dense(logits: Tensor) -> None:
    if not _is_dense(logits):
        raise ValueError(
            f"Logits of shape {tuple(logits.shape)} and strides {logits.stride()} are not dense in "
            "memory: pass them, and compute places, through dense()."
        )


def memory_index(tensor: Tensor, *indices: Tensor) -> Tensor:
    """Turn indices into a tensor, one for each dimension, into places in its memory."""
    return sum(index * stride for index, stride in zip(indices, tensor.stride(), strict=True))


def in_memory_order(tensor: Tensor) -> Tensor:
    """See a tensor, dense, as the numbers in its memory, in order."""
    return tensor.as_strided((tensor.numel(),), (1,))


def on_cpu(tensor: Tensor) -> bool:
    """Whether sizes may depend on values; on a GPU they would mean to wait for it."""
    return tensor.device.type == "cpu"


def wide(x: Tensor) -> torch.dtype:
    """The type to compute in: float32, or that of the tensor if it is more exact."""
    return torch.promote_types(x.dtype, torch.float32)
