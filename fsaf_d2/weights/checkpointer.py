"""Loading weights into a model, and saving them."""

from __future__ import annotations

import logging
import os
import re
from typing import NamedTuple
from urllib.parse import parse_qs

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from ..backbones import TimmBackbone
from ..texts import SHOWN
from . import addresses  # noqa: F401  registers them
from .layouts import LAYOUTS, Conversion, conflicts, to_current_names, to_own_layout
from .load_report import LoadReport, make_report
from .timm_names import from_timm
from .weights_files import WeightsFileError, load_file


class SafeCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, which reads files only by :func:`load_file`.

    Weights in the layout of another library are converted, see :mod:`.layouts`. What
    became of every tensor is in ``report``, None before anything was loaded.

    Heuristics can be asked for as in detectron2's newer versions:
    ``weights.pth?matching_heuristics=True``. ``?sha256=...`` says how the hash of the file begins.
    Addresses may also be those of :mod:`.addresses`.

    Saving is detectron2's.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, trust: bool = False, **options: object
    ) -> None:
        """Take what is to be loaded and saved.

        Args:
            model: whose weights they are.
            save_dir: the output folder.
            trust: run the code that files may hold, and say so in one line.
            options: of detectron2's checkpointer, and what else is in a checkpoint, by name.
        """
        super().__init__(model, save_dir, **options)
        self.trust = trust
        self.report: LoadReport | None = None
        self._heuristics = False
        self._sha256 = ""
        self._source = ""

    def load(self, path: str, *args: object, **kwargs: object) -> dict:
        """Load weights and, unless told otherwise, all else, as detectron2's method does.

        Raises:
            WeightsFileError: as :func:`load_file`.
            ValueError: what follows the question mark is not known.
        """
        path, _, query = (path or "").partition("?")
        options = parse_qs(query)
        self._source = path
        self._heuristics = options.pop("matching_heuristics", None) == ["True"]
        self._sha256 = options.pop("sha256", [""])[0].lower()
        if self._sha256 and not re.fullmatch("[0-9a-f]{8,64}", self._sha256):
            raise ValueError(f"Weights '{path}': sha256 must be 8 to 64 digits in hexadecimal.")
        if options:
            raise ValueError(f"Weights '{path}': unknown options {', '.join(options)} behind '?'.")
        return super().load(path, *args, **kwargs)

    def get_checkpoint_file(self) -> str:
        """The file that ``last_checkpoint`` names, or an empty text where there is none.

        Raises:
            WeightsFileError: it names a file that does not lie in the output folder itself.
        """
        try:
            path = super().get_checkpoint_file()
            inside = os.path.dirname(os.path.realpath(path)) == os.path.realpath(self.save_dir)
        except ValueError as error:
            path, inside = str(error), False
        if path and not inside:
            raise WeightsFileError(
                f"'{os.path.join(self.save_dir, 'last_checkpoint')}' must name a file in its own "
                f"folder, and is refused: it leads to {path!r}."
            )
        return path

    def _load_file(self, filename: str) -> dict:
        if self.trust and comm.is_main_process():
            print(f"--trust-weights: code in '{filename}' is run, whatever it does.", flush=True)
        checkpoint = load_file(filename, trust=self.trust, sha256=self._sha256)
        if self._heuristics:
            checkpoint["matching_heuristics"] = True
        return checkpoint

    def _load_model(self, checkpoint: dict) -> NamedTuple:
        weights, old_names, layout = to_current_names(
            self._to_own_layout(checkpoint["model"]), self.model.state_dict()
        )
        if layout is None and isinstance(checkpoint.get("layout"), str):
            # Of a file that tools/convert_weights.py wrote.
            layout = LAYOUTS.get(checkpoint["layout"])
        if checkpoint.pop("matching_heuristics", False):
            self._convert_ndarray_to_tensor(weights)
            weights = align_and_update_state_dicts(
                self.model.state_dict(),
                weights,
                c2_conversion=checkpoint.get("__author__") == "Caffe2",
            )
        shapes = {name: tuple(value.shape) for name, value in weights.items()}
        found = super()._load_model({**checkpoint, "model": weights})
        checkpoint.pop("model")
        self.report = make_report(
            self._source, shapes, list(self.model.state_dict()), found, old_names, layout
        )
        return found

    def _to_own_layout(self, weights: dict) -> Conversion:
        for name, backbone in self.model.named_modules():
            if isinstance(backbone, TimmBackbone):
                found = from_timm(
                    weights,
                    backbone.net.state_dict(),
                    prefix=f"{name}.net.",
                    network=backbone.name,
                    keys=backbone.pretrained_keys(),
                )
                if found:
                    return found
        return to_own_layout(weights)

    def _log_incompatible_keys(self, _: NamedTuple) -> None:
        usual = self.report.complete or self.report.usual()
        level = logging.INFO if usual else logging.WARNING
        self.logger.log(level, self.report.summary(), extra=SHOWN)
        for line in self.report.problems(advise=not self.report.usual()):
            self.logger.warning(line)


