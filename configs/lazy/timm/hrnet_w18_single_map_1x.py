from detectron2.layers import ShapeSpec

from .hrnet_w18_HRFPN_1x import dataloader, lr_multiplier, model, optimizer, train

# One map for objects of every size, anchor-free.
model.head.anchor_branch = False
model.anchor_free_loss_weight = 1.0
model.head.input_shape = [ShapeSpec(channels=256)]
model.head_in_features = dataloader.evaluator.level_names = ["p2"]
model.anchor_generator.strides = [4]
model.anchor_generator.sizes = [[32.0]]
