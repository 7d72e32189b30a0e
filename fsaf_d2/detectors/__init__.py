"""Which detector: one file per paper. Importing a file registers its META_ARCH_REGISTRY entry."""

from .fsaf import FSAF, FSAFHead, each_branch

__all__ = ["FSAF", "FSAFHead", "each_branch"]
