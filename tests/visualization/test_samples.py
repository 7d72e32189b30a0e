"""The image of a data set's samples is made with the limits of training."""

import cv2
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from models import tiny_cfg

from fsaf_d2.data.reading.digits import make_digits
from fsaf_d2.training import Trainer
from fsaf_d2.visualization.samples import draw_samples


@pytest.fixture
def cfg(tmp_path):
    make_digits(tmp_path, num_train=1, num_val=3, image_size=64)
    digits = tmp_path / "digits"
    annotations, images = str(digits / "annotations" / "val.json"), str(digits / "val")
    register_coco_instances("samples_val", {}, annotations, images)
    words = ["MODEL.RETINANET.NUM_CLASSES", "10", "INPUT.MIN_SIZE_TEST", "64"]
    yield tiny_cfg(*words, "DATALOADER.NUM_WORKERS", "0")
    DatasetCatalog.remove("samples_val")
    MetadataCatalog.remove("samples_val")


def test_samples_are_drawn(cfg, tmp_path):
    model = Trainer.build_model(cfg)
    num_drawn = draw_samples(model, cfg, "samples_val", tmp_path / "samples.png", min_score=0)
    image = cv2.imread(str(tmp_path / "samples.png"))
    # Three images in a row, magnified to 512 pixels.
    assert num_drawn >= 0 and image.shape[1] == 3 * 520 + 8 and model.training


def test_large_images_are_refused(cfg, tmp_path):
    cfg.INPUT.MAX_PIXELS = 64 * 64 - 1
    with pytest.raises(OSError, match=r"\.jpg' .*64 x 64 pixels.*INPUT\.MAX_PIXELS"):
        draw_samples(Trainer.build_model(cfg), cfg, "samples_val", tmp_path / "samples.png")
    assert not (tmp_path / "samples.png").exists()
