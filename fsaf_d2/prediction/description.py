"""What a checkpoint says beside its weights, and what is assumed where it does not say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..detectors.contract import traits_of
from ..texts import as_line
from .said_fields import CHECKPOINT, MAX_CLASSES, check_field, said

# For classes of which no threshold is known.
DEFAULT_THRESHOLD = 0.5


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
    count, class_keys = _count(cfg, source)
    notes = []
    known = next(filter(None, (_known(name, count) for name in data_sets)), {})
    stored = said(content, "class_names", source) or []
    names = list(class_names or stored or known.get("names", []))
    if not names:
        names = [str(index) for index in range(count)]
        notes.append(
            f"'{source}' does not name its classes: they are called 0 to {count - 1}. "
            "--class-names names them."
        )
    check_field(CHECKPOINT, "class_names", names, source)
    if len(names) != count:
        raise ValueError(
            f"'{source}' comes with {len(names)} class names ({_listed(names)}), but by its config "
            f"(or --config-file) it has {count} classes ({class_keys})."
        )
    ids = _ids(said(content, "category_ids", source) or known.get("ids"), count, source, notes)
    # Thresholds go by the file's own names, also where the user gives others.
    keys = stored if len(stored) == count else names
    thresholds, missing = _thresholds(content, keys, names, source)
    if missing:
        which = "" if len(missing) == count else f" for {_listed(missing)}"
        notes.append(f"'{source}' has no score threshold{which}: {DEFAULT_THRESHOLD} is taken.")
    return Description(
        class_names=[as_line(name) for name in names],
        category_ids=ids,
        thresholds=thresholds,
        input_format=_input_format(content, cfg, source),
        notes=notes,
    )


def _count(cfg: CfgNode, source: str) -> tuple[int, str]:
    """The number of classes, and the keys that say it."""
    traits = traits_of(cfg)
    count, keys = traits.num_classes, ", ".join(traits.class_keys)
    if not 1 <= count <= MAX_CLASSES:
        raise ValueError(
            f"The config of '{source}' has {count} classes ({keys}), which must be 1 to "
            f"{MAX_CLASSES}."
        )
    return count, keys


def _ids(ids: list[int] | None, count: int, source: str, notes: list[str]) -> list[int]:
    if not ids:
        notes.append(
            f"'{source}' does not say the ids of its categories: in JSON they are 1 to {count}, in "
            "the order of the classes."
        )
        return list(range(1, count + 1))
    if len(ids) != count:
        raise ValueError(
            f"'{source}': category_ids must be {count}, as the classes, not {len(ids)}."
        )
    return list(ids)


def _known(name: str, count: int) -> dict:
    """What detectron2 knows of a data set without opening it, if it has so many classes."""
    metadata = MetadataCatalog.get(name) if name in MetadataCatalog else None
    names = metadata.get("thing_classes") if metadata else None
    if not names or len(names) != count:
        return {}
    indices = metadata.get("thing_dataset_id_to_contiguous_id") or {}
    return {"names": names, "ids": sorted(indices, key=indices.get)}


def _thresholds(
    content: dict, keys: list[str], names: list[str], source: str
) -> tuple[list[float], list[str]]:
    """The threshold of each class, and the names of those of which the file has none."""
    thresholds = said(content, "thresholds", source) or {}
    missing = [name for key, name in zip(keys, names) if key not in thresholds]
    return [float(thresholds.get(key, DEFAULT_THRESHOLD)) for key in keys], missing


def _input_format(content: dict, cfg: CfgNode, source: str) -> str:
    chosen = cfg.INPUT.FORMAT
    if chosen not in ("BGR", "RGB"):
        raise ValueError(f"INPUT.FORMAT must be 'BGR' or 'RGB', not {chosen!r:.20}.")
    stored = said(content, "input_format", source) or chosen
    if stored != chosen:
        raise ValueError(
            f"'{source}' was trained with images in {stored!r}, but INPUT.FORMAT is {chosen!r}."
        )
    return chosen


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(as_line, names[:5])) + (", ..." if len(names) > 5 else "")
