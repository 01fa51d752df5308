"""Cosines of pairs that have nothing to do with each other, of what a connection was made from.

    unrelated, least = unrelated_cosines(store, connection, speech.key, photos.key)  # or None

They are what a score means something by (embeddings/search/chance.py): no pair of the evaluation is
among them but by being unrelated.
"""

from pathlib import Path

import numpy as np

from cmcr.connect import JointSpace
from cmcr.embeddings import Key, open_dataset
from cmcr.embeddings.search.chance import Sample, draw_sample, least_known, unrelated_scores


def unrelated_cosines(
    store: Path, connection: JointSpace, query: Key, gallery: Key
) -> tuple[np.ndarray, float] | None:
    """The cosines of all unrelated pairs of 1,024 rows at most of each kind, (pairs,) ascending.

    With them the least share of them that these rows can tell.

    Rows are those of the modality that the connection was made from. Pairs that share a label, a
    group, or an id of one dataset's name are left out. None where the store has none of a kind.
    """
    asked = _sample(store, connection, query)
    found = _sample(store, connection, gallery)
    if asked is None or found is None:
        return None
    scores = unrelated_scores(asked, found, lambda own: (own @ found.vectors.T).numpy())
    return (scores, least_known(asked, found)) if len(scores) else None


def _sample(store: Path, connection: JointSpace, key: Key) -> Sample | None:
    there = [
        one for one in connection.unpaired(key.space, key.modality) if one.folder(store).is_dir()
    ]
    datasets = [open_dataset(store, one, check=False) for one in there]
    return draw_sample(datasets, connection.project)
