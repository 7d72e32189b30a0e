from detectron2 import model_zoo

from .fsaf_R_50_FPN_1x import dataloader, model, optimizer, train

dataloader.train.mapper.augmentations[0].short_edge_length = [640, 672, 704, 736, 768, 800]
lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_3x
train.max_iter = 270000
