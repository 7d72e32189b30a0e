"""RetinaNet's feature pyramid P3 to P7 on a backbone (arXiv 1708.02002, Sec. 4)."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, build_resnet_backbone
from detectron2.modeling.backbone import fpn
from torch import Tensor
from torch.nn import functional as F

from ..backbones import build_timm_backbone
from ..layers.group_norm import group_norm


class LastLevelP6P7(fpn.LastLevelP6P7):
    """detectron2's P6 and P7, where the ReLU before P7 can be left out, as mmdetection does."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        in_feature: str = "res5",
        *,
        relu_before_p7: bool = True,
    ) -> None:
        """
        Args:
            in_channels: of the map that P6 is computed from.
            out_channels: of P6 and P7.
            in_feature: the name of that map.
            relu_before_p7: whether P7 is computed from ReLU(P6), as in the paper, or from P6.
        """
        super().__init__(in_channels, out_channels, in_feature)
        self.relu_before_p7 = relu_before_p7

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute P6 and P7 from a map (N, C, H, W), each of half the size before."""
        p6 = self.p6(x)
        return [p6, self.p7(F.relu(p6) if self.relu_before_p7 else p6)]


def build_pyramid(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """Build P3 to P7 on a backbone; P6 is computed from the map that ``MODEL.FPN.P6_FROM`` names.

    Layers, names and initial values are those of detectron2's RetinaNet.

    Raises:
        ValueError: there is no such map.
    """
    in_features, out_channels = cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.FPN.OUT_CHANNELS
    channels = {name: shape.channels for name, shape in bottom_up.output_shape().items()}
    strides = [bottom_up.output_shape()[name].stride for name in in_features]
    channels.update((f"p{stride.bit_length() - 1}", out_channels) for stride in strides)
    p6_from = cfg.MODEL.FPN.P6_FROM or in_features[-1]
    if p6_from not in channels:
        raise ValueError(
            f"MODEL.FPN.P6_FROM is '{p6_from}', but there is only {', '.join(sorted(channels))}."
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=out_channels,
        norm=group_norm if cfg.MODEL.FPN.NORM == "GN" else cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(
            channels[p6_from],
            out_channels,
            p6_from,
            relu_before_p7=cfg.MODEL.FPN.RELU_BEFORE_P7,
        ),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_p6p7_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build detectron2's ResNet or ResNeXt with :func:`build_pyramid`.

    ``MODEL.RESNETS.NORM`` "GN" is :func:`group_norm`, for narrow backbones too.
    """
    resnet_cfg = cfg
    if cfg.MODEL.RESNETS.NORM == "GN":
        resnet_cfg = cfg.clone()
        resnet_cfg.defrost()
        # As an attribute it would have to be text.
        resnet_cfg.MODEL.RESNETS["NORM"] = group_norm
    return build_pyramid(cfg, build_resnet_backbone(resnet_cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a network of timm with :func:`build_pyramid`."""
    return build_pyramid(cfg, build_timm_backbone(cfg, input_shape))


def require_known_pyramid(cfg: CfgNode) -> None:
    """Make sure that the backbone's builder heeds this project's keys of ``MODEL.FPN``.

    Raises:
        ValueError: it is one of detectron2's, which do not.
    """
    name = cfg.MODEL.BACKBONE.NAME
    for key, only in (("RELU_BEFORE_P7", True), ("P6_FROM", "")):
        value = cfg.MODEL.FPN[key]
        if value != only and BACKBONE_REGISTRY.get(name).__module__.startswith("detectron2."):
            raise ValueError(
                f"MODEL.FPN.{key} {value!r} does nothing for MODEL.BACKBONE.NAME '{name}': use "
                f"'{build_resnet_fpn_p6p7_backbone.__name__}'."
            )
