"""What a checkpoint says beside its weights, and what is assumed where it does not say it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..detectors.contract import traits_of
from ..texts import as_line

# For classes of which no threshold is known.
DEFAULT_THRESHOLD = 0.5
# Of a name from a file; it ends up in labels and in names of folders.
MAX_NAME_LENGTH = 200


class Description(NamedTuple):
    """Of a detector with K classes."""

    class_names: list[str]
    category_ids: list[int]  # the data set's
    thresholds: list[float]  # the score from which a detection counts
    input_format: str  # "BGR" or "RGB"
    notes: list[str]  # what was assumed, a sentence each


def describe(
    content: dict,
    cfg: CfgNode,
    source: str,
    *,
    class_names: Sequence[str] | None = None,
    data_sets: Sequence[str] = (),
) -> Description:
    """Check what a file says of its detector, and complete it.

    Args:
        content: of the file.
        cfg: what the detector is built from.
        source: the file's name, for messages.
        class_names: in place of the file's.
        data_sets: where the file does not say it, classes and ids are what detectron2 knows of
            these by itself.

    Raises:
        ValueError: the file contradicts itself or the config, or holds something else than it
            should; the message names it.
    """
    traits, notes = traits_of(cfg), []
    count = traits.num_classes
    known = next(filter(None, (_known(name, count) for name in data_sets)), {})
    stored = list(content.get("class_names") or [])
    names = list(class_names or stored or known.get("names", []))
    if not names:
        names = [str(index) for index in range(count)]
        notes.append(
            f"'{source}' does not name its classes: they are called 0 to {count - 1}. "
            "--class-names names them."
        )
    _check_names([*stored, *names], source)
    if len(names) != count:
        raise ValueError(
            f"'{source}' comes with {len(names)} class names ({_listed(names)}), but by its config "
            f"(or --config-file) it has {count} classes ({', '.join(traits.class_keys)})."
        )
    ids = content.get("category_ids") or known.get("ids")
    if not ids:
        ids = list(range(1, count + 1))
        notes.append(
            f"'{source}' does not say the ids of its categories: in JSON they are 1 to {count}, in "
            "the order of the classes."
        )
    _check_ids(ids, count, source)
    # Thresholds go by the file's own names, also where the user gives others.
    keys = stored if len(stored) == count else names
    thresholds, missing = _thresholds(content, keys, names, source)
    if missing:
        which = "" if len(missing) == count else f" for {_listed(missing)}"
        notes.append(f"'{source}' has no score threshold{which}: {DEFAULT_THRESHOLD} is taken.")
    return Description(
        class_names=[as_line(name) for name in names],
        category_ids=list(ids),
        thresholds=thresholds,
        input_format=_input_format(content, cfg, source),
        notes=notes,
    )


def _known(name: str, count: int) -> dict:
    """What detectron2 knows of a data set without opening it, if it has so many classes."""
    metadata = MetadataCatalog.get(name) if name in MetadataCatalog else None
    names = metadata.get("thing_classes") if metadata else None
    if not names or len(names) != count:
        return {}
    indices = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    return {"names": names, "ids": sorted(indices, key=indices.get)}


def _check_names(names: list, source: str) -> None:
    if not all(isinstance(name, str) and len(name) <= MAX_NAME_LENGTH for name in names):
        raise ValueError(
            f"class_names of '{source}' must be texts of {MAX_NAME_LENGTH} letters at the most."
        )


def _check_ids(ids: object, count: int, source: str) -> None:
    plain = isinstance(ids, list) and all(type(value) is int for value in ids)
    if not (plain and len(set(ids)) == len(ids) == count):
        raise ValueError(f"category_ids of '{source}' must be {count} different whole numbers.")


def _thresholds(
    content: dict, keys: list[str], names: list[str], source: str
) -> tuple[list[float], list[str]]:
    """The threshold of each class, and the names of those of which the file has none."""
    thresholds = content.get("thresholds") or {}
    _check_thresholds(thresholds, source)
    missing = [name for key, name in zip(keys, names) if key not in thresholds]
    return [float(thresholds.get(key, DEFAULT_THRESHOLD)) for key in keys], missing


def _check_thresholds(thresholds: object, source: str) -> None:
    if not isinstance(thresholds, dict) or not all(
        isinstance(value, (int, float)) and math.isfinite(value) for value in thresholds.values()
    ):
        raise ValueError(f"thresholds of '{source}' must be a number for each class name.")


def _input_format(content: dict, cfg: CfgNode, source: str) -> str:
    chosen = cfg.INPUT.FORMAT
    if chosen not in ("BGR", "RGB"):
        raise ValueError(f"INPUT.FORMAT must be 'BGR' or 'RGB', not {chosen!r:.20}.")
    stored = content.get("input_format", chosen)
    if stored != chosen:
        raise ValueError(
            f"'{source}' was trained with images in {stored!r:.20}, but INPUT.FORMAT is {chosen!r}."
        )
    return chosen


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(as_line, names[:5])) + (", ..." if len(names) > 5 else "")
