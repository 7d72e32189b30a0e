"""COCO's masks as run lengths, before pycocotools decodes them: it trusts what they say."""

from __future__ import annotations

from pycocotools import mask

from ..reading.image_headers import MAX_PIXELS


def is_whole_mask(counts: object, size: object) -> bool:
    """Whether run lengths fill a mask of this size and nothing more.

    Args:
        counts: whole numbers, or the text that COCO packs them into (maskApi.c, rleFrString).
        size: [height, width].
    """
    if not (isinstance(size, list) and len(size) == 2 and all(map(_is_count, size))):
        return False
    num_pixels = size[0] * size[1]
    if not 0 < num_pixels <= MAX_PIXELS:
        return False
    try:
        runs = _unpacked(counts) if isinstance(counts, str) else counts
    except ValueError:
        return False
    return isinstance(runs, list) and all(map(_is_count, runs)) and sum(runs) == num_pixels


def mask_box(counts: list[int] | str, size: list[int]) -> list[float] | None:
    """The box (x, y, width, height) around a mask that :func:`is_whole_mask`; None of an empty one.

    Args:
        counts, size: as there.
    """
    runs = {"counts": counts, "size": size}
    packed = mask.frPyObjects(runs, *size) if isinstance(counts, list) else runs
    return mask.toBbox(packed).tolist() if mask.area(packed) else None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_PIXELS


def _unpacked(text: str) -> list[int]:
    """The run lengths in a text of 6 bits in each letter, 5 of a number and 1 that it goes on.

    Raises:
        ValueError: a letter has no place in it, or a number does not end.
    """
    runs: list[int] = []
    number = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise ValueError
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        number -= (bits & 16) << (shift - 4) if bits & 16 else 0
        # From the fourth on they are differences to the one before the last.
        runs.append(number + runs[-2] if len(runs) > 2 else number)
        number = shift = 0
    if shift:
        raise ValueError
    return runs
