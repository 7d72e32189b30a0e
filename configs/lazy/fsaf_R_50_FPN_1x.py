from .common.coco import dataloader
from .common.fsaf import model
from .common.recipe import lr_multiplier, optimizer, train

train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
