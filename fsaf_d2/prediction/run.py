"""Prediction on many files: read, detect, write."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Protocol

from detectron2.structures import Instances
from tqdm import tqdm

from ..ownership import owned, require_possible_folder
from ..texts import as_line
from .batches import by_shape, read_ahead
from .detector import Detector
from .drawings import Crops, DrawnImages
from .inputs import InputFile, Inputs
from .output_tables import CsvTable, JsonTable, YoloFiles
from .shots import Failure, Shot, Summary, count_frames, read_image, read_video

OUTPUTS = {"pictures": DrawnImages, "json": JsonTable, "csv": CsvTable, "yolo": YoloFiles}
DEFAULT_OUTPUTS = ("pictures", "json", "csv")
# What an output folder may hold of an earlier run.
_NAMES = ("pictures", "predictions.json", "predictions.csv", "labels", "classes.txt", "crops")


class Output(Protocol):
    """Somewhere to write what was found."""

    def add(self, shot: Shot, found: Instances) -> None:
        """Write one image or frame."""

    def finish(self, summary: Summary) -> None:
        """Write the rest."""


def predict(
    detector: Detector,
    inputs: Inputs,
    output: str | os.PathLike[str],
    *,
    save: Sequence[str] = DEFAULT_OUTPUTS,
    crops: Sequence[str] | None = None,
    show: Sequence[str] = (),
    min_score: float | None = None,
    workers: int | None = None,
    overwrite: bool = False,
) -> Summary:
    """Predict on images and videos, and write what was found. A file that fails is named.

    Args:
        detector: as :func:`.load_detector` gives it.
        inputs: as :func:`.find_inputs` gives them.
        output: a folder; it is made.
        save: of "pictures" (drawn), "json", "csv", "yolo".
        crops: classes of which each detection is cut out and saved; empty for all classes.
        show: what drawn labels tell beside class and score: "level", "branch".
        min_score: the least score for all classes; by default the detector's thresholds.
        workers: threads that read images; by default one for every two cores, 8 at the most.
        overwrite: whether files of an earlier run may be replaced.

    Raises:
        ValueError: an argument is not as said above, or another process writes to the folder.
        FileExistsError: the output folder holds predictions, and ``overwrite`` is not set.
        OSError: an output cannot be written.
    """
    folder = Path(output)
    require_safe_folder(folder, inputs, overwrite)
    unknown = [name for name in save if name not in OUTPUTS]
    if unknown:
        raise ValueError(f"There is no output {unknown[0]!r}, but {', '.join(OUTPUTS)}.")
    cropped = None if crops is None else _indices(crops, detector.class_names)
    with owned(folder, "--output"):
        # Another may have written till now.
        require_safe_folder(folder, inputs, overwrite)
        outputs = _open_outputs(folder, detector, save, cropped, show)
        return _predict(detector, inputs, outputs, min_score, workers)


def _predict(
    detector: Detector,
    inputs: Inputs,
    outputs: Sequence[Output],
    min_score: float | None,
    workers: int | None,
) -> Summary:
    least = detector.thresholds.tolist() if min_score is None else repeat(min_score)
    summary = Summary(least_scores=dict(zip(detector.class_names, least)))
    try:
        with _bar(inputs) as bar, _Run(detector, outputs, summary, bar, min_score) as run:
            workers = workers or min(max((os.cpu_count() or 1) // 2, 1), 8)
            run.take(_images(detector, inputs.images, workers))
            for video in inputs.videos:
                # One after the other, so that the frames of each are written in their order.
                run.take(_frames(detector, video))
            summary.complete = True
    finally:
        for writer in outputs:
            writer.finish(summary)
    return summary


def require_safe_folder(folder: Path, inputs: Inputs, overwrite: bool) -> None:
    """Make sure that outputs take the place neither of inputs nor, unless told so, of others.

    Raises:
        ValueError: an input lies where outputs will, or the folder is a file.
        FileExistsError: the folder holds predictions.
    """
    require_possible_folder(folder, "--output")
    ours = [folder / name for name in _NAMES]
    resolved = [file.resolve() for file in ours]
    for file in (*inputs.images, *inputs.videos):
        path = Path(file.path).resolve()
        if any(path.is_relative_to(place) for place in resolved):
            raise ValueError(
                f"Input '{file.path}' lies where the output is written: choose another --output."
            )
    there = [file.name for file in ours if file.exists()]
    if there and not overwrite:
        raise FileExistsError(
            f"'{folder}' holds predictions already ({', '.join(there)}): name another folder, or "
            "replace files of the same name by --overwrite."
        )


def _open_outputs(
    folder: Path,
    detector: Detector,
    save: Sequence[str],
    cropped: Sequence[int] | None,
    show: Sequence[str],
) -> list[Output]:
    folder.mkdir(parents=True, exist_ok=True)
    options = {"pictures": {"show": show}}
    outputs = [
        OUTPUTS[name](folder, detector, **options.get(name, {})) for name in dict.fromkeys(save)
    ]
    return outputs if cropped is None else [*outputs, Crops(folder, detector, cropped)]


def _indices(names: Sequence[str], class_names: Sequence[str]) -> list[int]:
    for name in names:
        if name not in class_names:
            raise ValueError(f"There is no class {name!r} to crop, but {', '.join(class_names)}.")
    return [index for index, name in enumerate(class_names) if not names or name in names]


def _bar(inputs: Inputs) -> tqdm:
    total = len(inputs.images) + sum(count_frames(video.path) for video in inputs.videos)
    return tqdm(total=total, unit=" images", dynamic_ncols=True, file=sys.stderr)


def _images(
    detector: Detector, files: Sequence[InputFile], workers: int
) -> Iterator[Shot | Failure]:
    return read_ahead((partial(read_image, detector, file) for file in files), workers=workers)


def _frames(detector: Detector, video: InputFile) -> Iterator[Shot | Failure]:
    """The frames of a video; while some are used, a thread reads the next."""
    frames = read_video(detector, video)
    chunks = read_ahead(
        repeat(lambda: list(islice(frames, detector.batch_size))),
        workers=1,
    )
    for chunk in chunks:
        if not chunk:
            return
        yield from chunk


class _Run:
    """Detects in images and frames; a thread writes them, in the order in which they came."""

    def __init__(
        self,
        detector: Detector,
        outputs: Sequence[Output],
        summary: Summary,
        bar: tqdm,
        min_score: float | None,
    ) -> None:
        self._detector = detector
        self._outputs = outputs
        self._summary = summary
        self._bar = bar
        self._min_score = min_score
        # One alone: matplotlib and the outputs are not made for several.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing: deque[Future] = deque()

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def take(self, shots: Iterable[Shot | Failure]) -> None:
        """Detect in all of them and write what was found."""
        detector, summary = self._detector, self._summary
        waiting: dict[int, tuple[Shot, Instances]] = {}
        next_place, files = 0, set()
        good = enumerate(self._without_failures(shots))
        for batch in by_shape(
            good, lambda x: detector.padded_shape(x[1].prepared), batch_size=detector.batch_size
        ):
            found = detector.detect([shot.prepared for _, shot in batch])
            waiting.update({place: (shot, x) for (place, shot), x in zip(batch, found)})
            while next_place in waiting:
                shot, found_here = waiting.pop(next_place)
                files.add(shot.file)
                next_place += 1
                self._writing.append(self._thread.submit(self._write, shot, found_here))
            self._wait(at_most=2 * detector.batch_size)
        self._wait(at_most=0)
        failed = {failure.file for failure in summary.failures}
        summary.num_files += len(files - failed)

    def _without_failures(self, shots: Iterable[Shot | Failure]) -> Iterator[Shot]:
        for shot in shots:
            if isinstance(shot, Shot):
                if shot.frames > 1:
                    self._say_frames(shot)
                yield shot
                continue
            self._summary.failures.append(shot)
            self._bar.write(as_line(f"Failed: {shot.file}: {shot.reason}"), file=sys.stderr)
            self._bar.update(0)

    def _say_frames(self, shot: Shot) -> None:
        self._summary.frames[shot.file] = shot.frames
        text = f"{shot.file}: of its {shot.frames} frames or pages the first alone is read."
        self._bar.write(as_line(text), file=sys.stderr)

    def _wait(self, at_most: int) -> None:
        while len(self._writing) > at_most:
            self._writing.popleft().result()

    def _write(self, shot: Shot, found: Instances) -> None:
        chosen = self._detector.choose(found, self._min_score)
        for output in self._outputs:
            output.add(shot, chosen)
        summary = self._summary
        summary.num_images += 1
        summary.num_detections += len(chosen)
        if len(found):
            summary.highest_score = max(summary.highest_score, found.scores.max().item())
        self._bar.update()
