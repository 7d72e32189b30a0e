"""Which detector: one file per paper.

Importing the package registers the entries of detectron2's META_ARCH_REGISTRY and the branches that
``MODEL.BRANCHES`` names. Others come to it through :mod:`fsaf_d2.detectors.contract`.
"""

from .ap_loss import APLossBranch
from .atss import ATSSBranch
from .autoassign import AutoAssignBranch
from .branch import BRANCHES, Branch, register_branch
from .contract import LossTerm, Traits, contract_of, each_branch, traits_of
from .dr_loss import DRLossBranch
from .fcos import FCOSBranch, PointFCOS
from .focal_branch import FocalBranch
from .fsaf import FSAF, PointBranch
from .gfl import GFLBranch
from .noisy_anchors import NoisyAnchorBranch
from .one_stage import OneStageDetector
from .retinanet import AnchorBranch, AnchorRetinaNet

__all__ = [
    "BRANCHES",
    "FSAF",
    "APLossBranch",
    "ATSSBranch",
    "AnchorBranch",
    "AnchorRetinaNet",
    "AutoAssignBranch",
    "Branch",
    "DRLossBranch",
    "FCOSBranch",
    "FocalBranch",
    "GFLBranch",
    "LossTerm",
    "NoisyAnchorBranch",
    "OneStageDetector",
    "PointBranch",
    "PointFCOS",
    "Traits",
    "contract_of",
    "each_branch",
    "register_branch",
    "traits_of",
]
