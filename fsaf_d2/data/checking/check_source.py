"""All checks of one data set, and what it holds."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..object_sizes import count_by_size
from ..reading.formats.source import Finding
from ..reading.image_headers import MAX_PIXELS
from ..reading.sources import Source
from .boxes import Boxes, check_boxes
from .entries import Entries, check_entries
from .findings import Flaw
from .images import MAX_SIDE, ImageFile, check_images
from .names import check_contents, check_names

# Sides of boxes, the roots of their areas, that histograms are parted at: 4 to an octave.
SIDES = 2 ** np.arange(0, 12.25, 0.25)
# What other formats have no place for.
COCO_FIELDS = ("missing area", "missing iscrowd", "annotation id 0")
COCO_FORMATS = ("coco", "roboflow")
MOST_SIZES = 20


@dataclasses.dataclass
class Check:
    """What was found in a data set.

    Letters: I images, M annotations with four finite numbers as a box, K categories.
    """

    source: Source
    entries: Entries
    boxes: Boxes
    image_files: list[ImageFile | None]  # of the I images; empty if they were not looked at
    leaks: list[Flaw] = dataclasses.field(default_factory=list)

    @property
    def flaws(self) -> list[Flaw]:
        """Findings with the entries that they are about."""
        return [*self.entries.flaws, *self.leaks]

    @property
    def findings(self) -> list[Finding]:
        """All findings, those of the source's reader first."""
        return [*self.source.findings, *(flaw.finding for flaw in self.flaws)]

    @property
    def known_image_files(self) -> dict[str, ImageFile]:
        """The images by file name, for another check of the same folder."""
        pairs = zip(self.entries.images, self.image_files)
        return {image["file_name"]: file for image, file in pairs if file}

    @property
    def num_errors(self) -> int:
        """How many findings are errors."""
        return sum(finding.severity == "error" for finding in self.findings)


def check_source(
    source: Source,
    *,
    max_pixels: int = MAX_PIXELS,
    max_side: int = MAX_SIDE,
    read_images: bool = True,
    decode: bool = False,
    progress: bool = False,
    known: dict[str, ImageFile] | None = None,
) -> Check:
    """Check a data set: entries, boxes, names and image files.

    Args:
        source: its values are not trusted.
        max_pixels: ``INPUT.MAX_PIXELS``.
        max_side: the long side that images are resized to at the most.
        read_images: whether to look at the image files, too.
        decode: decode every image to its end, which takes long.
        progress: show a progress bar on a terminal.
        known: images that have been looked at before, by file name.
    """
    unique = "minival" not in source.annotation_file
    entries = check_entries(
        source.data,
        source.annotation_file,
        source.image_root,
        places=source.places,
        unique_annotations=unique,
    )
    if source.format not in COCO_FORMATS:
        entries.flaws = [x for x in entries.flaws if x.finding.kind not in COCO_FIELDS]
    boxes = check_boxes(entries)
    check_names(entries)
    check_contents(entries, boxes)
    image_files = []
    if read_images:
        image_files = check_images(
            entries,
            source.image_root,
            max_pixels=max_pixels,
            max_side=max_side,
            decode=decode,
            progress=progress,
            known=known,
        )
    return Check(source, entries, boxes, image_files)


def statistics(check: Check) -> dict:
    """Count what a data set holds; crowds and boxes that cannot be used are left out.

    Sizes are those of the annotation file.

    Returns:
        ``images``, ``boxes``, ``crowds``; ``images_without_objects``, nor crowds, which are
        background; ``classes`` {name: boxes};
        ``sizes`` {"small", "medium", "large": boxes}, as evaluation counts them, by area (on a
        limit, one counts twice);
        ``sizes_by_class``; ``median_box_size``, the root of an area, and ``median_image_size``,
        in pixels, None where there is none; ``box_size_histogram`` with ``edges`` in pixels and
        ``counts``; ``objects_per_image`` {number of objects: images};
        ``image_sizes`` {"width x height": images}, the most frequent.
    """
    entries, boxes = check.entries, check.boxes
    chosen = np.flatnonzero(boxes.is_usable & ~entries.is_crowd)
    sides = np.sqrt(boxes.pixels[chosen, 2:].prod(axis=1))
    categories = entries.category_index[chosen]
    areas = object_areas(check)[chosen]
    names = [str(category.get("name")) for category in entries.categories]
    by_class = {name: areas[categories == k] for k, name in enumerate(names)}
    per_image = np.bincount(entries.image_index[chosen], minlength=len(entries.images))
    known = entries.sizes[np.isfinite(entries.sizes).all(axis=1)]
    shapes, shape_counts = np.unique(known, axis=0, return_counts=True) if len(known) else ([], [])
    order = np.argsort(-np.asarray(shape_counts), kind="stable")[:MOST_SIZES]
    counts, _ = np.histogram(np.clip(sides, SIDES[0], SIDES[-1]), SIDES)
    objects, num_images = np.unique(per_image, return_counts=True)
    is_empty = ~entries.is_labelled
    is_empty[entries.image_index[entries.is_crowd]] = False
    return {
        "images": len(entries.images),
        "boxes": len(chosen),
        "crowds": int(entries.is_crowd.sum()),
        "images_without_objects": int(is_empty.sum()),
        "classes": {name: len(found) for name, found in by_class.items()},
        "sizes": count_by_size(areas),
        "sizes_by_class": {name: count_by_size(found) for name, found in by_class.items()},
        "median_box_size": float(np.median(sides)) if len(sides) else None,
        "median_image_size": np.median(known, axis=0).tolist() if len(known) else None,
        "box_size_histogram": {"edges": SIDES.round(2).tolist(), "counts": counts.tolist()},
        "objects_per_image": dict(zip(map(str, objects.tolist()), num_images.tolist())),
        "image_sizes": {
            f"{shapes[i][0]:.0f} x {shapes[i][1]:.0f}": int(shape_counts[i]) for i in order
        },
    }


def object_areas(check: Check) -> np.ndarray:
    """(M,) areas in square pixels, as evaluation takes them: that which is given, or the box's."""
    own = check.boxes.pixels[:, 2:].prod(axis=1)
    layout = check.boxes.layout
    given = [annotation.get("area") for annotation in check.entries.annotations]
    usable = [x if type(x) in (int, float) and 0 <= x < 1e24 else np.nan for x in given]
    # Where the boxes are not as they should be, areas made from them are not either.
    is_own = np.isnan(usable) | layout.normalised | layout.corners
    return np.where(is_own, own, usable)
