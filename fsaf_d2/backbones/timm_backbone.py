"""Feature extractors of timm (https://github.com/huggingface/pytorch-image-models) as backbones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor

from .timm_layers import freeze_to, set_norm

if TYPE_CHECKING:
    from types import ModuleType

_MAP = re.compile(r"res([1-9])")
# An image small enough to be computed at once, of two sizes so that they cannot be confused.
_PROBE = (64, 96)
# The branches themselves, as for detection, without the layers that widen them for ImageNet.
_ARGUMENTS = {"hrnet_": {"feature_location": ""}}


class TimmBackbone(Backbone):
    """A network of timm that gives the maps of some strides.

    The map of stride 2^k is called ``res{k}``, as in detectron2's ResNets: the deepest one of that
    stride, by the network's own ``feature_info``. Nothing is ever fetched. Of an HRNet these are
    its parallel branches (arXiv 1908.07919).
    """

    def __init__(
        self,
        *,
        name: str,
        out_features: Sequence[str] = ("res3", "res4", "res5"),
        norm: str = "",
        freeze_at: int = 0,
        in_channels: int = 3,
    ) -> None:
        """
        Args:
            name: of timm's list, with or without the tag of its weights.
            out_features: ``res{k}`` for each map, finest first.
            norm: what becomes of the network's batch norm, see :func:`.timm_layers.set_norm`.
            freeze_at: k: all up to the map of stride 2^k stays as it is; 0 for nothing.
            in_channels: of the images.

        Raises:
            ValueError: timm knows no such name, the network lacks one of the maps or takes only
                images of one size, or norm or freezing cannot be had with it.
            ImportError: timm is not installed.
        """
        super().__init__()
        timm = _import_timm()
        _require_name(name, timm)
        strides = {feature: 2 ** _exponent(feature) for feature in out_features}
        if not strides or list(out_features) != sorted(strides, key=strides.get):
            raise ValueError(
                f"MODEL.FPN.IN_FEATURES {list(out_features)} must name maps from fine to coarse, "
                "such as ['res3', 'res4', 'res5']."
            )
        arguments = {"features_only": True, "pretrained": False, "in_chans": in_channels}
        for start, more in _ARGUMENTS.items():
            arguments.update(more if name.startswith(start) else {})
        info = _feature_info(name, arguments, timm)
        index = _index_of_strides(info, strides, name)
        self.name = name
        self.net = timm.create_model(
            name, out_indices=tuple(index[stride] for stride in strides.values()), **arguments
        )
        self._transposed = getattr(self.net, "output_fmt", None) == timm.layers.Format.NHWC
        self._out_features = list(out_features)
        self._out_feature_strides = strides
        self._out_feature_channels = {
            feature: info[index[stride]]["num_chs"] for feature, stride in strides.items()
        }
        self._probe(in_channels)
        set_norm(self.net, norm, name)
        modules = {
            stride.bit_length() - 1: info[i]["module"]
            for stride, i in index.items()
            if 1 < stride <= self.size_divisibility
        }
        freeze_to(self.net, freeze_at, modules, name)

    @property
    def size_divisibility(self) -> int:
        """What the sides of images must be multiples of, for all maps to fit each other."""
        return max(self._out_feature_strides.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute the maps (N, C, H / 2^k, W / 2^k) of images (N, C, H, W), by name."""
        maps = self.net(x)
        if self._transposed:
            maps = [x.permute(0, 3, 1, 2).contiguous() for x in maps]
        return dict(zip(self._out_features, maps))

    def pretrained_keys(self) -> dict[str, object]:
        """What a config must have for the weights that timm publishes under the name."""
        from timm import get_pretrained_cfg

        published = get_pretrained_cfg(self.name)
        if published is None:
            return {}
        return {
            "INPUT.FORMAT": "RGB",
            "MODEL.PIXEL_MEAN": [round(255 * x, 3) for x in published.mean],
            "MODEL.PIXEL_STD": [round(255 * x, 3) for x in published.std],
        }

    @torch.enable_grad()
    def _probe(self, in_channels: int) -> None:
        """Make sure that the maps are what ``feature_info`` says, of images of any size.

        Layers that none of them depends on are not trained: in several processes each parameter
        that is trained must have a gradient.
        """
        self.eval()
        height, width = _PROBE
        try:
            maps = self(torch.zeros(1, in_channels, height, width))
        except Exception as error:
            raise ValueError(
                f"MODEL.TIMM.NAME '{self.name}' cannot read an image of {height} x {width} "
                f"pixels ({error}): a detector needs a network that takes images of every size."
            ) from error
        for feature, found in maps.items():
            stride = self._out_feature_strides[feature]
            expected = (1, self._out_feature_channels[feature], height // stride, width // stride)
            if tuple(found.shape) != expected:
                raise ValueError(
                    f"MODEL.TIMM.NAME '{self.name}' gives a map of {tuple(found.shape)} where its "
                    f"feature_info promises {expected}: choose another network."
                )
        params = list(self.net.parameters())
        total = sum(found.sum() for found in maps.values())
        for param, gradient in zip(params, torch.autograd.grad(total, params, allow_unused=True)):
            param.requires_grad = gradient is not None
        self.train()


def _index_of_strides(info: list[dict], strides: dict[str, int], name: str) -> dict[int, int]:
    """Where in timm's list the map of each stride is; the needed ones must be there."""
    # Of several maps of one stride the last one is the deepest.
    index = {entry["reduction"]: i for i, entry in enumerate(info)}
    missing = [stride for stride in strides.values() if stride not in index]
    if missing:
        raise ValueError(
            f"MODEL.TIMM.NAME '{name}' has maps of the strides {_listed(index)}, but "
            f"MODEL.FPN.IN_FEATURES {list(strides)} needs {_listed(missing)} too: choose "
            "a network with a pyramid of maps, or other features."
        )
    return index


def _import_timm() -> ModuleType:
    try:
        import timm
        import timm.layers
    except ImportError as error:
        raise ImportError(
            "MODEL.BACKBONE.NAME asks for a network of timm, which cannot be imported "
            f"({error}): pip install 'timm>=1.0', or pip install -e '.[timm]' here."
        ) from error
    return timm


def _require_name(name: str, timm: ModuleType) -> None:
    """Make sure that timm has it in its list; other names could make it fetch or read files."""
    if not name:
        raise ValueError("MODEL.TIMM.NAME is empty: name a network of timm, such as 'hrnet_w18'.")
    if ":" in name or "/" in name or "\\" in name:
        raise ValueError(
            f"MODEL.TIMM.NAME '{name}' is an address or a path, which is never fetched or read: "
            "give a name of timm.list_models() here and the file of weights in MODEL.WEIGHTS."
        )
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        names = timm.list_models()
        near = difflib.get_close_matches(architecture, names, n=5, cutoff=0.5)
        near = near or [other for other in names if architecture in other][:5]
        raise ValueError(
            f"MODEL.TIMM.NAME '{name}' is no network of timm {timm.__version__}."
            + (f" Near: {', '.join(near)}." if near else " timm.list_models() has all names.")
        )
    known = timm.list_pretrained(f"{architecture}.*") if tag else []
    if tag and name not in known:
        raise ValueError(
            f"MODEL.TIMM.NAME '{name}': '{architecture}' has no weights with that tag. "
            + (f"Known: {', '.join(known)}." if known else "Leave it out.")
        )


def _exponent(feature: str) -> int:
    found = _MAP.fullmatch(feature)
    if found is None:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES has '{feature}', but maps of timm's networks are called res1 "
            "(stride 2), res2 (stride 4) and so on."
        )
    return int(found[1])


def _feature_info(name: str, arguments: dict, timm: ModuleType) -> list[dict]:
    """What the network says of all its maps, also those that it does not give by default."""
    try:
        return timm.create_model(name, **arguments).feature_info.info
    except Exception as error:
        raise ValueError(
            f"MODEL.TIMM.NAME '{name}' is no feature extractor ({type(error).__name__}: {error}): "
            "choose another network."
        ) from error


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(set(numbers))))


def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the network that ``MODEL.TIMM`` describes with the maps that ``MODEL.FPN`` names."""
    return TimmBackbone(
        name=cfg.MODEL.TIMM.NAME,
        out_features=cfg.MODEL.FPN.IN_FEATURES,
        norm=cfg.MODEL.TIMM.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_channels=input_shape.channels,
    )
