"""RetinaNet's two towers, shared by all levels and all branches (arXiv 1708.02002, Sec. 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from detectron2.config import CfgNode, configurable
from detectron2.layers import CycleBatchNormList, ShapeSpec, get_norm
from torch import Tensor, nn

from ..layers.group_norm import group_norm


class ConvTowers(nn.Module):
    """Two stacks of 3x3 convolutions, one for classes and one for boxes.

    Layers, names and initial values are those of detectron2's RetinaNetHead: batch norm has
    statistics of its own for every level.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        conv_dims: Sequence[int],
        num_levels: int,
        norm: str = "",
        bias: bool = True,
    ) -> None:
        """
        Args:
            in_channels: of every level.
            conv_dims: channels of each layer.
            num_levels: L.
            norm: behind each convolution, "" for none; "GN" is
                :func:`fsaf_d2.layers.group_norm.group_norm`.
            bias: whether convolutions have biases.

        Raises:
            ValueError: there is neither a norm nor a bias.
        """
        super().__init__()
        if not (norm or bias):
            raise ValueError(
                "MODEL.TOWERS.BIAS False needs a norm, which has biases of its own: set "
                "MODEL.RETINANET.NORM, for example to GN."
            )
        make_norm = _norm_maker(norm, num_levels)
        self.out_channels = [in_channels, *conv_dims][-1]
        self.cls_subnet = _stack(in_channels, conv_dims, make_norm, bias)
        self.bbox_subnet = _stack(in_channels, conv_dims, make_norm, bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Sequence[ShapeSpec]) -> dict:
        """Read RetinaNet's keys."""
        channels = input_shape[0].channels
        return {
            "in_channels": channels,
            "conv_dims": [channels] * cfg.MODEL.RETINANET.NUM_CONVS,
            "num_levels": len(input_shape),
            "norm": cfg.MODEL.RETINANET.NORM,
            "bias": cfg.MODEL.TOWERS.BIAS,
        }

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Turn one map (N, C, H, W) of each level, finest first, into one for classes and boxes."""
        class_features, box_features = [], []
        for feature in features:
            class_features.append(self.cls_subnet(feature))
            box_features.append(self.bbox_subnet(feature))
        return class_features, box_features


def _norm_maker(norm: str, num_levels: int) -> Callable[[int], nn.Module] | None:
    if not norm:
        return None
    if norm == "GN":
        return group_norm
    if norm in ("BN", "SyncBN"):
        bn_class = nn.BatchNorm2d if norm == "BN" else nn.SyncBatchNorm
        return lambda channels: CycleBatchNormList(
            num_levels, bn_class=bn_class, num_features=channels
        )
    return lambda channels: get_norm(norm, channels)


def _stack(
    in_channels: int,
    conv_dims: Sequence[int],
    make_norm: Callable[[int], nn.Module] | None,
    bias: bool,
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in conv_dims:
        conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=bias)
        layers.append(init_conv(conv))
        if make_norm:
            layers.append(make_norm(channels))
        # What comes before it is needed by nobody.
        layers.append(nn.ReLU(inplace=True))
        in_channels = channels
    return nn.Sequential(*layers)


def init_conv(conv: nn.Conv2d, bias: float = 0.0) -> nn.Conv2d:
    """Draw weights from N(0, 0.01), as RetinaNet does, and set the bias, if there is one."""
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.constant_(conv.bias, bias)
    return conv
