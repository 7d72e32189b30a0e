"""What a detector is told of a training step, and what it has counted in it."""

from __future__ import annotations

import torch
from detectron2.engine import HookBase
from torch import Tensor

from ...assignment.grid import to_device
from ...detectors.contract import DetectorContract


class DetectorStep(HookBase):
    """Tells the detector the step, and logs what it has counted in it.

    What a GPU has counted is not waited for: a step's values are logged with the next step's.
    """

    def __init__(self, contract: DetectorContract | None) -> None:
        """
        Args:
            contract: of the model, if it has one.
        """
        self._contract = contract
        self._copied: tuple | None = None

    def before_train(self) -> None:
        """Tell the last step of a run that goes on, which may have missed its evaluation."""
        if self._contract and self.trainer.start_iter > 0:
            self._contract.at_step(self.trainer.start_iter - 1)

    def before_step(self) -> None:
        """Tell the step."""
        if self._contract:
            self._contract.at_step(self.trainer.iter)

    def after_step(self) -> None:
        """Log."""
        counts = self._contract.counts() if self._contract else {}
        if not counts:
            return
        names, devices = list(counts), {value.device for value in counts.values()}
        device = next((x for x in devices if x.type != "cpu"), torch.device("cpu"))
        values = torch.stack([to_device(value.float(), device) for value in counts.values()])
        if device.type == "cpu":
            self._log(names, values)
            return
        if self._copied is not None and self._copied[0].query():
            self._log(*self._copied[1:])
        host_values, event = to_device(values, torch.device("cpu")), torch.cuda.Event()
        event.record()
        self._copied = event, names, host_values

    def _log(self, names: list[str], values: Tensor) -> None:
        for name, value in zip(names, values.tolist()):
            smooth = name.startswith("num_pos")
            self.trainer.storage.put_scalar(name, value, smoothing_hint=smooth)
