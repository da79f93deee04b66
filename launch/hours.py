"""Estimated GPU hours of training, embedding and prediction on Kaggle's 2 x T4, from speeds of networks.

Nothing here was measured on Kaggle. The speeds are the agreement of two independent estimates. A campaign
replaces them with the measured time as soon as one of its folds is done.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

from lib.config import Config
from lib.data.competition import TEST_TILES, TRAIN_TILES
from lib.search_space import GPUS

# Tiles of 96 px that one T4 trains on per second, in float16, by the beginning of the backbone's name. The
# two estimates differ by 4 % at most; the pathology encoder's is from 14 min a view for all tiles at 224 px.
TRAINING_SPEEDS = {
    "resnet18": 6300.0,
    "resnet34": 3700.0,
    "resnet50": 2200.0,
    "efficientnet_b0": 3200.0,
    "seresnext50": 1450.0,
    "densenet121": 1700.0,
    "convnext_tiny": 1500.0,
    "vit_small_patch8": 900.0,
    "vit_small_patch16": 3600.0,  # a quarter of the tokens of patches of 8 px; a calculation only
}
OTHER_SPEED = 700.0  # of a backbone without an estimate: slower than all that have one
FORWARD_SHARE = 0.5  # of the time of a training step, for tiles that are only predicted
_STEM_COST = {"keep": 1.0, "no_pool": 4.0, "no_stride": 16.0}
_START_SECONDS = 120.0  # start of the session, libraries, 6 GB of tiles, first steps, files
_TOGETHER = 0.9  # of the speed of separate GPUs, when all train one network
_REFERENCE_SIZE = 96  # pixels
_VIEWS_OF_PRETRAINING = 2


def training_speed(config: Config) -> float:
    """Tiles per second that one T4 trains on; time grows with the area of the tiles."""
    name = config.backbone.rpartition("/")[2]
    known = [speed for start, speed in TRAINING_SPEEDS.items() if name.startswith(start)]
    speed = known[0] if known else OTHER_SPEED
    return speed / _STEM_COST[config.stem] * (_REFERENCE_SIZE / config.input_size) ** 2


def fold_hours(config: Config) -> float:
    """Hours of one fold with all its members: epochs, validations, views, and the start of the session.

    Members share the GPUs: two members on two GPUs take as long as one.
    """
    inside = TRAIN_TILES / config.num_folds
    outside, labelled = TRAIN_TILES - inside, 0.0
    if config.pseudo_labels:
        outside += config.pseudo_share * TEST_TILES
        labelled = TEST_TILES * config.tta_views / GPUS  # by the teacher, once
    validations = config.epochs // config.eval_every if config.eval_every else 0
    validated = min(config.eval_tiles or inside, inside)
    predicted = validations * validated + config.tta_views * inside
    member = config.epochs * outside + FORWARD_SHARE * predicted  # tiles, as if all were trained on
    rounds = config.num_members / (GPUS * _TOGETHER) if config.ddp else ceil(config.num_members / GPUS)
    return _hours(rounds * member + FORWARD_SHARE * labelled, config)


def trial_hours(config: Config) -> float:
    """Hours of a search for one fold of one network on one GPU."""
    return fold_hours(replace(config, num_members=1, ddp=False, sync_batchnorm=False, eval_every=0))


def embedding_hours(config: Config) -> float:
    """Hours to compute the features of all tiles in all views with a frozen encoder."""
    return _hours(FORWARD_SHARE * config.tta_views * (TRAIN_TILES + TEST_TILES) / GPUS, config)


def pretraining_hours(config: Config) -> float:
    """Hours of self-supervised pretraining on both GPUs."""
    tiles = TRAIN_TILES + (TEST_TILES if config.pretrain_tiles == "all" else 0)
    views = _VIEWS_OF_PRETRAINING * config.pretrain_epochs * tiles
    return _hours(views / (GPUS * _TOGETHER), config)


def inference_hours(configs: Sequence[Config], folds: Sequence[int]) -> float:
    """Hours to predict the test tiles with all members of so many folds of each experiment."""
    start = _START_SECONDS / 3600
    return start + sum(
        _hours(FORWARD_SHARE * number * config.num_members * config.tta_views * TEST_TILES / GPUS, config)
        - start
        for config, number in zip(configs, folds, strict=True)
        if config.train_mode != "linear_probe"  # the heads of linear probes take seconds on a CPU
    )


def _hours(tiles: float, config: Config) -> float:
    """Hours of a session that takes as long as training on so many tiles on one GPU."""
    return (_START_SECONDS + tiles / training_speed(config)) / 3600
