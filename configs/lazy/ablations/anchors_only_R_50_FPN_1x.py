from ..fsaf_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

del model.branches.point
