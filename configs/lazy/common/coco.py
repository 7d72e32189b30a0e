# COCO as Base-FSAF.yaml reads it: short side 800, flips, images without objects kept.
from detectron2.config import LazyCall as L
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.transforms import RandomFlip
from omegaconf import OmegaConf

from fsaf_d2.data.loading.loader import choose_records
from fsaf_d2.data.loading.mapper import OpenCVMapper
from fsaf_d2.data.loading.resizing import ResizeShortestEdge
from fsaf_d2.evaluation import BoxEvaluator

dataloader = OmegaConf.create()

dataloader.train = L(build_detection_train_loader)(
    dataset=L(choose_records)(
        dataset_dicts=L(get_detection_dataset_dicts)(names=["coco_2017_train"], filter_empty=False),
        filter_empty=False,
    ),
    mapper=L(OpenCVMapper)(
        is_train=True,
        augmentations=[
            L(ResizeShortestEdge)(short_edge_length=[800], max_size=1333, sample_style="choice"),
            L(RandomFlip)(horizontal=True),
        ],
        image_format="BGR",
    ),
    total_batch_size=16,
    num_workers=4,
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names=["coco_2017_val"], filter_empty=False),
    mapper=L(OpenCVMapper)(
        is_train=False,
        augmentations=[
            L(ResizeShortestEdge)(short_edge_length=[800], max_size=1333, sample_style="choice")
        ],
        image_format="${...train.mapper.image_format}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(BoxEvaluator)(
    dataset_name="${..test.dataset.names[0]}",
    output_dir="${train.output_dir}/inference/${.dataset_name}",
)
