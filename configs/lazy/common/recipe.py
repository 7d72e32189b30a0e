# The paper's schedule: 16 images a step, 90k steps.
from detectron2 import model_zoo

optimizer = model_zoo.get_config("common/optim.py").SGD
optimizer.lr = 0.01
optimizer.fused = True
lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x
train = model_zoo.get_config("common/train.py").train
train.max_iter = 90000
train.channels_last = True
