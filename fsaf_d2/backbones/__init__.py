"""Backbones with a feature pyramid; importing registers their builders."""

from .fpn import LastLevelP6P7, build_pyramid, build_resnet_fpn_p6p7_backbone

__all__ = ["LastLevelP6P7", "build_pyramid", "build_resnet_fpn_p6p7_backbone"]
