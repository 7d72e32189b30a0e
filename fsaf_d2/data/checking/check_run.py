"""The checks of the data sets that a run uses."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Sequence

from detectron2.data import MetadataCatalog

from ...commands.calls import call
from ..reading.builtin import PUBLISHED
from ..reading.canonical import write_json
from ..reading.image_headers import MAX_PIXELS
from ..reading.own import EVAL, FILES, VAL
from ..reading.sources import Source
from .check_source import Check, check_source
from .checks import AnnotationFileError, read_annotations, require_annotations
from .empty_boxes import empty_boxes, left_out_text
from .images import MAX_SIDE
from .leaks import check_leaks
from .output import error_text, one_line, to_dict

_logger = logging.getLogger("detectron2.fsaf_d2.data")


def require_sound_data(
    train: Sequence[str],
    test: Sequence[str],
    *,
    output_dir: str | os.PathLike[str] = "",
    max_pixels: int = MAX_PIXELS,
    max_side: int = MAX_SIDE,
    read_images: bool = True,
    strict_boxes: bool = False,
) -> None:
    """Check the data sets of a run that are in COCO format, as ``tools/check_data.py`` does.

    Warnings are logged, a line for each data set. What was found, and statistics, are written to
    ``data/check_NAME.json`` in the output folder, see :func:`.output.to_dict`.

    Args:
        train, test: names of data sets whose files exist. Those of other formats are not looked at,
            and of detectron2's own (:data:`..reading.builtin.PUBLISHED`) only the annotations.
        output_dir: ``OUTPUT_DIR``; "" to write nothing.
        max_pixels: ``INPUT.MAX_PIXELS``.
        max_side: the long side that images are resized to at the most.
        read_images: whether to look at the image files, and for leaks. A run that goes on has
            done so when it began.
        strict_boxes: ``DATALOADER.STRICT_BOXES``: boxes without area are errors, too. Otherwise a
            few are named in a line: training and evaluation leave them out.

    Raises:
        AnnotationFileError: there are errors. The message has their kinds and numbers, the first
            ones and the command that shows all.
    """
    names = list(dict.fromkeys((*train, *test)))
    require_annotations([name for name in names if name.startswith(PUBLISHED)])
    checks = {}
    for name in names:
        source = None if name.startswith(PUBLISHED) else _source(name)
        if source is not None:
            checks[name] = check_source(
                source,
                max_pixels=max_pixels,
                max_side=max_side,
                # Of a folder elsewhere nothing is known before detectron2 fetches an image.
                read_images=read_images and "://" not in source.image_root,
                progress=True,
            )
    for name in set(train) & set(checks):
        others = [checks[x] for x in test if x in checks]
        checks[name].leaks = [x for other in others for x in check_leaks(checks[name], other)]
    few = {x: empty_boxes(y, and_images=False) for x, y in checks.items() if not strict_boxes}
    _require_no_errors({x: y for x, y in checks.items() if not few.get(x)}, test)
    for name in filter(few.get, few):
        _logger.warning(f"Data set '{name}': {left_out_text(checks[name], few[name])}")
    _log_warnings(checks, test)
    for name, check in checks.items():
        path = os.path.join(output_dir, "data", f"check_{name}.json")
        if output_dir and (read_images or not os.path.exists(path)):
            write_json(path, to_dict(check))


def _source(name: str) -> Source | None:
    """A registered data set in COCO format; None for others."""
    metadata = MetadataCatalog.get(name)
    path, root = metadata.get("json_file"), metadata.get("image_root") or ""
    # Of addresses (s3://, https://) nothing is known before detectron2 has fetched them.
    if metadata.get("evaluator_type") != "coco" or not path or not os.path.isfile(path):
        return None
    path, root = os.fspath(path), os.fspath(root)
    data = read_annotations(path)
    return Source(
        _origin(name, data) or f"{path}:{root}",
        "coco",
        annotation_file=path,
        image_root=root,
        data=data,
    )


def _origin(name: str, data: object) -> str | None:
    """The path that data of one's own were given by, which have been written anew."""
    info = data.get("info") if name in FILES and isinstance(data, dict) else None
    source = info.get("source") if isinstance(info, dict) else None
    return source if isinstance(source, str) else None


def _require_no_errors(checks: dict[str, Check], test: Sequence[str]) -> None:
    messages = [
        error_text(check, f"Data set '{name}'", _command(name, checks, test))
        for name, check in checks.items()
        if check.num_errors
    ]
    if messages:
        raise AnnotationFileError("\n".join(messages))


def _log_warnings(checks: dict[str, Check], test: Sequence[str]) -> None:
    for name, check in checks.items():
        found = [finding for finding in check.findings if finding.severity == "warning"]
        if found:
            command = _command(name, checks, test)
            _logger.warning(f"Data set '{name}': {one_line(found)}. All of them: {command}")


def _command(name: str, checks: dict[str, Check], test: Sequence[str]) -> str:
    others = [x for x in test if x in checks and x != name and checks[name].leaks]
    paths = [shlex.quote(checks[x].source.path) for x in (name, *others[:1])]
    split = " --split val" if name in (VAL, EVAL) else ""
    return f"{call('check')} {' --val '.join(paths)}{split}"
