"""Feature pyramids on backbones; importing registers their builders."""

from .fpn import (
    LastLevelP6P7,
    build_pyramid,
    build_resnet_fpn_p6p7_backbone,
    build_timm_fpn_backbone,
)
from .hrfpn import HRFPN, build_timm_hrfpn_backbone

__all__ = [
    "HRFPN",
    "LastLevelP6P7",
    "build_pyramid",
    "build_resnet_fpn_p6p7_backbone",
    "build_timm_fpn_backbone",
    "build_timm_hrfpn_backbone",
]
