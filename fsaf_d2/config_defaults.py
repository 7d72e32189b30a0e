"""The configuration keys that fsaf_d2 adds to detectron2's."""

from __future__ import annotations

from detectron2.config import CfgNode

from .config_keys import record
from .data.reading.image_headers import MAX_PIXELS
from .detectors.branch import BRANCHES


def add_fsaf_config(cfg: CfgNode) -> None:
    """Add every key of this project to a detectron2 config, with its default.

    Whatever branches share with RetinaNet (classes, focal loss, thresholds, towers) keeps its key
    under ``MODEL.RETINANET``; the keys of a branch stand beside its paper, in ``detectors/``.
    """
    # The branches of the detector, by name; empty for those of MODEL.META_ARCHITECTURE.
    cfg.MODEL.BRANCHES = []
    for kind in BRANCHES.values():
        kind.add_config(cfg)
    _add_network(cfg)
    _add_data(cfg)
    _add_training(cfg)
    _add_evaluation(cfg)
    # The same command gives the same weights twice, bit for bit; needs SEED. Slower on a GPU.
    cfg.DETERMINISTIC = False
    # Whatever differs from here on was given.
    record(cfg, [], [])


def _add_network(cfg: CfgNode) -> None:
    # Whether P7 is computed from ReLU(P6), as in RetinaNet's paper, or from P6.
    cfg.MODEL.FPN.RELU_BEFORE_P7 = True
    # The map that P6 is computed from: "" is the last of IN_FEATURES, as in RetinaNet's paper; a
    # level, such as "p5", is that of the pyramid (FCOS, arXiv 1904.01355, Sec. 3.2).
    cfg.MODEL.FPN.P6_FROM = ""
    # Whether the towers' convolutions have biases; those before a norm do without in some papers.
    cfg.MODEL.TOWERS = CfgNode({"BIAS": True})
    # For MODEL.BACKBONE.NAME build_timm_fpn_backbone and build_timm_hrfpn_backbone: the network's
    # name in timm.list_models(), and its norm: "" or "BN" is batch norm as timm has it; "SyncBN",
    # "FrozenBN", "GN".
    cfg.MODEL.TIMM = CfgNode({"NAME": "", "NORM": ""})
    # Of the latter: the strides of its levels, in image pixels (arXiv 1908.07919).
    cfg.MODEL.HRFPN = CfgNode({"OUT_STRIDES": [8, 16, 32, 64, 128]})
    # Train with feature maps in (N, H, W, C) order in memory, which is convolved faster.
    cfg.MODEL.CHANNELS_LAST = True
    # Run backbone, towers and branches through torch.compile, which needs a C++ compiler, and
    # minutes at first.
    cfg.MODEL.COMPILE = False


def _add_data(cfg: CfgNode) -> None:
    # Images without objects are background to learn from, unlike in detectron2.
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    # So many images of each process may be unreadable and are left out, before training stops.
    cfg.DATALOADER.MAX_UNREADABLE = 0
    # Whether any box without area in the data refuses a run. Otherwise at most a tenth of the boxes
    # is left out by name, where there are no other errors.
    cfg.DATALOADER.STRICT_BOXES = False
    # Brightness, contrast and saturation of training images are multiplied by random factors from
    # 1 - COLOR_JITTER to 1 + COLOR_JITTER.
    cfg.INPUT.COLOR_JITTER = 0.0
    # Images of more pixels are refused before they are decoded.
    cfg.INPUT.MAX_PIXELS = MAX_PIXELS
    # What resizes images: "pillow", as detectron2; "opencv", as mmdetection; "auto", OpenCV where
    # no pixel differs from Pillow's by more than one grey level, which is faster.
    cfg.INPUT.RESIZE = "auto"


def _add_training(cfg: CfgNode) -> None:
    # The batch that BASE_LR, WARMUP_ITERS, STEPS and MAX_ITER are for. They, TEST.EVAL_PERIOD and
    # CHECKPOINT_PERIOD are scaled to another IMS_PER_BATCH; 0: never.
    cfg.SOLVER.REFERENCE_BATCH = 0
    # "SGD" (detectron2's own builder) or "ADAMW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # The learning rate of the backbone's first part (a ResNet, a network of timm), as a share of
    # that of neck, towers and branches. Not in the paper; for short runs from ImageNet weights.
    cfg.SOLVER.BACKBONE_LR_FACTOR = 1.0
    # Update all weights in one pass over them; equal to detectron2's step up to rounding.
    cfg.SOLVER.FUSED = True
    # Train under bfloat16 autocast; unlike SOLVER.AMP also on a CPU, and no loss is scaled.
    cfg.SOLVER.BFLOAT16 = False
    # So many numbered checkpoints stay beside model_final and model_best; 0 keeps all.
    cfg.SOLVER.CHECKPOINTS_TO_KEEP = 0
    # A loss or gradient that is infinite or NaN never reaches the weights. Then: "stop"; "skip" the
    # step; or "rollback" to the last checkpoint with half the learning rate. The latter two at most
    # MAX_TIMES.
    cfg.SOLVER.NON_FINITE = CfgNode({"ACTION": "stop", "MAX_TIMES": 5})
    # Above 0: a moving average of the weights, which is what is evaluated and saved as the model.
    cfg.SOLVER.EMA_DECAY = 0.0


def _add_evaluation(cfg: CfgNode) -> None:
    # At every evaluation: the losses of training on the images of DATASETS.TEST.
    cfg.TEST.LOSS = True
    # model_best is the best by this metric, any that the log of an evaluation has, such as
    # "bbox/AP50", "bbox/AP-<class>" or "validation/total_loss" (of losses the least is best).
    cfg.TEST.BEST_METRIC = "bbox/AP"
    # After so many evaluations during training without a better one the run ends; 0 is never.
    cfg.TEST.PATIENCE = 0
    # At every evaluation: so many images of DATASETS.TEST are drawn, annotated beside found.
    cfg.TEST.SAMPLES = 6
    # At every evaluation: on so many training images it is seen which levels objects select.
    cfg.TEST.LEVEL_LENS = 50