def load_weights(
    checkpointer: DetectionCheckpointer,
    weights: str,
    *,
    resume: bool,
    cfg: CfgNode | None = None,
    complete: bool = False,
    key: str = "MODEL.WEIGHTS",
) -> dict:
    """Load weights, or the last checkpoint of the output folder if one is there and ``resume``.

    Files are read by :class:`SafeCheckpointer`, whatever the class of ``checkpointer``.
    ``loaded_weights.txt`` in the output folder says what became of every tensor.

    Args:
        checkpointer: of the model.
        weights: the file, or its address.
        resume: prefer the last checkpoint.
        cfg: what the model was built from; keys under which the weights mean something else than
            where they come from are named in warnings.
        complete: every tensor of the model must be in the file; always so for ``resume``.
        key: what the weights were named by, for messages.

    Returns:
        what else the checkpoint holds.

    Raises:
        ValueError: the file cannot be fetched or read, holds more than weights, or is not the same
            in all processes, or nothing in it fits the model; the message names it.
    """
    if not isinstance(checkpointer, SafeCheckpointer):
        checkpointer = SafeCheckpointer(
            checkpointer.model,
            checkpointer.save_dir,
            trust=getattr(checkpointer, "trust", False),
            **checkpointer.checkpointables,
        )
    last = _last_checkpoint(checkpointer) if resume else ""
    source = f"{'The checkpoint' if last else key} '{last or weights}'"
    try:
        rest = checkpointer.resume_or_load(weights, resume=resume)
    except WeightsFileError as error:
        raise WeightsFileError(f"{source} could not be loaded: {error}") from error
    except Exception as error:
        raise ValueError(
            f"{source} could not be loaded ({type(error).__name__}: {error}). Give the path of a "
            "whole checkpoint; an address needs a network."
        ) from error
    if checkpointer.report:
        _check_report(checkpointer, source, complete=complete or bool(last))
        if checkpointer.report.layout and cfg is not None:
            for line in conflicts(checkpointer.report.layout, cfg):
                checkpointer.logger.warning(line)
    return rest


def _last_checkpoint(checkpointer: SafeCheckpointer) -> str:
    """The last checkpoint of the output folder, the same in all processes; "" for none."""
    last = checkpointer.get_checkpoint_file()
    found = set(comm.all_gather(os.path.basename(last)))
    if len(found) > 1:
        names = " and ".join(f"'{name}'" if name else "none" for name in sorted(found))
        raise ValueError(
            f"The processes find different checkpoints to resume from ({names}): OUTPUT_DIR must "
            "be a folder that all machines share."
        )
    return last


def _check_report(checkpointer: SafeCheckpointer, source: str, *, complete: bool) -> None:
    report = checkpointer.report
    if checkpointer.save_dir and checkpointer.save_to_disk:
        os.makedirs(checkpointer.save_dir, exist_ok=True)
        with open(
            os.path.join(checkpointer.save_dir, "loaded_weights.txt"), "w", encoding="utf-8"
        ) as file:
            file.write("\n".join([report.summary(), *report.table()]) + "\n")
    problems = " ".join(report.problems())
    if not (report.loaded or report.converted):
        raise ValueError(f"{source} fits nothing in the model. {problems}")
    if complete and not report.complete:
        raise ValueError(
            f"{source} does not have all that the model needs: {report.summary()} "
            f"{problems or report.without_missing()}".rstrip()
        )
