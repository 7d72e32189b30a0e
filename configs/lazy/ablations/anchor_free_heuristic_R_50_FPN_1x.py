from .anchor_free_online_R_50_FPN_1x import dataloader, lr_multiplier, model, optimizer, train

model.branches.point.selection_rule.level_selection = "heuristic"
