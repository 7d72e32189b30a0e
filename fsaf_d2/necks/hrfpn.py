"""HRNet's pyramid for detection, also of one map of high resolution (arXiv 1908.07919)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones import build_timm_backbone
from ..layers.group_norm import group_norm


class HRFPN(Backbone):
    """All maps of a backbone as one, of which the levels are pooled or enlarged (HRNetV2p).

    The maps are enlarged to the finest one's size and concatenated, reduced by a 1x1 convolution,
    averaged to each level's stride, or enlarged to it, and smoothed by a 3x3 convolution each. The
    level of stride 2^k is called ``p{k}``.
    """

    def __init__(
        self,
        *,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int,
        out_strides: Sequence[int] = (8, 16, 32, 64, 128),
        norm: str = "",
    ) -> None:
        """
        Args:
            bottom_up: the backbone.
            in_features: names of its maps, finest first.
            out_channels: of each level.
            out_strides: of each level, powers of two in ascending order.
            norm: behind each convolution, "" for none.

        Raises:
            ValueError: the strides are not such.
        """
        super().__init__()
        strides = list(out_strides)
        powers = all(stride > 0 and stride & (stride - 1) == 0 for stride in strides)
        if not strides or not powers or strides != sorted(set(strides)):
            raise ValueError(
                "MODEL.HRFPN.OUT_STRIDES must be powers of two in ascending order, such as "
                f"[8, 16, 32, 64, 128], not {strides}."
            )
        self.bottom_up = bottom_up
        self.in_features = list(in_features)
        shapes = [bottom_up.output_shape()[name] for name in in_features]
        self._finest, self._coarsest = shapes[0].stride, shapes[-1].stride
        channels = sum(shape.channels for shape in shapes)
        self.reduction = _convolution(channels, out_channels, 1, norm)
        self.outputs = nn.ModuleList(
            _convolution(out_channels, out_channels, 3, norm) for _ in strides
        )
        self._out_features = [f"p{stride.bit_length() - 1}" for stride in strides]
        self._out_feature_strides = dict(zip(self._out_features, strides))
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    @property
    def size_divisibility(self) -> int:
        """What the sides of images must be multiples of, for the backbone's maps to fit."""
        return max(self._coarsest, self.bottom_up.size_divisibility)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the levels of images (N, 3, H, W), by name; sizes are rounded up."""
        found = self.bottom_up(x)
        maps = [found[name] for name in self.in_features]
        size = maps[0].shape[-2:]
        maps = [maps[0], *(_enlarged(x, size) for x in maps[1:])]
        fused = self.reduction(torch.cat(maps, dim=1))
        levels = {}
        for name, convolution in zip(self._out_features, self.outputs):
            stride = self._out_feature_strides[name]
            levels[name] = convolution(self._scaled(fused, stride))
        return levels

    def _scaled(self, fused: Tensor, stride: int) -> Tensor:
        if stride < self._finest:
            factor = self._finest // stride
            return _enlarged(fused, (fused.shape[-2] * factor, fused.shape[-1] * factor))
        window = stride // self._finest
        return _averaged(fused, window) if window > 1 else fused


def _averaged(x: Tensor, window: int) -> Tensor:
    """Average over windows, at the border over what there is of them."""
    # Not by ceil_mode, where onnxruntime divides by the size of the whole window.
    padding = [0, (window - x.shape[-1] % window) % window]
    padding += [0, (window - x.shape[-2] % window) % window]
    sums = F.avg_pool2d(F.pad(x, padding), window)
    shares = F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1]), padding), window)
    return sums / shares


def _enlarged(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def _convolution(in_channels: int, out_channels: int, kernel: int, norm: str) -> Conv2d:
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel,
        padding=kernel // 2,
        bias=not norm,
        norm=get_norm(group_norm if norm == "GN" else norm, out_channels),
    )
    weight_init.c2_xavier_fill(layer)
    return layer


@BACKBONE_REGISTRY.register()
def build_timm_hrfpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> HRFPN:
    """Build a network of timm with :class:`HRFPN` on the maps that ``MODEL.FPN`` names.

    Raises:
        ValueError: a key of ``MODEL.FPN`` is set that this pyramid has no use for.
    """
    fpn = cfg.MODEL.FPN
    for key, only in (("RELU_BEFORE_P7", True), ("P6_FROM", ""), ("FUSE_TYPE", "sum")):
        if fpn[key] != only:
            raise ValueError(
                f"MODEL.FPN.{key} {fpn[key]!r} does nothing for MODEL.BACKBONE.NAME "
                f"'build_timm_hrfpn_backbone': leave it at {only!r}."
            )
    return HRFPN(
        bottom_up=build_timm_backbone(cfg, input_shape),
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        out_strides=cfg.MODEL.HRFPN.OUT_STRIDES,
        norm=fpn.NORM,
    )
