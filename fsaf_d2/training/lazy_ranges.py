"""The ranges of the numbers in a Python config: those of the keys of ``train_net.py``'s configs."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, ListConfig

from .lazy_config import ConfigError
from .setup.ranges import ONE_OR_MORE, Range, flaws_of, ranges_of

# Where a Python config has what a key stands for; * is whatever is there.
_PLACES = {
    "SOLVER.IMS_PER_BATCH": ["dataloader.train.total_batch_size"],
    "SOLVER.MAX_ITER": ["train.max_iter"],
    "SOLVER.BASE_LR": ["optimizer.lr", "optimizer.params.base_lr"],
    "SOLVER.MOMENTUM": ["optimizer.momentum"],
    "SOLVER.WEIGHT_DECAY": ["optimizer.weight_decay", "optimizer.params.weight_decay"],
    "SOLVER.WEIGHT_DECAY_NORM": ["optimizer.params.weight_decay_norm"],
    "SOLVER.WEIGHT_DECAY_BIAS": ["optimizer.params.weight_decay_bias"],
    "SOLVER.BIAS_LR_FACTOR": ["optimizer.params.bias_lr_factor"],
    "SOLVER.WARMUP_FACTOR": ["lr_multiplier.warmup_factor"],
    "SOLVER.WARMUP_ITERS": ["lr_multiplier.warmup_length"],
    "SOLVER.CHECKPOINT_PERIOD": ["train.checkpointer.period"],
    "SOLVER.CHECKPOINTS_TO_KEEP": ["train.checkpointer.max_to_keep"],
    "SOLVER.EMA_DECAY": ["train.ema_decay"],
    "SOLVER.NON_FINITE.MAX_TIMES": ["train.non_finite.max_times"],
    "TEST.EVAL_PERIOD": ["train.eval_period"],
    "TEST.PATIENCE": ["train.patience"],
    "TEST.SAMPLES": ["train.samples"],
    "TEST.LEVEL_LENS": ["train.level_lens"],
    "INPUT.MIN_SIZE_TRAIN": ["dataloader.train.mapper.augmentations.*.short_edge_length"],
    "INPUT.MAX_SIZE_TRAIN": ["dataloader.train.mapper.augmentations.*.max_size"],
    "INPUT.MIN_SIZE_TEST": ["dataloader.test.mapper.augmentations.*.short_edge_length"],
    "INPUT.MAX_SIZE_TEST": ["dataloader.test.mapper.augmentations.*.max_size"],
    "INPUT.MAX_PIXELS": ["dataloader.*.mapper.max_pixels"],
    "DATALOADER.NUM_WORKERS": ["dataloader.*.num_workers"],
    "TEST.DETECTIONS_PER_IMAGE": ["model.suppression.max_detections"],
    "MODEL.PIXEL_STD": ["model.pixel_std"],
    "MODEL.FPN.OUT_CHANNELS": ["model.backbone.out_channels"],
    "MODEL.ANCHOR_GENERATOR.SIZES": ["model.branches.*.anchor_generator.sizes"],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": ["model.branches.*.anchor_generator.aspect_ratios"],
    "MODEL.RETINANET.NUM_CLASSES": ["model.num_classes"],
    "MODEL.RETINANET.PRIOR_PROB": ["model.branches.*.prior_prob"],
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": ["model.branches.*.smooth_l1_beta"],
    "MODEL.RETINANET.SCORE_THRESH_TEST": ["model.score_thresh", "model.branches.*.score_thresh"],
    "MODEL.RETINANET.NMS_THRESH_TEST": ["model.suppression.nms_thresh"],
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": ["model.branches.*.topk_candidates"],
}


def require_lazy_ranges(cfg: DictConfig, *, eval_only: bool = False) -> None:
    """Make sure that the numbers of a Python config can be worked with.

    Raises:
        ConfigError: some cannot; there is a line for each.
    """
    ranges = ranges_of(eval_only)
    places: list[tuple[str, Range]] = [
        (place, ranges[key]) for key, places in _PLACES.items() if key in ranges for place in places
    ]
    if not eval_only:
        places.append(("train.log_period", ONE_OR_MORE))
    lines = [
        line
        for place, allowed in places
        for name, value in _values(cfg, place)
        for line in (
            [f"{name} must be a number, not {value!r}."]
            if isinstance(value, str)
            else flaws_of(name, value, allowed)
        )
    ]
    if lines:
        raise ConfigError("\n".join(lines))


def lines_of_lazy_warm_up(cfg: DictConfig) -> list[str]:
    """A warning where the learning rate is never reached."""
    for name, share in _values(cfg, "lr_multiplier.warmup_length"):
        if share >= 1:
            return [
                f"Warning: {name} {share:g} is a share of the run and not below 1: the learning "
                "rate is never reached. Set it to 0.1 or so."
            ]
    return []


def _values(node: object, place: str, above: str = "") -> Iterator[tuple[str, object]]:
    """What a config has at a place, with full names."""
    part, _, rest = place.partition(".")
    if not isinstance(node, (DictConfig, ListConfig)):
        return
    keys = range(len(node)) if isinstance(node, ListConfig) else node
    for key in keys if part == "*" else [part] * (part in keys):
        name = f"{above}{key}"
        if rest:
            yield from _values(node[key], rest, f"{name}.")
        else:
            yield name, node[key]
