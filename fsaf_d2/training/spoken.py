"""What a training says of itself before its first step and behind its last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..commands.calls import call
from ..evaluation.run_report import REPORT
from .checkpoints import BEST

if TYPE_CHECKING:
    from .guarded_run import GuardedRun


def opening_lines(run: GuardedRun) -> list[str]:
    """Say what is trained, on what, and for how long."""
    settings, parameters = run.settings, list(run.checkpointer.model.parameters())
    total = sum(x.numel() for x in parameters)
    trained = sum(x.numel() for x in parameters if x.requires_grad)
    images, batch = run.data_loader.num_images, settings.batch_size
    first, last = run.start_iter, run.max_iter
    epochs = (last - first) * batch / max(images, 1)
    if settings.eval_period > 0:
        evaluated = f"evaluated every {settings.eval_period} steps"
    else:
        evaluated = "evaluated at the end"
    return [
        f"Model: {type(run.checkpointer.model).__name__}, {total:,} parameters, {trained:,} of "
        "them trained.",
        f"Data: {images:,} training images, {_classes(settings.class_names)}; "
        + (
            f"{evaluated} on {', '.join(settings.datasets)}." if settings.datasets else "no others."
        ),
        f"Training: steps {first + 1} to {last} of {batch} images, {epochs:.1f} times all of them. "
        f"All else is in {settings.output_dir}/log.txt; -v shows it here.",
    ]


def closing_lines(run: GuardedRun) -> list[str]:
    """Name the files that a finished training has left, and what they are for."""
    settings = run.settings
    best = run.best_checkpoint()
    lines = [best] if best else []
    if settings.datasets:
        lines.append(f"Report: {settings.output_dir}/{REPORT}")
    if settings.config:
        name = BEST if best else "model_final"
        weights = f"--weights {settings.output_dir}/{name}.pth"
        lines += [
            f"Use it:    {call('predict')} {weights} --input IMAGES --output FOLDER",
            f"Export it: {call('export')} {weights} --format onnx",
        ]
    return lines


def _classes(names: list[str]) -> str:
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{len(names)} {'class' if len(names) == 1 else 'classes'} ({shown})"
