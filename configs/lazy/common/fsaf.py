# The model of Base-FSAF.yaml: every argument by its own name, nothing read from a yacs config.
from detectron2.config import LazyCall as L
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN, BasicStem, ResNet

from fsaf_d2.assignment.feature_selection import SelectionRule
from fsaf_d2.detectors import FSAF, AnchorBranch, PointBranch
from fsaf_d2.heads.towers import ConvTowers
from fsaf_d2.inference.suppression import Suppression
from fsaf_d2.necks import LastLevelP6P7

model = L(FSAF)(
    backbone=L(FPN)(
        bottom_up=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
            stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=True, norm="FrozenBN"),
            out_features=["res3", "res4", "res5"],
            freeze_at=2,
        ),
        in_features=["res3", "res4", "res5"],
        out_channels=256,
        top_block=L(LastLevelP6P7)(in_channels=2048, out_channels="${..out_channels}"),
    ),
    towers=L(ConvTowers)(
        in_channels="${..backbone.out_channels}",
        conv_dims=[256] * 4,
        num_levels=5,
    ),
    # One or more, which train and run together; `del model.branches.anchor` leaves one out.
    branches=L("builtins.dict")(
        anchor=L(AnchorBranch)(
            in_channels="${...towers.conv_dims[0]}",
            num_classes="${...num_classes}",
            anchor_generator=L(DefaultAnchorGenerator)(
                sizes=[[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)],
                aspect_ratios=[0.5, 1.0, 2.0],
                strides=[8, 16, 32, 64, 128],
                offset=0.0,
            ),
            iou_thresholds=[0.4, 0.5],
            iou_labels=[0, -1, 1],
            smooth_l1_beta=0.0,
            prior_prob=0.01,
            score_thresh="${...score_thresh}",
            topk_candidates=1000,
        ),
        point=L(PointBranch)(
            in_channels="${...towers.conv_dims[0]}",
            num_classes="${...num_classes}",
            strides=[8, 16, 32, 64, 128],
            selection_rule=L(SelectionRule)(
                effective_scale=0.2, ignore_scale=0.5, level_selection="online", point_offset=0.5
            ),
            heuristic_steps=0,
            loss_weight=0.5,
            box_normalizer=4.0,
            bbox_bias=0.1,
            prior_prob=0.01,
            score_thresh="${...score_thresh}",
            topk_candidates=1000,
        ),
    ),
    head_in_features=["p3", "p4", "p5", "p6", "p7"],
    num_classes=80,
    suppression=L(Suppression)(nms_thresh=0.5, max_detections=100, nms_per_level=False),
    score_thresh=0.05,
    pixel_mean=[103.53, 116.28, 123.675],
    pixel_std=[1.0, 1.0, 1.0],
)
