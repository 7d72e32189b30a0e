"""What was found, as text for other programs: COCO json, csv and YOLO's txt."""

from __future__ import annotations

import json
from pathlib import Path

from detectron2.structures import Instances

from ..texts import FORMULA_STARTS, open_table, write_rows, write_text
from .detector import Detector
from .shots import Shot, Summary

COLUMNS = ("file", "class", "score", "x0", "y0", "x1", "y1", "level", "branch", "frame", "seconds")


class JsonTable:
    """``predictions.json``: a data set in COCO's format, with scores.

    Each annotation is also a result as COCO's evaluation takes it, with ``level`` ("p3") and
    ``branch`` ("point") beside, where the detector tells them. Frames of videos are images with
    ``frame`` and ``seconds``.
    """

    def __init__(self, folder: Path, detector: Detector) -> None:
        self._detector = detector
        self._images: list[dict] = []
        self._count = 0
        self._file, self._part = folder / "predictions.json", folder / ".predictions.json.part"
        self._stream = open(self._part, "w", encoding="utf-8")  # noqa: SIM115 (till finish)
        self._stream.write('{"annotations": [')

    def add(self, shot: Shot, found: Instances) -> None:
        """Write the detections of one image or frame."""
        image = {"id": len(self._images) + 1, "file_name": shot.file}
        image["height"], image["width"] = shot.size
        if shot.frame is not None:
            image |= {"frame": shot.frame, "seconds": round(shot.seconds, 3)}
        self._images.append(image)
        for (x0, y0, x1, y1), score, kind, level, branch in rows(found, self._detector):
            self._count += 1
            annotation = {
                "id": self._count,
                "image_id": image["id"],
                "category_id": self._detector.category_ids[kind],
                "bbox": [round(value, 3) for value in (x0, y0, x1 - x0, y1 - y0)],
                "area": round((x1 - x0) * (y1 - y0), 3),
                "iscrowd": 0,
                "score": round(score, 5),
            }
            sources = {"level": level, "branch": branch}
            annotation |= {key: name for key, name in sources.items() if name}
            separator = ",\n" if self._count > 1 else "\n"
            self._stream.write(separator + json.dumps(annotation))

    def finish(self, summary: Summary) -> None:
        """Write the rest, and give the file its name."""
        detector = self._detector
        least = {name: round(value, 5) for name, value in summary.least_scores.items()}
        rest = {
            "images": self._images,
            "categories": [
                {"id": number, "name": name}
                for number, name in zip(detector.category_ids, detector.class_names)
            ],
            "info": {
                "complete": summary.complete,
                "least_scores": least,
                "further_frames": summary.frames,
                "failed": [failure._asdict() for failure in summary.failures],
            },
        }
        self._stream.write("\n],\n" + json.dumps(rest)[1:] + "\n")
        self._stream.close()
        self._part.replace(self._file)


class CsvTable:
    """``predictions.csv``: a line for each detection."""

    def __init__(self, folder: Path, detector: Detector) -> None:
        self._detector = detector
        self._stream = open_table(folder / "predictions.csv")
        write_rows(self._stream, [COLUMNS])

    def add(self, shot: Shot, found: Instances) -> None:
        """Write the detections of one image or frame."""
        place = ("", "") if shot.frame is None else (shot.frame, f"{shot.seconds:.3f}")
        # A path stays one with ./ before it.
        file = f"./{shot.file}" if shot.file.startswith(FORMULA_STARTS) else shot.file
        write_rows(
            self._stream,
            (
                [
                    file,
                    self._detector.class_names[kind],
                    f"{score:.5f}",
                    *(f"{value:.2f}" for value in box),
                    level,
                    branch,
                    *place,
                ]
                for box, score, kind, level, branch in rows(found, self._detector)
            ),
        )

    def finish(self, _: Summary) -> None:
        """Close the file."""
        self._stream.close()


class YoloFiles:
    """``labels/NAME.txt`` for each image: class, centre, width, height in shares, score.

    A frame's is ``labels/clip.mp4/000012.txt``. ``classes.txt`` has the names, in the order of the
    classes, which count from 0.
    """

    def __init__(self, folder: Path, detector: Detector) -> None:
        self._detector = detector
        self._folder = folder / "labels"
        write_text(folder / "classes.txt", "".join(f"{name}\n" for name in detector.class_names))

    def add(self, shot: Shot, found: Instances) -> None:
        """Write the file of one image or frame, an empty one if nothing was found."""
        height, width = shot.size
        lines = []
        for (x0, y0, x1, y1), score, kind, _, _ in rows(found, self._detector):
            shares = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height
            shares += (x1 - x0) / width, (y1 - y0) / height
            lines.append(" ".join([str(kind), *(f"{x:.6f}" for x in shares), f"{score:.5f}"]))
        file = output_file(self._folder, shot, ".txt")
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def finish(self, _: Summary) -> None:
        """Nothing is left to do."""


def rows(found: Instances, detector: Detector) -> list[tuple[list[float], float, int, str, str]]:
    """Box (x0, y0, x1, y1), score, class, and names of level and branch ("": not told) of each."""
    levels, branches = (
        [names[i] for i in found.get(field).tolist()]
        if found.has(field) and names
        else [""] * len(found)
        for field, names in (
            ("pred_levels", detector.level_names),
            ("pred_branches", detector.branch_names),
        )
    )
    boxes, scores = found.pred_boxes.tensor.tolist(), found.scores.tolist()
    return list(zip(boxes, scores, found.pred_classes.tolist(), levels, branches))


def output_file(folder: Path, shot: Shot, ending: str) -> Path:
    """The file of an image or frame below a folder, whose folder is made."""
    name = shot.stem
    if shot.frame is not None:
        # Beside clip.mp4 there may be a folder clip, but none of the name clip.mp4.
        name = f"{shot.stem}{Path(shot.file).suffix}/{shot.frame:06d}"
    file = folder / f"{name}{ending}"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
