"""Loading weights into a model, and saving them."""

from __future__ import annotations

import os
from urllib.parse import parse_qs

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import nn

from ..weights.files import WeightsFileError, load_file


class SafeCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, which reads files only by :func:`load_file`.

    Heuristics can be asked for as in detectron2's newer versions:
    ``weights.pth?matching_heuristics=True``.

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
        self._heuristics = False

    def load(self, path: str, *args: object, **kwargs: object) -> dict:
        """Load weights and, unless told otherwise, all else, as detectron2's method does.

        Raises:
            WeightsFileError: as :func:`load_file`.
            ValueError: what follows the question mark is not known.
        """
        path, _, query = (path or "").partition("?")
        options = parse_qs(query)
        self._heuristics = options.pop("matching_heuristics", None) == ["True"]
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
        checkpoint = load_file(filename, trust=self.trust)
        if self._heuristics:
            checkpoint["matching_heuristics"] = True
        return checkpoint
