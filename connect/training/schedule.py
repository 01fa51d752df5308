"""Batch and epochs that suit the number of pairs; at the paper's size they are the paper's.

config = scheduled(config, pairs=900)     # batch_size 201, epochs 200: a thousand steps

The paper's 36 epochs of batches of 10,240 are for 2.33 M texts. A thousand pairs would be one
batch, and 36 steps. The batch falls as the root of the number of pairs, which keeps 36 epochs down
to some 35,000 of them; with fewer the epochs grow, so that there are a thousand steps.
"""

import math

from cmcr.connect.config import ConnectConfig

PAIRS, BATCH, EPOCHS = 2_330_000, 10_240, 36  # arXiv 2305.14381, section 4.1
LEAST_BATCH, LEAST_STEPS = 128, 1_000
ROUNDS = 36  # at most so many times a run is validated: as often as the paper has epochs


def scheduled(config: ConnectConfig, pairs: int) -> ConnectConfig:
    """`config` with the batch size and the epochs that it leaves open."""
    usual = max(LEAST_BATCH, round(BATCH * min(1, math.sqrt(pairs / PAIRS))))
    batch = config.batch_size or max(4, min(usual, pairs))
    steps = math.ceil(pairs / batch)  # in an epoch
    epochs = config.epochs or max(EPOCHS, math.ceil(LEAST_STEPS / steps))
    return config.model_copy(update={"batch_size": batch, "epochs": epochs})


def epochs_a_round(epochs: int) -> int:
    """How many epochs pass between one validation and the next."""
    return math.ceil(epochs / ROUNDS)
