"""How many images and boxes a mended file lacks."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from .check_source import Check

# Of images or of boxes; what loses more is written only if asked for.
MUCH = 0.1
# What the readers of other formats leave out of the data, with one image each.
UNREAD_IMAGES = (
    "unreadable image",
    "unreadable annotation file",
    "listed image is missing",
    "listed file is missing",
    "labels of a missing image",
)


class Loss(NamedTuple):
    """What of the data a mended file lacks."""

    what: str  # "images" or "boxes"
    lost: int
    total: int

    @property
    def is_much(self) -> bool:
        """Whether nobody may want it without having said so."""
        return self.lost > MUCH * self.total


def lost_data(before: Check, after: Check, changes: Counter) -> tuple[Loss, Loss]:
    """What was there before and is not now; what was there twice is not lost."""
    kinds = Counter(finding.kind for finding in before.source.findings)
    doubles = changes["duplicate image id"] + changes["duplicate file name"]
    unread = sum(kinds[kind] for kind in UNREAD_IMAGES)
    return (
        _loss("images", "images", before, after, doubles, unread),
        _loss(
            *("boxes", "annotations", before, after),
            changes["duplicate box"],
            kinds["unreadable object"],
        ),
    )


def _loss(what: str, section: str, before: Check, after: Check, doubles: int, unread: int) -> Loss:
    total, left = (len(check.source.data.get(section, ())) for check in (before, after))
    return Loss(what, max(total - left - doubles, 0) + unread, total + unread)
