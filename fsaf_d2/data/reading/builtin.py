"""The data sets that this project's configs name, beside detectron2's own."""

from __future__ import annotations

import os
from pathlib import Path

from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances

# name: (annotation file, image folder), below the data root
DATASETS = {
    "digits_train": ("digits/annotations/train.json", "digits/train"),
    "digits_val": ("digits/annotations/val.json", "digits/val"),
    "bloodcells_train": ("bloodcells/annotations/train.json", "bloodcells/images"),
    "bloodcells_val": ("bloodcells/annotations/val.json", "bloodcells/images"),
    "bloodcells_test": ("bloodcells/annotations/test.json", "bloodcells/images"),
    "nuclei_train": ("nuclei/annotations/train.json", "nuclei/images"),
    "nuclei_val": ("nuclei/annotations/val.json", "nuclei/images"),
    "nuclei_test": ("nuclei/annotations/test.json", "nuclei/images"),
    # Images of more than 100 and up to 375 nuclei: TEST.DETECTIONS_PER_IMAGE 375.
    "nuclei_train_dense": ("nuclei/annotations/train_dense.json", "nuclei/images"),
    "nuclei_val_dense": ("nuclei/annotations/val_dense.json", "nuclei/images"),
    "nuclei_test_dense": ("nuclei/annotations/test_dense.json", "nuclei/images"),
}

# detectron2's own, which are as they were published: boxes without a size among others. Of them
# only what cannot be read, or leads elsewhere, is an error, and evaluation counts all objects.
PUBLISHED = ("coco_2014_", "coco_2017_")

# Where to get a data set whose name begins so.
SOURCES = {
    "digits": "`make demo` makes it.",
    "bloodcells": "The README, section 'Your own data', says where to get it.",
    "nuclei": "docs/results.md, section 'Nuclei', says where to get it.",
    "coco_2017": "Images and annotations of 2017 are at https://cocodataset.org.",
}


def data_root() -> Path:
    """The folder that holds all data sets: ``$DETECTRON2_DATASETS``, or ``datasets``."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


def register_builtin_datasets() -> None:
    """Register :data:`DATASETS` with detectron2; those already registered stay as they are.

    Only names and paths are registered. No file is read before the data set is used.
    """
    for name, (annotation_file, image_folder) in DATASETS.items():
        if name not in DatasetCatalog:
            paths = (str(data_root() / path) for path in (annotation_file, image_folder))
            register_coco_instances(name, {}, *paths)
