"""From a file of weights to a detector; nothing in the file is trusted."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.file_io import PathManager
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from ..config import load_config, load_stored_config
from ..data.reading.image_headers import MAX_PIXELS
from ..detectors.building import build_detector
from ..detectors.contract import contract_of, traits_of
from ..model_zoo import find
from ..texts import shown
from ..weights.checkpointer import SafeCheckpointer
from ..weights.layouts import conflicts
from ..weights.load_report import LoadReport, remedy
from ..weights.weights_files import load_file
from .description import describe
from .detector import Detector
from .exported import kind_of, load_exported
from .said_fields import said

# On a CPU a batch gains nothing but for small images.
BATCH_SIZES = {"cpu": 2, "cuda": 8}
# Of whole numbers in a stored config: what is counted to, as layers are, and what floats can hold.
_LARGEST = {"MODEL": 1 << 16, "INPUT": 1 << 53, "TEST": 1 << 53}
# Numbers and tensors that a network may have beyond twice what its file has.
_FREE_NUMBERS = 1 << 25
_FREE_TENSORS = 1 << 12


def load_detector(
    weights: str | os.PathLike[str],
    *,
    config_file: str | os.PathLike[str] = "",
    overrides: Sequence[str] = (),
    class_names: Sequence[str] | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    trust: bool = False,
) -> Detector:
    """Load a detector from the checkpoint of a training, which says by itself how it is built.

    Exported ones are loaded too. They run on the CPU and take no config.

    Args:
        weights: path of the checkpoint or of an exported detector, or an address that detectron2
            knows (``detectron2://...``).
        config_file: the config, for weights without one, such as those of detectron2's model zoo; a
            config in the checkpoint is then left aside.
        overrides: alternating keys and values on top of the config.
        class_names: of each class, for weights that do not name them.
        device: such as "cpu" or "cuda"; by default the GPU if there is one.
        batch_size: images that pass the network together; by default 8 on a GPU and 2 on a CPU.
        trust: read the file by pickle without limits, which runs any code in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is broken or could run code, says too little, or weights and config do
            not fit each other; the message says which.
        ImportError: a package that an exported detector needs is missing.
    """
    weights = os.fspath(weights)
    if kind := kind_of(weights):
        _require_plain(weights, device, config_file or overrides or class_names)
        if trust and kind == "torchscript":
            _say_trust(weights)
        settings = {"batch_size": batch_size or BATCH_SIZES["cpu"], "max_pixels": MAX_PIXELS}
        return load_exported(weights, kind, **settings, trust=trust)
    content = _read(weights, trust)
    cfg = _config_of(content, weights, config_file, overrides)
    _set_up(cfg, device, overrides)
    _require_known(cfg, weights)
    # Of data sets in a stranger's config nothing is looked up.
    data_sets = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if config_file else ()
    description = describe(content, cfg, weights, class_names=class_names, data_sets=data_sets)
    model = _build(cfg, weights, content["model"])
    notes = [*description.notes, *_load(model, content, weights, cfg)]
    traits, device_type = traits_of(cfg), torch.device(cfg.MODEL.DEVICE).type
    return Detector(
        model,
        **{**description._asdict(), "notes": notes, **_suppression(model)},
        level_names=traits.level_names,
        branch_names=traits.branch_names,
        short_side=cfg.INPUT.MIN_SIZE_TEST,
        resize=cfg.INPUT.RESIZE,
        max_side=cfg.INPUT.MAX_SIZE_TEST,
        size_divisibility=model.backbone.size_divisibility,
        max_pixels=cfg.INPUT.MAX_PIXELS,
        batch_size=batch_size or BATCH_SIZES.get(device_type, 2),
    )


def _suppression(model: torch.nn.Module) -> dict[str, float]:
    """What the detector suppresses by, where that is known."""
    contract = contract_of(model)
    known = contract is not None and contract.suppression is not None
    return {"nms_thresh": contract.suppression.nms_thresh} if known else {}


def _config_of(
    content: dict, weights: str, config_file: str | os.PathLike[str], overrides: Sequence[str]
) -> CfgNode:
    """The config of that file, if one is named, or else the one in the weights."""
    if config_file:
        return load_config(config_file, overrides)
    stored = said(content, "config", weights)
    if stored is None:
        known = find(weights)
        hint = f" Its published form is run by {known[1].config}." if known else ""
        raise ValueError(
            f"'{weights}' does not hold the config that it was trained with: name its file by "
            f"--config-file, and the classes by --class-names.{hint}"
        )
    cfg = load_stored_config(stored, weights, overrides)
    for section, most in _LARGEST.items():
        _require_counts(cfg[section], section, weights, most)
    return cfg


def _require_counts(value: object, key: str, weights: str, most: int) -> None:
    """Make sure that no whole number, or one in a list, is larger."""
    if isinstance(value, dict):
        for name, part in value.items():
            _require_counts(part, f"{key}.{name}", weights, most)
    elif isinstance(value, (list, tuple)):
        for part in value:
            _require_counts(part, key, weights, most)
    elif type(value) is int and abs(value) > most:
        raise ValueError(
            f"The config of '{weights}' has {key} {shown(value)}, which must be {most} at the most."
        )


def _set_up(cfg: CfgNode, device: str | None, overrides: Sequence[str]) -> None:
    """Say in the config where the detector runs, and that nothing else is loaded or compiled."""
    chosen = cfg.MODEL.DEVICE if "MODEL.DEVICE" in overrides else None
    cfg.MODEL.DEVICE = _choose_device(device or chosen)
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.COMPILE = False


def _read(weights: str, trust: bool) -> dict:
    path = weights
    if "://" in weights:
        try:
            path = PathManager.get_local_path(weights)
        except Exception as error:
            raise ValueError(
                f"'{weights}' cannot be fetched ({type(error).__name__}: {error}). Addresses "
                "need a network: give the path of a file."
            ) from error
    if not os.path.isfile(path):
        what = "are a folder" if os.path.isdir(path) else "do not exist"
        raise FileNotFoundError(f"Weights '{weights}' {what}: give the path of a checkpoint.")
    if trust:
        _say_trust(path)
    return load_file(path, trust=trust)


def _say_trust(path: str) -> None:
    print(f"--trust-weights: code in '{path}' is run, whatever it does.", flush=True)


def _require_plain(weights: str, device: str | None, settings: object) -> None:
    """Make sure that nothing is asked of an exported detector that it cannot do."""
    if settings:
        raise ValueError(
            f"'{weights}' is an exported detector, which takes no config, keys or class names: "
            "export it anew with them, or edit the .json beside it."
        )
    if device is not None and torch.device(_choose_device(device)).type != "cpu":
        raise ValueError(
            f"Device {device!r} was asked for, but the exported '{weights}' runs on the CPU here: "
            "leave it out, or take the checkpoint."
        )


def _choose_device(asked: str | None) -> str:
    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(asked).type
    except RuntimeError as error:
        raise ValueError(f"Device {asked!r} is not known: 'cpu' or 'cuda', for example.") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"Device {asked!r} was asked for, but no GPU is found: leave it out.")
    return asked


def _require_known(cfg: CfgNode, weights: str) -> None:
    """Make sure that the config is of a detector that is known here."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY or not traits_of(cfg).class_keys:
        raise ValueError(
            f"The config of '{weights}' builds {name!r:.99}, of which nothing is known here: "
            "MODEL.META_ARCHITECTURE must name a detector of this project, or detectron2's "
            "RetinaNet or GeneralizedRCNN."
        )


def _build(cfg: CfgNode, weights: str, stored: dict) -> nn.Module:
    numbers = sum(math.prod(x.shape) for x in stored.values())
    try:
        # A caller's inference mode would make weights that nothing can be computed of later.
        with torch.inference_mode(False), _at_most(2 * numbers, 2 * len(stored)):
            model = build_detector(cfg)
    except Exception as error:
        raise ValueError(
            f"The config of '{weights}' builds no detector ({type(error).__name__}: {error})."
        ) from error
    return model


@contextmanager
def _at_most(numbers: int, tensors: int) -> Iterator[None]:
    """Break off building a network that has much more than so many weights.

    Some are let go again, as classifiers of backbones are.
    """
    left = {"numbers": numbers + _FREE_NUMBERS, "tensors": tensors + _FREE_TENSORS}

    def count(_: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
        left["numbers"] -= 0 if tensor is None else tensor.numel()
        left["tensors"] -= 1
        for what, rest in left.items():
            if rest < 0:
                raise ValueError(f"at '{name}' it has more {what} than fit the file's weights")

    # Of this thread alone they cannot be; they stand for as long as the network is built.
    hooks = (
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _ContentLoader(SafeCheckpointer):
    """Loads what :func:`load_file` has read before there was a model to take it."""

    def load_content(self, content: dict, source: str) -> LoadReport:
        """Load, and say what became of every tensor."""
        self._source = source
        try:
            self._load_model(content)
        except ValueError as error:
            raise ValueError(f"'{source}' cannot be used: {error}") from error
        return self.report


def _load(model: nn.Module, content: dict, weights: str, cfg: CfgNode) -> list[str]:
    """Load weights; all that the model has must be there. Returns what there is to say."""
    report = _ContentLoader(model).load_content(content, weights)
    if report.misshapen:
        first = report.misshapen[0]
        raise ValueError(
            f"'{weights}' does not fit the config: {len(report.misshapen)} weights have another "
            f"shape, as '{first.name}' with {first.in_file} in the file and {first.in_model} by "
            f"the config: {remedy(first, report)}. Is it the config, with the number of "
            "classes, that they were trained with?"
        )
    missing = report.missing
    if missing:
        words = [report.without_missing() or "Is it the config that they were trained with?"]
        if any(name.startswith("head.") for name in report.converted.values()):
            words.append("detectron2's RetinaNets run with configs/zoo/retinanet_*.yaml.")
        raise ValueError(
            f"'{weights}' does not fit the config: {len(missing)} weights are missing "
            f"({', '.join(missing[:3])}, ...). {' '.join(words)}"
        )
    notes = conflicts(report.layout, cfg) if report.layout else []
    unneeded = report.unexpected
    if unneeded:
        notes.append(
            f"{len(unneeded)} weights of '{weights}' are not used ({unneeded[0]!r:.99}, ...)."
        )
    return notes
