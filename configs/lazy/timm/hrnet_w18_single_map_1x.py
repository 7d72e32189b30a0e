from .hrnet_w18_HRFPN_1x import dataloader, lr_multiplier, model, optimizer, train

# One map for objects of every size, anchor-free.
del model.branches.anchor
model.branches.point.loss_weight = 1.0
model.towers.num_levels = 1
model.head_in_features = ["p2"]
model.branches.point.strides = model.backbone.out_strides = [4]
